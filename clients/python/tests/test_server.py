"""The client against a running server with the built-in model."""

import asyncio
import io
import itertools
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from ghostserve import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    ImageError,
    ImageRejectedError,
    InvalidRequestError,
    Result,
    UnknownModelError,
)
from ghostserve.__main__ import main


def test_a_photograph_is_classified_from_a_path_bytes_and_a_file(client: Client, photo: Path) -> None:
    answers = [client.classify(photo), client.classify(str(photo)), client.classify(photo.read_bytes())]
    with photo.open("rb") as file:
        answers.append(client.classify(file))
    answers.append(client.classify(io.BytesIO(photo.read_bytes())))
    first = answers[0].result
    assert len(first.predictions) == 5
    assert first.top.label in client.model().labels
    assert 0 < first.top.probability <= 1
    assert (first.image.format, first.image.width, first.image.height) == ("jpeg", 96, 80)
    for answer in answers:
        assert [p.label for p in answer.result.predictions] == [p.label for p in first.predictions]


def test_an_answer_has_its_model_times_and_request(client: Client, photo: Path) -> None:
    answer = client.classify(photo, top_k=1, request_id="of-the-client", priority=5, deadline=9)
    assert answer.request_id == "of-the-client"
    assert answer.model.digest.startswith("sha256:")
    assert set(answer.timings) >= {"read", "decode", "resize", "queue", "infer", "encode"}
    assert answer.timings["infer"] > 0
    assert len(answer.result.predictions) == 1


def test_each_of_several_images_has_a_result_or_an_error(client: Client, photo: Path) -> None:
    answer = client.classify([photo, b"no image", photo], min_confidence=0.1)
    good, bad, again = answer.results
    assert isinstance(good, Result)
    assert good == again
    assert all(p.probability >= 0.1 for p in good.predictions)
    assert isinstance(bad, ImageError)
    assert bad.code == "unsupported_image_format"
    with pytest.raises(ValueError, match="3 images"):
        _ = answer.result


def test_errors_have_their_types_and_members(client: Client, photo: Path) -> None:
    with pytest.raises(ImageRejectedError) as caught:
        client.classify(b"no image", request_id="refused")
    assert (caught.value.status, caught.value.code) == (415, "unsupported_image_format")
    assert caught.value.request_id == "refused"
    assert "JPEG" in caught.value.detail
    with pytest.raises(UnknownModelError, match="nothing"):
        client.classify(photo, model="nothing")
    with pytest.raises(InvalidRequestError, match="min_confidence"):
        client.classify(photo, min_confidence=2)
    with pytest.raises(DeadlineExceededError):
        client.classify(photo, deadline=0.0005)
    with pytest.raises(FileNotFoundError):
        client.classify("no such file.jpg")


def test_feature_maps_are_arrays_with_their_geometry(client: Client, photo: Path) -> None:
    answer = client.features(
        [photo, b"no image", photo],
        levels=("c3", "c5", "embedding"),
        size=(416, 320),
        fit="letterbox",
        dtype="f16",
        cut="timm",
        top_k=2,
    )
    first, bad, second = answer.results
    assert isinstance(bad, ImageError)
    assert not isinstance(first, ImageError)
    assert not isinstance(second, ImageError)
    assert answer.arrays["c3"].shape == (2, 40, 40, 52)
    assert first.arrays["c3"].shape == (40, 40, 52)
    assert first.arrays["c3"].dtype == np.float16
    assert first.arrays["embedding"].shape == (1280,)
    assert np.array_equal(second.arrays["c5"], answer.arrays["c5"][1])
    assert np.asarray(first.maps["c5"]).any()
    assert first.strides == {"c3": 8, "c5": 32}
    assert len(first.predictions) == 2
    box = (10.0, 12.0, 60.0, 70.0)
    on_map = first.geometry.to_input(box, 8)
    assert first.geometry.to_photo(on_map, 8) == pytest.approx(box)
    # The visible part of a letterboxed photograph is all of it.
    assert first.geometry.visible == pytest.approx((0, 0, 96, 80))


def test_embeddings_can_have_length_1(client: Client, photo: Path) -> None:
    (embedding,) = client.features(photo, levels="embedding", normalize=True).result.arrays.values()
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)


def test_attention_and_images(client: Client, photo: Path) -> None:
    attention = client.attention(photo, layer="3.0", size=224)
    assert attention.array.shape == (72, 28, 28)
    assert attention.stride == 8
    assert attention.array.min() >= 0
    assert attention.array.max() <= 1
    for image in (client.attention_image(photo, layer="3.0", size=224), client.feature_image(photo, "c4")):
        assert image.startswith(b"\x89PNG")


