"""The client for asyncio code."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from . import _calls, _many
from ._calls import Call, Options
from ._errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    GhostServeError,
    InvalidResponseError,
    RequestTimeoutError,
    UnavailableError,
)
from ._images import Image, Images
from ._retry import Attempts, Retry, retry_policy
from ._types import (
    Attention,
    Classification,
    Cut,
    DType,
    Features,
    Fit,
    ImageError,
    Level,
    ModelDetails,
    ModelSummary,
    Result,
)

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

#: A side, width and height, or the text of the parameter `size`.
Size = int | tuple[int, int] | str


class AsyncClient:
    """A client of a GhostServe server, for asyncio.

    It has a pool of connections: make one and share it between tasks. Every method may raise `GhostServeError`.

        async with AsyncClient() as client:
            print((await client.classify("photo.jpg")).result.top)
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8080",
        *,
        timeout: float | None = 30.0,
        deadline: float | None = None,
        priority: int | None = None,
        retries: Retry | int = 2,
        max_connections: int = 100,
        headers: Mapping[str, str] | None = None,
        verify: ssl.SSLContext | bool = True,
        admin_url: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Makes a client; nothing is sent yet.

        - `timeout`: seconds to connect, and between two parts of an answer. `None`: no limit.
        - `deadline`: seconds until an answer must be there, over all attempts and the wait for a connection. The
          server drops work that would be later. `None`: the server's own limit.
        - `priority`: 0 to 7; from 4 requests are background work, which gets the cores that others leave free.
        - `retries`: how often a refused request (429, 503) is repeated after the time that the server names, and one
          whose connection failed. 0: never. A `Retry` sets more.
        - `max_connections`: limits the pool; further requests wait for a connection until their deadline.
        - `headers`: sent with every request, for a proxy that asks for authentication.
        - `verify`: False, or an `ssl.SSLContext` with your certificates, for a proxy with TLS.
        - `admin_url`: of the server's private port, if it has one: health and metrics are there.
        - `transport`: replaces the network, in tests.

        Raises `ValueError` for an argument that no request could be sent with.
        """
        # Checks the defaults here, and not at the first request.
        Options(deadline=deadline, priority=priority)
        self._base_url = _calls.server_address("base_url", base_url)
        self._admin_url = _calls.server_address("admin_url", admin_url) if admin_url else self._base_url
        self._timeout = timeout
        self._deadline = deadline
        self._priority = priority
        self._retry = retry_policy(retries)
        self._http = httpx.AsyncClient(
            headers={"user-agent": "ghostserve-python", **(headers or {})},
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            verify=verify,
            transport=transport,
        )

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connections."""
        await self.aclose()

    async def classify(
        self,
        images: Images,
        *,
        top_k: int | None = None,
        min_confidence: float | None = None,
        model: str | None = None,
        deadline: float | None = None,
        priority: int | None = None,
        request_id: str | None = None,
    ) -> Classification:
        """Classifies one image or several: paths, bytes, or files opened with 'rb'.

        Each image has a `Result` or an `ImageError`, in order. If all images are invalid, `ImageRejectedError` is
        raised. `top_k` is the number of predictions (default: 5), `min_confidence` their lowest probability.
        """
        options = self._options(deadline, priority, request_id)
        parameters = {"top_k": top_k, "min_confidence": min_confidence, "model": model}
        call = await asyncio.to_thread(_calls.classify, images, parameters, options)
        return await self._send(call, self._retry)

    def classify_many(
        self,
        images: Iterable[Image] | AsyncIterable[Image],
        *,
        concurrency: int = 8,
        top_k: int | None = None,
        min_confidence: float | None = None,
        model: str | None = None,
        deadline: float | None = None,
        priority: int | None = None,
        patience: float = 300.0,
    ) -> AsyncGenerator[Result | ImageError, None]:
        """Classifies any number of images, one per request, and yields their results in order.

        At most `concurrency` requests are open, and at most twice as many images are in memory. A refused image is sent
        again after the time that the server names, and fewer are sent at once from then on; one that is refused for
        longer than `patience` seconds raises the server's error. An invalid image is an `ImageError` and stops nothing.
        A file that cannot be read raises its `OSError` when its result is due, and ends the iteration: to go on after
        it, read the files yourself and pass bytes. `priority=5` leaves the server to its other users first.
        """
        _many.check(concurrency, patience)
        options = self._options(deadline, priority, None)
        parameters = {"top_k": top_k, "min_confidence": min_confidence, "model": model}
        return self._classify_many(images, concurrency, parameters, options, patience)

    async def features(
        self,
        images: Images,
        *,
        levels: str | Iterable[Level] = ("c3", "c4", "c5"),
        size: Size | None = None,
        fit: Fit | None = None,
        cut: Cut | None = None,
        dtype: DType | None = None,
        normalize: bool | None = None,
        top_k: int | None = None,
        min_confidence: float | None = None,
        model: str | None = None,
        deadline: float | None = None,
        priority: int | None = None,
        request_id: str | None = None,
    ) -> Features:
        """Returns feature maps (`c1` to `c5`) and the `embedding` of one image or several.

        `size` is the network's input: a side, or (width, height), in multiples of 32. `fit` is `crop`, `letterbox` or
        `stretch`; `cut` is `deepest` or `timm`. `normalize` scales embeddings to length 1. `top_k` or
        `min_confidence` add predictions from the same run.
        """
        options = self._options(deadline, priority, request_id)
        parameters = {
            "cut": cut,
            "fit": fit,
            "dtype": dtype,
            "normalize": normalize,
            "top_k": top_k,
            "min_confidence": min_confidence,
            "model": model,
        }
        call = await asyncio.to_thread(_calls.features, images, levels, size, parameters, options)
        return await self._send(call, self._retry)

    async def feature_image(
        self,
        image: Image,
        level: Level,
        *,
        size: Size | None = None,
        fit: Fit | None = None,
        cut: Cut | None = None,
        model: str | None = None,
        deadline: float | None = None,
        priority: int | None = None,
        request_id: str | None = None,
    ) -> bytes:
        """Returns a PNG that shows every channel of a level as a tile."""
        options = self._options(deadline, priority, request_id)
        call = await asyncio.to_thread(_calls.feature_image, image, level, size, cut, fit, model, options)
        return await self._send(call, self._retry)

    async def attention(
        self,
        image: Image,
        *,
        layer: str | None = None,
        size: Size | None = None,
        fit: Fit | None = None,
        dtype: DType | None = None,
        model: str | None = None,
        deadline: float | None = None,
        priority: int | None = None,
        request_id: str | None = None,
    ) -> Attention:
        """Returns the gate of a bottleneck's DFC attention. `layer` is a bottleneck, such as `6.4`."""
        options = self._options(deadline, priority, request_id)
        call = await asyncio.to_thread(_calls.attention, image, layer, size, fit, dtype, model, options)
        return await self._send(call, self._retry)

    async def attention_image(
        self,
        image: Image,
        *,
        layer: str | None = None,
        size: Size | None = None,
        fit: Fit | None = None,
        model: str | None = None,
        deadline: float | None = None,
        priority: int | None = None,
        request_id: str | None = None,
    ) -> bytes:
        """Returns a PNG that shows the gate over the photograph."""
        options = self._options(deadline, priority, request_id)
        call = await asyncio.to_thread(_calls.attention_image, image, layer, size, fit, model, options)
        return await self._send(call, self._retry)

    async def models(self) -> tuple[ModelSummary, ...]:
        """Returns the models that the server serves."""
        return await self._send(_calls.models(self._options()), self._retry)

    async def model(self, name: str | None = None) -> ModelDetails:
        """Returns all about a model; without a name, about the default model."""
        if name is None:
            name = next((model.id for model in await self.models() if model.default), None)
            if name is None:
                raise InvalidResponseError("the server has no default model; name one")
        return await self._send(_calls.model(name, self._options()), self._retry)

    async def live(self) -> bool:
        """Returns whether a server answers in time that it is alive."""
        return await self._health("/livez")

    async def ready(self) -> bool:
        """Returns whether the server should receive requests.

        False if it starts or stops, cannot be reached, or does not answer in time.
        """
        return await self._health("/readyz")

    async def metrics(self) -> str:
        """Returns the metrics in Prometheus' text format."""
        return await self._send(_calls.metrics(self._options()), self._retry)

    def _options(
        self, deadline: float | None = None, priority: int | None = None, request_id: str | None = None
    ) -> Options:
        return Options(
            self._deadline if deadline is None else deadline,
            self._priority if priority is None else priority,
            request_id,
        )

    async def _health(self, path: str) -> bool:
        try:
            await self._send(_calls.health(path, self._options()), Retry(attempts=0))
        except (UnavailableError, ConnectionFailedError, RequestTimeoutError, DeadlineExceededError):
            return False
        return True

    async def _send(self, call: Call[T], retry: Retry) -> T:
        """Sends a request until it has an answer or a final error."""
        attempts = Attempts(retry, call.options.deadline)
        while True:
            try:
                return await self._attempt(call, attempts)
            except GhostServeError as error:
                wait = attempts.wait_after(error)
                if wait is None:
                    raise
            await asyncio.sleep(wait)

    async def _attempt(self, call: Call[T], attempts: Attempts) -> T:
        """Sends a request once."""
        remaining = attempts.time_to_send()

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            if event == _calls.SENDING:
                _calls.renew(info["request"], self._timeout, attempts.time_to_send())

        try:
            response = await self._http.request(
                call.method,
                (self._admin_url if call.admin else self._base_url) + call.path,
                params=call.params or None,
                headers={**call.headers, **call.options.headers(remaining)},
                timeout=_calls.time_limits(self._timeout, remaining),
                # The wait for a connection uses time up: what is left is known when the request is sent.
                extensions=None if remaining is None else {"trace": trace},
                **call.body(),
            )
        except httpx.PoolTimeout as error:
            detail = "no connection was free before the deadline"
            raise DeadlineExceededError(504, "deadline_exceeded", detail) from error
        except httpx.TimeoutException as error:
            raise RequestTimeoutError(f"no answer from {self._base_url} in time ({type(error).__name__})") from error
        except httpx.TransportError as error:
            raise ConnectionFailedError(f"cannot reach {self._base_url}: {error}") from error
        except httpx.RequestError as error:
            raise InvalidResponseError(f"the answer of {self._base_url} is damaged: {error}") from error
        return call.read(response)

    async def _classify_many(
        self,
        images: Iterable[Image] | AsyncIterable[Image],
        concurrency: int,
        parameters: Mapping[str, Any],
        options: Options,
        patience: float,
    ) -> AsyncGenerator[Result | ImageError, None]:
        limiter, places = _many.Limiter(concurrency), asyncio.Condition()

        async def classify(image: Image) -> Result | ImageError:
            async with places:
                await places.wait_for(limiter.try_acquire)
            try:
                return await attempt(await asyncio.to_thread(_calls.classify, [image], parameters, options))
            finally:
                limiter.release()
                async with places:
                    places.notify_all()

        async def attempt(call: Call[Classification]) -> Result | ImageError:
            attempts = _many.ImageAttempts(self._retry, patience)
            while True:
                sent = time.monotonic()
                try:
                    result = (await self._send(call, Retry(attempts=0))).results[0]
                except GhostServeError as error:
                    handled = attempts.handle(error)
                    if isinstance(handled, ImageError):
                        return handled
                    limiter.refused(sent)
                    await asyncio.sleep(handled)
                else:
                    limiter.answered()
                    return result

        waiting: deque[asyncio.Task[Result | ImageError]] = deque()
        try:
            async for image in _each(images):
                waiting.append(asyncio.create_task(classify(image)))
                if len(waiting) >= 2 * concurrency:
                    yield await waiting[0]
                    waiting.popleft()
            while waiting:
                yield await waiting[0]
                waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def _each(images: Iterable[Image] | AsyncIterable[Image]) -> AsyncGenerator[Image, None]:
    """The images of either kind of iterable."""
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
