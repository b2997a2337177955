#!/usr/bin/env python3
"""Sends the same requests to two builds of GhostServe and compares the answers byte for byte.

    compare.py OLD NEW [--show]

OLD and NEW are binaries. A refactoring must not change the answers; this script shows whether it did. Covered: status,
headers and body of HTTP requests (classification, features, attention, models, Open Inference, health, errors), status,
details and messages of gRPC calls, the names, types and labels of metrics, and the flags, defaults and environment
variables of every subcommand. Values that differ between two runs of one binary are masked: dates, times, ports. Prose of
the OpenAPI document and of help texts is ignored, because documentation may change.

gRPC calls need `grpcio`; `make clients` installs it in .runtime/clients. ONNX Runtime is found as the server finds it.
"""

import argparse
import base64
import difflib
import http.client
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "deploy"))

from common import ROOT, Server

import grpc

IMAGES = ROOT / "tests/goldens/images"
JPEG = (IMAGES / "jpeg-420.jpg").read_bytes()
PNG = (IMAGES / "png-rgb.png").read_bytes()
MODEL = "ghostnetv2-cifar10"
# One worker and a fixed batch size: calibration would choose by measuring.
ARGUMENTS = ["--workers=1", "--threads-per-worker=1", "--max-batch=4", "--no-calibration", "--drain-grace=0s"]
COMMANDS = ["", "serve", "classify", "eval", "inspect", "build", "pull", "bench", "health"]
BOUNDARY = "wire-boundary"


# ---- HTTP ----


def multipart(*parts):
    out = b""
    for name, data in parts:
        disposition = f'Content-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'
        out += f"--{BOUNDARY}\r\n{disposition}".encode() + data + b"\r\n"
    return out + f"--{BOUNDARY}--\r\n".encode()


