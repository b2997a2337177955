"""Runs Triton's client libraries, HTTP and gRPC, against a server. The answers must equal those of /v1/classify.

    python tests/clients/triton.py HOST:PORT PHOTO...
"""

import json
import sys
import urllib.request

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

MODEL = "ghostnetv2-cifar10"


def classified(url: str, photo: bytes) -> np.ndarray:
    request = urllib.request.Request(
        f"http://{url}/v1/classify?top_k=10", data=photo, headers={"content-type": "application/octet-stream"}
    )
    row = np.zeros(10, np.float32)
    for prediction in json.load(urllib.request.urlopen(request))["results"][0]["predictions"]:
        row[prediction["class"]] = prediction["probability"]
    return row


def tensor(library, values: np.ndarray, datatype: str, **options):
    image = library.InferInput("image", list(values.shape), datatype)
    image.set_data_from_numpy(values, **options)
    return image


def refusal(client, image, model=MODEL, **options) -> str:
    try:
        client.infer(model, [image], **options)
    except InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    raise AssertionError("the server should have refused the request")


def check(library, url: str, photos: list[bytes], expected: np.ndarray) -> None:
    client = library.InferenceServerClient(url)
    grpc = library is tritonclient.grpc
    as_json = {"as_json": True} if grpc else {}
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1") and not client.is_model_ready("nothing")
    assert "statistics" in client.get_server_metadata(**as_json)["extensions"]
    metadata = client.get_model_metadata(MODEL, **as_json)
    assert metadata["inputs"][0]["datatype"] == "BYTES" and metadata["outputs"][0]["name"] == "probabilities"
    config = client.get_model_config(MODEL, **as_json)
    config = config.get("config", config)
    assert config["max_batch_size"] == 32 and config["input"][0]["data_type"] == "TYPE_STRING"
    index = client.get_model_repository_index(**as_json)
    index = index["models"] if grpc else index
    assert [entry["name"] for entry in index] == [MODEL, f"{MODEL}-features"]

    files = np.array(photos, dtype=np.object_).reshape(-1, 1)
    answer = client.infer(MODEL, [tensor(library, files, "BYTES")], request_id="seven")
    np.testing.assert_allclose(answer.as_numpy("probabilities"), expected, rtol=0, atol=1e-6)
    assert "seven" in str(answer.get_response())

    classes = [library.InferRequestedOutput("probabilities", class_count=3)]
    answer = client.infer(MODEL, [tensor(library, files, "BYTES")], outputs=classes).as_numpy("probabilities")
    for row, texts in zip(expected, answer):
        for class_, text in zip(np.argsort(-row, kind="stable")[:3], texts):
            probability, index_, label = text.decode().split(":")
            assert int(index_) == class_ and abs(float(probability) - row[class_]) < 1e-5 and label

    # A batch of pixels, and the network's own input; they need not show the same image.
    pixels = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    size = 64
    for values, datatype in [(pixels, "UINT8"), (np.zeros((3, 3, size, size), np.float32), "FP32")]:
        rows = client.infer(MODEL, [tensor(library, values, datatype)]).as_numpy("probabilities")
        assert rows.shape == (len(values), 10) and np.allclose(rows.sum(axis=1), 1, atol=1e-5)
        if not grpc:
            same = [library.InferRequestedOutput("probabilities", binary_data=False)]
            plain = client.infer(MODEL, [tensor(library, values, datatype, binary_data=False)], outputs=same)
            np.testing.assert_allclose(plain.as_numpy("probabilities"), rows, rtol=0, atol=1e-6)

    maps = client.infer(f"{MODEL}-features", [tensor(library, files, "BYTES")], parameters={"size": "96x64"})
    assert maps.as_numpy("c3").shape[2:] == (8, 12) and maps.as_numpy("embedding").shape == (len(photos), 1280)

    broken = tensor(library, np.array([[photos[0]], [b"no image"]], dtype=np.object_), "BYTES")
    message = refusal(client, broken)
    assert "image 2 of 2" in message and ("INVALID_ARGUMENT" in message if grpc else "415" in message), message
    assert "nothing" in refusal(client, tensor(library, files, "BYTES"), model="nothing")
    assert "version" in refusal(client, tensor(library, files, "BYTES"), model_version="9")
    assert "logits" in refusal(
        client, tensor(library, files, "BYTES"), outputs=[library.InferRequestedOutput("logits")]
    )
    # The timeout is sent as the request's deadline, in microseconds.
    many = np.array(photos * (32 // len(photos)), dtype=np.object_).reshape(-1, 1)
    assert "deadline" in refusal(client, tensor(library, many, "BYTES"), timeout=50).lower()

    statistics = client.get_inference_statistics(MODEL, **as_json)["model_stats"][0]
    assert int(statistics["inference_count"]) > len(photos) and int(statistics["inference_stats"]["success"]["count"]) > 0
    client.close()


def check_stream(url: str, photos: list[bytes], expected: np.ndarray) -> None:
    import queue

    answers: queue.Queue = queue.Queue()
    client = tritonclient.grpc.InferenceServerClient(url)
    client.start_stream(lambda result, error: answers.put((result, error)))
    for i, photo in enumerate([*photos, b"no image"]):
        image = tensor(tritonclient.grpc, np.array([[photo]], dtype=np.object_), "BYTES")
        client.async_stream_infer(MODEL, [image], request_id=str(i))
    for i, row in enumerate(expected):
        result, error = answers.get(timeout=10)
        assert error is None and result.get_response().id == str(i)
        np.testing.assert_allclose(result.as_numpy("probabilities")[0], row, rtol=0, atol=1e-6)
    _, error = answers.get(timeout=10)
    assert error is not None and "send one of" in error.message(), error
    client.stop_stream()


def main() -> None:
    url, *paths = sys.argv[1:]
    photos = [open(path, "rb").read() for path in paths]
    expected = np.stack([classified(url, photo) for photo in photos])
    check(tritonclient.http, url, photos, expected)
    check(tritonclient.grpc, url, photos, expected)
    check_stream(url, photos, expected)
    print(f"{len(photos)} photographs: HTTP, gRPC and streams agree with /v1/classify")


if __name__ == "__main__":
    main()
