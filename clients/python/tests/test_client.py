"""Retries, deadlines, errors, parsing and geometry, against answers made here."""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from ghostserve import (
    ApiError,
    AsyncClient,
    Client,
    ConnectionFailedError,
    DeadlineExceededError,
    Geometry,
    ImageError,
    InvalidResponseError,
    OverloadedError,
    RequestTimeoutError,
    Result,
    Retry,
    ServerError,
    UnavailableError,
)
from ghostserve.__main__ import main
from ghostserve._calls import server_timing
from ghostserve._tensors import parse_safetensors

Handler = Callable[[httpx.Request], httpx.Response]
QUICK = Retry(attempts=2, backoff=0.001, jitter=0)


def good(label: str = "cat") -> httpx.Response:
    prediction = {"class": 3, "label": label, "probability": 0.9, "wnid": "n02123045"}
    image = {"format": "jpeg", "width": 4, "height": 3}
    body = {"model": {"id": "m", "digest": "sha256:0"}, "results": [{"predictions": [prediction], "image": image}]}
    return httpx.Response(200, json=body, headers={"x-request-id": "r", "server-timing": "read;dur=0.5, infer;dur=2"})


def problem(status: int, code: str, headers: dict[str, str] | None = None) -> httpx.Response:
    body = {"status": status, "code": code, "detail": "because", "request_id": "r"}
    content_type = {"content-type": "application/problem+json"}
    return httpx.Response(status, content=json.dumps(body), headers=content_type | (headers or {}))