def http_requests():
    """Yields the HTTP requests: name, method, path, headers, body."""
    form = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    as_json = {"content-type": "application/json"}
    text = base64.b64encode(JPEG).decode()
    for file in sorted(IMAGES.iterdir()):
        yield f"classify {file.name}", "POST", "/v1/classify?top_k=10", {}, file.read_bytes()
    both = multipart(("a", JPEG), ("b", PNG), ("bad", b"no image"))
    for name, path, headers, body in [
        ("multipart", "/v1/classify", form, both),
        ("json", "/v1/classify?min_confidence=0.01", as_json, json.dumps({"images": [text, "data:image/jpeg;base64," + text]})),
        ("model", f"/v1/classify?model={MODEL}&top_k=1", {"content-type": "image/jpeg"}, JPEG),
        ("background", "/v1/classify", {"priority": "u=5", "x-request-timeout-ms": "5000"}, JPEG),
        ("gzip", "/v1/classify?top_k=10", {"accept-encoding": "gzip"}, JPEG),
        ("no image", "/v1/classify", {}, b""),
        ("garbage", "/v1/classify", {}, b"\x00\x01garbage"),
        ("cut JPEG", "/v1/classify", {}, JPEG[: len(JPEG) // 2]),
        ("cut PNG", "/v1/classify", {}, PNG[: len(PNG) // 2]),
        ("text", "/v1/classify", {"content-type": "text/plain"}, b"hello"),
        ("bad JSON", "/v1/classify", as_json, b"{"),
        ("other JSON", "/v1/classify", as_json, b'{"pictures": []}'),
        ("no images in JSON", "/v1/classify", as_json, b'{"images": []}'),
        ("bad base64", "/v1/classify", as_json, b'{"images": ["%%%"]}'),
        ("too many images", "/v1/classify", as_json, json.dumps({"images": ["AA=="] * 33})),
        ("empty multipart", "/v1/classify", form, multipart()),
        ("bad multipart", "/v1/classify", form, b"--wire-boundary\r\nnothing"),
        ("top_k 0", "/v1/classify?top_k=0", {}, JPEG),
        ("top_k 11", "/v1/classify?top_k=11", {}, JPEG),
        ("top_k text", "/v1/classify?top_k=many", {}, JPEG),
        ("confidence", "/v1/classify?min_confidence=2", {}, JPEG),
        ("unknown parameter", "/v1/classify?topk=1", {}, JPEG),
        ("unknown model", "/v1/classify?model=other", {}, JPEG),
        ("bad timeout", "/v1/classify", {"x-request-timeout-ms": "soon"}, JPEG),
        ("encoding", "/v1/classify", {"content-encoding": "br"}, JPEG),
        ("all bad", "/v1/classify", form, multipart(("a", b"x"), ("b", PNG[:99]))),
        ("features json", "/v1/features?levels=c5,embedding&size=64", {}, JPEG),
        ("features of two", "/v1/features?levels=c4&dtype=f16&top_k=3", form, both),
        ("features safetensors", "/v1/features", {"accept": "application/vnd.safetensors"}, JPEG),
        ("features npz", "/v1/features?size=96x64&fit=letterbox", {"accept": "application/x-npz"}, JPEG),
        ("features png", "/v1/features?levels=c3", {"accept": "image/png"}, JPEG),
        ("features timm", "/v1/features?cut=timm&levels=c3,c5&fit=stretch&size=128", {"accept": "application/vnd.safetensors"}, JPEG),
        ("embedding", "/v1/features?levels=embedding&normalize=true", {}, PNG),
        ("features level", "/v1/features?levels=c9", {}, JPEG),
        ("features twice", "/v1/features?levels=c3,c3", {}, JPEG),
        ("features size", "/v1/features?size=65", {}, JPEG),
        ("features sizes", "/v1/features?size=axb", {}, JPEG),
        ("features large", "/v1/features?size=4096", {}, JPEG),
        ("features accept", "/v1/features", {"accept": "text/html"}, JPEG),
        ("features fit", "/v1/features?fit=tile", {}, JPEG),
        ("features bad", "/v1/features", {}, b"garbage"),
        ("attention json", "/v1/attention?size=64", {}, JPEG),
        ("attention png", "/v1/attention?size=224&layer=3.0", {"accept": "image/png"}, JPEG),
        ("attention layer", "/v1/attention?layer=77.0", {}, JPEG),
    ]:
        yield name, "POST", path, headers, body
    for path in [
        "/v1/models", f"/v1/models/{MODEL}", "/v1/models/other", "/v1/models?x=1", "/livez", "/readyz", "/openapi.json",
        "/docs", "/", "/v1/classify", "/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}",
        f"/v2/models/{MODEL}/versions/1", f"/v2/models/{MODEL}/versions/7", f"/v2/models/{MODEL}/ready",
        f"/v2/models/{MODEL}/config", "/v2/models/other", f"/v2/models/{MODEL}-features", f"/v2/models/{MODEL}-features/config",
        "/v2/models/stats", f"/v2/models/{MODEL}/stats",
    ]:
        yield f"GET {path}", "GET", path, {}, None
    yield "DELETE", "DELETE", "/v1/models", {}, None
    yield "HEAD", "HEAD", "/livez", {}, None
    yield "index", "POST", "/v2/repository/index", as_json, b'{"ready": true}'
    yield "load", "POST", f"/v2/repository/models/{MODEL}/load", as_json, b"{}"
    infer = f"/v2/models/{MODEL}/infer"
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
    binary = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(JPEG) + 4}}
    numbers = {"name": "image", "shape": [1, 64, 64, 3], "datatype": "UINT8", "data": [i % 251 for i in range(64 * 64 * 3)]}
    for name, path, document, rest in [
        ("bytes", infer, {"id": "7", "inputs": [tensor]}, None),
        ("classes", infer, {"inputs": [tensor], "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}]}, None),
        ("binary", infer, {"inputs": [binary], "parameters": {"binary_data_output": True}}, struct.pack("<I", len(JPEG)) + JPEG),
        ("pixels", infer, {"inputs": [numbers]}, None),
        ("features", f"/v2/models/{MODEL}-features/infer", {"inputs": [tensor], "outputs": [{"name": "c5"}]}, None),
        ("features binary", f"/v2/models/{MODEL}-features/infer", {"inputs": [tensor], "parameters": {"binary_data_output": True}}, None),
        ("other input", infer, {"inputs": [{**tensor, "name": "x"}]}, None),
        ("other type", infer, {"inputs": [{**tensor, "datatype": "INT64"}]}, None),
        ("other shape", infer, {"inputs": [{**tensor, "shape": [2]}]}, None),
        ("other output", infer, {"inputs": [tensor], "outputs": [{"name": "x"}]}, None),
        ("no input", infer, {"inputs": []}, None),
        ("other model", "/v2/models/other/infer", {"inputs": [tensor]}, None),
        ("unknown member", infer, {"input": []}, None),
    ]:
        body = json.dumps(document).encode()
        headers = dict(as_json)
        if rest is not None:
            headers["inference-header-content-length"] = str(len(body))
            body += rest
        yield f"infer {name}", "POST", path, headers, body


def send(port, method, path, headers, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"x-request-id": "wire", **headers})
        response = connection.getresponse()
        return response.status, sorted((k.lower(), v) for k, v in response.getheaders()), response.read()
    finally:
        connection.close()


PROSE = ("description", "summary")


def without_prose(value):
    """An OpenAPI document without its prose. Only texts are removed, because a property may have the same name."""
    if isinstance(value, dict):
        return {k: without_prose(v) for k, v in value.items() if not (k in PROSE and isinstance(v, str))}
    return [without_prose(v) for v in value] if isinstance(value, list) else value


def masked(path, headers, body):
    headers = [(k, re.sub(r"\d+(\.\d+)?", "N", v) if k == "server-timing" else "D" if k == "date" else v) for k, v in headers]
    if path == "/openapi.json":
        body = json.dumps(without_prose(json.loads(body))).encode()
        headers = [(k, v) for k, v in headers if k not in ("content-length", "etag")]
    if path == "/docs":
        body, headers = b"", [(k, v) for k, v in headers if k not in ("content-length", "etag")]
    if path.endswith("/stats"):
        body = re.sub(rb'"(ns|last_inference)":\d+', rb'"\1":N', body)
        headers = [(k, v) for k, v in headers if k != "content-length"]
    if path.startswith("/v1/models"):
        body = re.sub(rb'"(requested_ms|resident_bytes|seconds)":[\d.]+', rb'"\1":N', body)
    return headers, body


# ---- gRPC: messages are encoded and decoded here, so that no generated code is needed ----


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def without_field(message, number):
    """A message without one of its fields, for `Timing`, which differs from run to run."""
    out, at = b"", 0

    def read():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        start, key = at, read()
        if key & 7 == 0:
            read()
        elif key & 7 == 2:
            size = read()
            at += size
        else:
            at += 4 if key & 7 == 5 else 8
        if key >> 3 != number:
            out += message[start:at]
    return out


def grpc_calls():
    """Yields the gRPC calls: name, method, request, field number of `Timing` in the answer."""
    own, oip = "/ghostserve.v1.InferenceService/", "/inference.GRPCInferenceService/"
    image, two = field(2, JPEG), field(2, JPEG) + field(2, PNG)
    tensor = field(1, "image") + field(2, "BYTES") + field(3, varint(1))
    raw = field(7, struct.pack("<I", len(JPEG)) + JPEG)
    yield "classify", own + "Classify", two + field(3, 10), 3
    yield "classify with a bad image", own + "Classify", image + field(2, b"x"), 3
    yield "classify nothing", own + "Classify", b"", 3
    yield "classify garbage", own + "Classify", b"\xff\xff\xff", 3
    yield "unknown model", own + "Classify", field(1, "other") + image, 3
    yield "top_k 0", own + "Classify", image + field(3, 0), 3
    yield "confidence", own + "Classify", image + field(4, 7.0), 3
    yield "features", own + "ExtractFeatures", two + field(3, "c4") + field(3, "embedding") + field(9, 2), 4
    yield "features f16", own + "ExtractFeatures", image + field(5, field(1, 96) + field(2, 64)) + field(6, 2) + field(7, 2), 4
    yield "features level", own + "ExtractFeatures", image + field(3, "c8"), 4
    yield "models", own + "ListModels", b"", None
    yield "unknown method", own + "Nothing", b"", None
    yield "server", oip + "ServerMetadata", b"", None
    yield "live", oip + "ServerLive", b"", None
    yield "ready", oip + "ServerReady", b"", None
    yield "model ready", oip + "ModelReady", field(1, MODEL), None
    yield "metadata", oip + "ModelMetadata", field(1, MODEL), None
    yield "metadata of features", oip + "ModelMetadata", field(1, MODEL + "-features"), None
    yield "metadata of another", oip + "ModelMetadata", field(1, "other"), None
    yield "index", oip + "RepositoryIndex", b"", None
    yield "infer", oip + "ModelInfer", field(1, MODEL) + field(3, "7") + field(5, tensor) + raw, None
    yield "infer features", oip + "ModelInfer", field(1, MODEL + "-features") + field(5, tensor) + raw, None
    yield "infer nothing", oip + "ModelInfer", field(1, MODEL), None
    yield "infer another type", oip + "ModelInfer", field(1, MODEL) + field(5, field(1, "image") + field(2, "INT8")), None
    yield "health", "/grpc.health.v1.Health/Check", b"", None
    yield "health of another", "/grpc.health.v1.Health/Check", field(1, "other"), None


def call(channel, method, message, timing):
    same = lambda data: data  # noqa: E731
    try:
        answer, state = channel.unary_unary(method, same, same).with_call(message, metadata=[("x-request-id", "wire")], timeout=60)
        answer = answer if timing is None else without_field(answer, timing)
        return ["OK", sorted((m.key, m.value) for m in state.initial_metadata() if m.key != "date"), answer]
    except grpc.RpcError as error:
        trailers = sorted((m.key, m.value) for m in error.trailing_metadata() or [] if m.key != "date")
        return [str(error.code()), error.details(), trailers]


# ---- all answers of a binary ----


def metric_names(text):
    """The types of the metrics, and the series without their values. Buckets are left out: they depend on timing."""
    types = set(re.findall(r"^# TYPE .*$", text, re.MULTILINE))
    series = {re.sub(r'(version|revision|onnxruntime|digest)="[^"]*"', r'\1="…"', s) for s in re.findall(r"^(ghostserve_[^ #]+) ", text, re.MULTILINE)}
    return sorted(types | {s for s in series if "_bucket" not in s})


def flags(binary, command):
    """Each flag with its value names, environment variable and default, in alphabetical order. Values of several
    words are left out, because they are prose."""
    arguments = [binary, *([command] if command else []), "--help"]
    text = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    found = []
    for block in re.split(r"\n(?= {2,6}-{1,2}[a-z])", text)[1:]:
        words = re.split(r"  +|\n", block.strip())[0]
        joined = " ".join(block.split())
        values = re.findall(r"^ +- ([\w./-]+):? ", block, re.MULTILINE)
        notes = re.findall(r"\[(env: \w+|default: [^\] ]+(?=\])|possible values: [^\]]+)", joined)
        found.append(" ".join([words, *values, *notes]))
    return sorted(found)


def record(binary):
    """Returns the answers of a binary by the name of the request."""
    answers = {f"flags of {command or 'ghostserve'}": flags(binary, command) for command in COMMANDS}
    server = Server(binary, arguments=ARGUMENTS)
    try:
        for name, method, path, headers, body in http_requests():
            status, found, content = send(server.port, method, path, headers, body)
            answers[f"HTTP {name}"] = [status, *masked(path, found, content)]
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.max_receive_message_length", -1)]) as channel:
            for name, *request in grpc_calls():
                answers[f"gRPC {name}"] = call(channel, *request)
        answers["metrics"] = metric_names(send(server.port, "GET", "/metrics", {}, None)[2].decode())
    finally:
        server.stop()
    return answers


def lines(answer):
    return [repr(part)[:2000] for part in answer]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--show", action="store_true", help="print the differences")
    arguments = parser.parse_args()
    old, new = (record(os.path.abspath(binary)) for binary in (arguments.old, arguments.new))
    different = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    for name in different:
        print(f"different: {name}")
        if arguments.show:
            before, after = lines(old.get(name, [])), lines(new.get(name, []))
            print("\n".join(line for line in difflib.unified_diff(before, after, "old", "new", lineterm="", n=0)))
    print(f"{len(old)} answers compared, {len(different)} different")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