def test_models_health_and_metrics(client: Client) -> None:
    (summary,) = client.models()
    assert summary.default
    details = client.model()
    assert details.id == summary.id
    assert len(details.labels) == details.classes == 10
    assert details.raw["features"]["embedding"] == 1280
    assert client.live()
    assert client.ready()
    assert "ghostserve_http_requests_total" in client.metrics()


def test_many_images_keep_their_order_and_stay_few(client: Client, photo: Path) -> None:
    taken = 0

    def images() -> Iterator[bytes | Path]:
        nonlocal taken
        for number in range(60):
            taken += 1
            yield b"no image" if number % 7 == 3 else photo

    for number, result in enumerate(client.classify_many(images(), concurrency=3, top_k=1)):
        assert isinstance(result, ImageError) == (number % 7 == 3)
        assert taken <= number + 6
    assert taken == 60


def test_many_images_overload_the_server_and_all_are_answered(url: str, photo: Path) -> None:
    # Far more connections than a server of two cores admits at once; refused requests are sent again.
    with Client(url, timeout=60) as client:
        results = list(client.classify_many([photo] * 600, concurrency=64, top_k=1))
    assert len(results) == 600
    assert all(isinstance(result, Result) for result in results)


def test_taking_few_of_many_ends_cleanly(client: Client, photo: Path) -> None:
    results = client.classify_many(itertools.repeat(photo), concurrency=2)
    assert len(list(itertools.islice(results, 5))) == 5
    results.close()


def test_the_asynchronous_client_answers_alike(url: str, photo: Path) -> None:
    async def images() -> AsyncIterator[bytes | Path]:
        for number in range(20):
            yield b"no image" if number == 4 else photo

    async def ask() -> None:
        async with AsyncClient(url, timeout=60) as client:
            answer = await client.classify(photo)
            features = await client.features(photo, levels="c5")
            attention = await client.attention(photo, layer="3.0")
            assert (await client.model()).classes == 10
            assert await client.live()
            assert await client.ready()
            assert "ghostserve_" in await client.metrics()
            assert (await client.attention_image(photo, layer="3.0", size=224)).startswith(b"\x89PNG")
            assert (await client.feature_image(photo, "c4")).startswith(b"\x89PNG")
            results = [result async for result in client.classify_many(images(), concurrency=3)]
            with pytest.raises(ImageRejectedError):
                await client.classify(b"no image")
        with Client(url) as synchronous:
            assert answer.result == synchronous.classify(photo).result
            assert np.array_equal(features.arrays["c5"], synchronous.features(photo, levels="c5").arrays["c5"])
            assert np.array_equal(attention.array, synchronous.attention(photo, layer="3.0").array)
        assert [isinstance(result, ImageError) for result in results] == [number == 4 for number in range(20)]

    asyncio.run(ask())


def test_the_program_prints_a_line_per_image(url: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(photo), "--url", url]) == 0
    assert capsys.readouterr().out.startswith(f"{photo}: ")
    assert main([str(photo), "nothing.jpg", "--url", url]) == 1
    assert "nothing.jpg" in capsys.readouterr().err


def test_the_program_goes_on_after_a_file_that_cannot_be_read(
    url: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photo, tmp_path / "a.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    shutil.copy(photo, tmp_path / "b.jpg")
    names = ["missing.jpg", "a.jpg", "text.jpg", ".", "b.jpg", "gone.jpg"]
    assert main([str(tmp_path / name) for name in names] + ["--url", url]) == 1
    captured = capsys.readouterr()
    assert [line.split(": ")[0] for line in captured.out.splitlines()] == [
        str(tmp_path / n) for n in ("a.jpg", "b.jpg")
    ]
    errors = captured.err.splitlines()
    assert f"{tmp_path / 'missing.jpg'}: error: No such file or directory" in errors
    assert {line.split(": error: ")[0] for line in errors} == {
        str(tmp_path / name) for name in ("missing.jpg", "text.jpg", ".", "gone.jpg")
    }


README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL))
def test_the_snippets_of_the_readme_run(
    code: str,
    url: str,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        shutil.copy(photo, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    # Most snippets rely on the default address, which is not that of this server.
    exec(code.replace("http://localhost:8080", url).replace("Client()", f"Client({url!r})"), {})
    assert capsys.readouterr().out.strip()