class Server:
    """Answers with each of these in turn, then with a success; remembers what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = iter(answers)
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(time.monotonic())
        answer = next(self.answers, None) or good()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options: Any) -> Client:
        options = {"retries": QUICK, **options}
        return Client("http://server", transport=httpx.MockTransport(self), **options)


def test_a_refused_request_is_sent_again_when_the_server_says() -> None:
    server = Server(problem(429, "overloaded", {"retry-after": "1"}))
    answer = server.client(retries=Retry(attempts=1, jitter=0)).classify(b"image")
    assert answer.result.top.wnid == "n02123045"
    assert answer.timings == {"read": 0.5, "infer": 2.0}
    first, second = server.times
    assert 1 <= second - first < 1.5
    assert [request.content for request in server.requests] == [b"image", b"image"]


@pytest.mark.parametrize("answer", [problem(503, "draining"), httpx.ConnectError("refused"), httpx.ReadError("reset")])
def test_other_passing_failures_are_repeated(answer: httpx.Response | Exception) -> None:
    server = Server(answer, answer)
    assert server.client().classify(b"image").result.top.label == "cat"
    assert len(server.requests) == 3


def test_the_attempts_are_limited() -> None:
    server = Server(*[problem(429, "overloaded", {"retry-after": "0"})] * 5)
    with pytest.raises(OverloadedError) as caught:
        server.client().classify(b"image")
    assert len(server.requests) == 3
    assert (caught.value.retry_after, caught.value.detail, caught.value.request_id) == (0, "because", "r")


def test_retries_can_be_off() -> None:
    server = Server(problem(503, "not_ready"))
    with pytest.raises(UnavailableError):
        server.client(retries=0).classify(b"image")
    assert len(server.requests) == 1


def test_a_wait_that_is_too_long_raises_at_once() -> None:
    for options in ({"deadline": 0.5}, {"retries": Retry(max_wait=0.5)}):
        server = Server(problem(429, "overloaded", {"retry-after": "1"}))
        start = time.monotonic()
        with pytest.raises(OverloadedError):
            server.client(**options).classify(b"image")
        assert len(server.requests) == 1
        assert time.monotonic() - start < 0.4


def test_a_wait_is_never_shorter_than_asked() -> None:
    from ghostserve._retry import pause

    error = OverloadedError(429, "overloaded", "", retry_after=2.0)
    waits = [pause(error, 0, Retry(jitter=0.5)) for _ in range(200)]
    assert all(wait is not None and 2 <= wait <= 3 for wait in waits)
    assert len(set(waits)) > 100


def test_the_rest_of_the_deadline_is_sent_with_each_attempt() -> None:
    server = Server(problem(503, "draining"))
    server.client(deadline=5, retries=Retry(backoff=0.2, jitter=0)).classify(b"image", priority=5, request_id="mine")
    first, second = (int(request.headers["x-request-timeout-ms"]) for request in server.requests)
    assert 4900 < first <= 5000
    assert first - 300 < second <= first - 200
    assert {request.headers["priority"] for request in server.requests} == {"u=5"}
    assert {request.headers["x-request-id"] for request in server.requests} == {"mine"}


@pytest.mark.parametrize("answer", [problem(500, "internal"), problem(504, "deadline_exceeded"), problem(413, "x")])
def test_final_errors_are_not_repeated(answer: httpx.Response) -> None:
    server = Server(answer)
    with pytest.raises(ApiError):
        server.client().classify(b"image")
    assert len(server.requests) == 1


def test_errors_of_others_are_errors_too() -> None:
    with pytest.raises(ServerError) as caught:
        Server(httpx.Response(500, text="<html>")).client().classify(b"image")
    assert caught.value.code == "http_error"
    with pytest.raises(DeadlineExceededError):
        Server(httpx.Response(504, text="<html>")).client().classify(b"image")
    for answer in (httpx.Response(200, text="<html>"), httpx.Response(200, json=[]), httpx.Response(200, json={})):
        with pytest.raises(InvalidResponseError, match="base_url"):
            Server(answer).client().classify(b"image")
    with pytest.raises(RequestTimeoutError):
        Server(httpx.ReadTimeout("")).client().classify(b"image")
    refused = [httpx.ConnectError("refused")] * 9
    with pytest.raises(ConnectionFailedError, match="http://server"):
        Server(*refused).client().classify(b"image")
    assert not Server(*refused).client().ready()
    assert not Server(problem(503, "draining")).client().ready()


def test_wrong_arguments_are_refused_before_anything_is_sent() -> None:
    server = Server()
    client = server.client()
    for call in (
        lambda: client.classify([]),
        lambda: client.classify(b"image", deadline=0),
        lambda: client.classify(b"image", priority=8),
        lambda: client.classify_many([], concurrency=0),
        lambda: client.classify(b"image", request_id="caf\u00e9"),
        lambda: client.classify(b"image", request_id="a\nb"),
        lambda: client.classify(b"image", request_id="a b"),
        lambda: client.classify(b"image", request_id=""),
        lambda: client.classify(b"image", request_id="a" * 129),
        lambda: Client(retries=-1),
    ):
        with pytest.raises(ValueError, match=r"found|no images"):
            call()
    client.classify(b"image", request_id="a~!" * 40)
    server.requests.clear()
    for wrong in (3, "text file", [None]):
        if wrong == "text file":
            with pytest.raises(OSError, match="text file"):
                client.classify(wrong)
        else:
            with pytest.raises(TypeError, match="bytes"):
                client.classify(wrong)  # type: ignore[arg-type]
    assert server.requests == []


def labels(results: Iterator[Result | ImageError]) -> list[str]:
    return [result.code if isinstance(result, ImageError) else result.top.label for result in results]


def overloaded_often() -> Handler:
    """Refuses every third request; labels an image with its bytes."""
    numbers = itertools.count(1)

    def answer(request: httpx.Request) -> httpx.Response:
        if next(numbers) % 3 == 0:
            return problem(429, "overloaded", {"retry-after": "0"})
        if request.content == b"5":
            return problem(422, "undecodable_image")
        return good(request.content.decode())

    return answer


EXPECTED = [str(number) if number != 5 else "undecodable_image" for number in range(40)]


def test_many_images_back_off_and_keep_their_order() -> None:
    with Client("http://server", transport=httpx.MockTransport(overloaded_often()), retries=QUICK) as client:
        assert labels(client.classify_many((str(n).encode() for n in range(40)), concurrency=4)) == EXPECTED


def test_many_images_back_off_and_keep_their_order_in_asyncio() -> None:
    async def ask() -> list[Result | ImageError]:
        transport = httpx.MockTransport(overloaded_often())
        async with AsyncClient("http://server", transport=transport, retries=QUICK) as client:
            images = (str(n).encode() for n in range(40))
            return [result async for result in client.classify_many(images, concurrency=4)]

    assert labels(iter(asyncio.run(ask()))) == EXPECTED


def test_a_refused_image_waits_as_long_as_asked() -> None:
    server = Server(problem(429, "overloaded", {"retry-after": "1"}))
    client = server.client(retries=Retry(jitter=0))
    assert labels(client.classify_many([b"a"] * 12, concurrency=1)) == ["cat"] * 12
    assert server.times[1] - server.times[0] >= 1


def test_a_server_that_takes_few_images_at_once_is_not_sent_many() -> None:
    lock, active, refused = threading.Lock(), 0, 0

    def three_at_once(request: httpx.Request) -> httpx.Response:
        nonlocal active, refused
        with lock:
            if active == 3:
                refused += 1
                return problem(429, "overloaded", {"retry-after": "0"})
            active += 1
        time.sleep(0.002)
        with lock:
            active -= 1
        return good(request.content.decode())

    client = Client("http://server", transport=httpx.MockTransport(three_at_once))
    names = [str(number) for number in range(400)]
    assert labels(client.classify_many([name.encode() for name in names], concurrency=32)) == names
    assert 0 < refused < 60


def test_patience_ends() -> None:
    with pytest.raises(OverloadedError):
        list(Server(*[problem(429, "overloaded")] * 1000).client().classify_many([b"a"], patience=0.05))
    server = Server(*[problem(404, "unknown_model")] * 9)
    with pytest.raises(ApiError, match="unknown_model"):
        list(server.client().classify_many([b"a"] * 5))


def test_the_asynchronous_client_repeats_and_stops_alike() -> None:
    async def ask(server: Server, **options: Any) -> str:
        transport = httpx.MockTransport(server)
        async with AsyncClient("http://server", transport=transport, **options) as client:
            return (await client.classify(b"image")).result.top.label

    server = Server(problem(429, "overloaded"), httpx.ConnectError(""))
    assert asyncio.run(ask(server, retries=QUICK)) == "cat"
    assert len(server.requests) == 3
    with pytest.raises(OverloadedError):
        asyncio.run(ask(Server(problem(429, "overloaded")), retries=0))


def test_server_timing_of_proxies_does_no_harm() -> None:
    header = "cdn-cache; desc=HIT, edge; dur=1, infer;dur=2.5;desc=x, odd;dur=x, "
    assert server_timing(httpx.Response(200, headers={"server-timing": header})) == {"edge": 1.0, "infer": 2.5}
    assert server_timing(httpx.Response(200)) == {}


def file(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_tensors_share_the_answers_bytes() -> None:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    metadata, tensors = parse_safetensors(file({"__metadata__": {"a": "b"}, "x": entry}, bytes(range(16))))
    assert metadata == {"a": "b"}
    tensor = tensors["x"]
    assert (tensor.dtype, tensor.shape, len(tensor)) == ("float32", (2, 2), 2)
    assert bytes(tensor[1].data) == bytes(range(8, 16))
    assert bytes(tensor[-1].data) == bytes(range(8, 16))
    assert tensor.data.readonly
    with pytest.raises(IndexError):
        _ = tensor[2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 16,
        file({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(8)),
        file({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)),
        file({"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
    ],
)
def test_damaged_tensors_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_safetensors(content)


def test_boxes_are_converted_for_each_direction() -> None:
    geometry = Geometry("stretch", 64, 64, (2.0, 4.0), (1.0, -3.0), (0, 0, 30, 20), (0, 0, 0, 0))
    assert geometry.to_input((1, 2, 3, 4)) == (3, 5, 7, 13)
    assert geometry.to_input((1, 2, 3, 4), 8) == (3 / 8, 5 / 8, 7 / 8, 13 / 8)
    assert geometry.to_photo((3, 5, 7, 13)) == (1, 2, 3, 4)
    assert geometry.to_photo((0.375, 0.625, 0.875, 1.625), 8) == (1, 2, 3, 4)


WRONG_ADDRESSES = [
    "http://localhost:80a0",
    "localhost:8080",
    "",
    "http://",
    "ftp://localhost",
    "http://local host",
    "http://localhost:99999",
    "http://localhost/?a=b",
    "http://local\nhost",
]


@pytest.mark.parametrize("address", WRONG_ADDRESSES)
def test_a_wrong_address_is_refused_by_the_constructor(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=r"^base_url must be like http://localhost:8080, found '"):
            kind(address)
        if address:
            with pytest.raises(ValueError, match=r"^admin_url must be like"):
                kind(admin_url=address)
    assert main(["a.jpg", "--url", address]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: base_url must be like http://localhost:8080, found {address!r}"
    ]


@pytest.mark.parametrize("address", ["http://localhost", "https://[::1]:8443/", "http://user:word@host:1/path/"])
def test_other_addresses_are_taken(address: str) -> None:
    paths = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(str(request.url.copy_with(userinfo=b"")))
        return good()

    Client(address, transport=httpx.MockTransport(answer)).classify(b"image")
    assert paths == [str(httpx.URL(address.rstrip("/") + "/v1/classify").copy_with(userinfo=b""))]


@contextmanager
def slow_server(seconds: float) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """A server on the network that takes its time. Yields its address, and the deadline and time of each request."""
    seen: list[tuple[int, float]] = []

    class Slow(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            seen.append((int(self.headers.get("x-request-timeout-ms", 0)), time.monotonic()))
            self.rfile.read(int(self.headers["content-length"]))
            time.sleep(seconds)
            body = good().content
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *arguments: object) -> None:
            """The client left."""

    with Quiet(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


def test_the_deadline_covers_the_wait_for_a_connection() -> None:
    with slow_server(1.0) as (address, seen), Client(address, max_connections=1, retries=0) as client:
        first = threading.Thread(target=client.classify, args=(b"image",))
        first.start()
        while not seen:
            time.sleep(0.001)
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="no connection was free before the deadline") as caught:
            client.classify(b"image", deadline=0.2)
        assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
        assert 0.2 <= time.monotonic() - start < 0.8
        # One that gets a connection in time sends what the wait has left of its deadline.
        start = time.monotonic()
        client.classify(b"image", deadline=9)
        first.join()
    assert len(seen) == 2
    assert seen[1][0] == pytest.approx(9000 - (seen[1][1] - start) * 1000, abs=150)


def test_the_deadline_covers_the_wait_for_a_connection_in_asyncio() -> None:
    async def ask(address: str, seen: list[tuple[int, float]]) -> float:
        async with AsyncClient(address, max_connections=1, retries=0) as client:
            first = asyncio.create_task(client.classify(b"image"))
            while not seen:
                await asyncio.sleep(0.001)
            start = time.monotonic()
            with pytest.raises(DeadlineExceededError, match="no connection was free before the deadline"):
                await client.classify(b"image", deadline=0.2)
            assert 0.2 <= time.monotonic() - start < 0.8
            start = time.monotonic()
            await client.classify(b"image", deadline=9)
            await first
            return start

    with slow_server(1.0) as (address, seen):
        start = asyncio.run(ask(address, seen))
    assert len(seen) == 2
    assert seen[1][0] == pytest.approx(9000 - (seen[1][1] - start) * 1000, abs=150)


def test_leaving_many_images_early_waits_for_no_open_request() -> None:
    with slow_server(1.0) as (address, seen), Client(address) as client:
        results = client.classify_many(itertools.repeat(b"image"), concurrency=2)
        assert isinstance(next(results), Result)
        sent = len(seen)
        while len(seen) == sent:
            time.sleep(0.001)
        start = time.monotonic()
        results.close()
        assert time.monotonic() - start < 0.6
        sent = len(seen)
        # The requests that were open end, and none follow.
        while any(thread.name.startswith("ghostserve") for thread in threading.enumerate()):
            assert time.monotonic() - start < 20
            time.sleep(0.01)
        assert len(seen) <= sent + 2


REFUSED = [problem(429, "overloaded", {"retry-after": "0"})] * 5


def test_refusals_leave_the_attempts_for_failed_connections() -> None:
    lost = httpx.ConnectError("lost")
    server = Server(*REFUSED, lost, lost)
    assert labels(server.client().classify_many([b"image"])) == ["cat"]
    assert len(server.requests) == 8
    with pytest.raises(ConnectionFailedError):
        labels(Server(lost, *REFUSED, lost, lost).client().classify_many([b"image"]))


def test_health_is_false_if_a_proxy_gives_up() -> None:
    assert not Server(httpx.Response(504, text="<html>")).client().ready()
    assert not Server(httpx.Response(504, text="<html>")).client().live()

    async def ask() -> list[bool]:
        transport = httpx.MockTransport(lambda request: httpx.Response(504, text="<html>"))
        async with AsyncClient("http://server", transport=transport) as client:
            return [await client.ready(), await client.live()]

    assert asyncio.run(ask()) == [False, False]


def about(request: httpx.Request) -> httpx.Response:
    summary = {"id": "m", "architecture": "a", "digest": "d", "classes": 1, "default": True}
    details = {**summary, "labels": [{"label": "cat"}], "input": {"size": [1, 2]}}
    return httpx.Response(200, json={"models": [summary], **details})


def test_deadline_and_priority_of_the_client_are_those_of_every_request() -> None:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return about(request)

    async def ask() -> None:
        transport = httpx.MockTransport(answer)
        async with AsyncClient("http://server", transport=transport, deadline=2, priority=6) as client:
            await client.models()
            await client.model()
            await client.metrics()
            await client.ready()

    with Client("http://server", transport=httpx.MockTransport(answer), deadline=2, priority=6) as client:
        client.models()
        client.model()
        client.metrics()
        client.ready()
    asyncio.run(ask())
    assert len(requests) == 10
    assert all(1000 < int(request.headers["x-request-timeout-ms"]) <= 2000 for request in requests)
    assert {request.headers["priority"] for request in requests} == {"u=6"}


def test_a_file_that_cannot_be_read_ends_many_images_in_its_turn(tmp_path: Path) -> None:
    results = Server().client().classify_many([b"a", tmp_path / "missing.jpg", b"b"])
    assert isinstance(next(results), Result)
    with pytest.raises(FileNotFoundError):
        next(results)
    assert list(results) == []
    for kind in (Client, AsyncClient):
        assert "`OSError`" in (kind.classify_many.__doc__ or "")


PACKAGE = Path(__file__).resolve().parents[1]


def test_the_licence_is_part_of_the_package() -> None:
    project = (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")
    assert 'license-files = ["LICENSE"]' in project
    assert '"LICENSE"]' in project.split("[tool.hatch.build.targets.sdist]")[1].splitlines()[1]
    assert "Apache License" in (PACKAGE / "LICENSE").read_text(encoding="utf-8")
    original = PACKAGE.parents[1] / "LICENSE"
    if original.exists():
        assert (PACKAGE / "LICENSE").read_bytes() == original.read_bytes()


def test_nothing_tells_to_install_from_where_the_package_is_not() -> None:
    for path in [PACKAGE / "README.md", *(PACKAGE / "src").rglob("*.py")]:
        assert "install 'ghostserve" not in path.read_text(encoding="utf-8"), path
