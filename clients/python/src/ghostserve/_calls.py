"""The requests of the API, and how their answers are read. Nothing here sends anything.

`Client` and `AsyncClient` share it: each of their methods builds a `Call` and sends it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from ._errors import InvalidResponseError, api_error
from ._images import Images, load_all
from ._tensors import Tensor, parse_safetensors
from ._types import (
    Attention,
    Classification,
    Cut,
    DType,
    FeatureResult,
    Features,
    Fit,
    Geometry,
    ImageError,
    ImageInfo,
    Level,
    ModelDetails,
    ModelReference,
    ModelSummary,
    Prediction,
    Result,
)

T = TypeVar("T")

SAFETENSORS = "application/vnd.safetensors"
PNG = "image/png"

#: httpcore's name of the moment at which a request has a connection and is about to be sent.
SENDING = "http11.send_request_headers.started"
_DEADLINE = "x-request-timeout-ms"


def server_address(name: str, url: str) -> str:
    """The URL of a server, to which paths can be appended. Raises `ValueError` with the argument's name if not."""
    try:
        parsed = httpx.URL(url)
        valid = parsed.scheme in ("http", "https") and parsed.host and not (parsed.query or parsed.fragment)
        # httpx would escape a space in a host, and fail to find it.
        valid = valid and "%" not in parsed.host and (parsed.port or 0) <= 65535
    except httpx.InvalidURL:
        valid = False
    if not valid:
        raise ValueError(f"{name} must be like http://localhost:8080, found {url!r}")
    return url.rstrip("/")


def time_limits(timeout: float | None, remaining: float | None) -> httpx.Timeout:
    """The limits of an attempt that has so many seconds left.

    Other requests of this program hold the connections of the pool, so only the deadline limits the wait for one. An
    answer has a second more: the server's own one about the deadline shall arrive.
    """
    limits = [seconds for seconds in (timeout, None if remaining is None else remaining + 1) if seconds is not None]
    return httpx.Timeout(min(limits, default=None), pool=remaining)


def renew(request: Any, timeout: float | None, remaining: float | None) -> None:
    """Sets what is left of the deadline in a request of httpcore that is about to be sent."""
    if remaining is not None:
        request.extensions["timeout"].update(time_limits(timeout, remaining).as_dict())
        value = milliseconds(remaining).encode()
        request.headers[:] = [(k, value if k.lower() == _DEADLINE.encode() else v) for k, v in request.headers]


def milliseconds(remaining: float) -> str:
    """The text of seconds in the deadline's header."""
    return str(max(1, math.ceil(remaining * 1000)))


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asks for beside its answer. `None` leaves a choice to the client or the server."""

    #: Seconds until the answer must be there. The server drops the work that would be later.
    deadline: float | None = None
    #: RFC 9218's urgency, 0 to 7. From 4 the request is background work.
    priority: int | None = None
    #: The request's id in answers and logs.
    request_id: str | None = None

    def __post_init__(self) -> None:
        """Checks what the server would refuse or ignore."""
        if self.deadline is not None and not 0 < self.deadline < math.inf:
            raise ValueError(f"deadline must be a number of seconds above 0, found {self.deadline}")
        if self.priority is not None and not 0 <= self.priority <= 7:
            raise ValueError(f"priority must be between 0 and 7, found {self.priority}")
        # The server would replace another one.
        if self.request_id is not None and not re.fullmatch(r"[!-~]{1,128}", self.request_id):
            raise ValueError(
                f"request_id must be 1 to 128 characters of printable ASCII without spaces, found {self.request_id!r}"
            )

    def headers(self, remaining: float | None) -> dict[str, str]:
        """The headers of an attempt that has so many seconds left."""
        headers = {}
        if remaining is not None:
            headers[_DEADLINE] = milliseconds(remaining)
        if self.priority is not None:
            headers["priority"] = f"u={self.priority}"
        if self.request_id is not None:
            headers["x-request-id"] = self.request_id
        return headers


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and the function that reads its answer."""

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    params: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    images: list[bytes] = field(default_factory=list)
    options: Options = field(default_factory=Options)
    #: Whether the path is one of the private port, if there is one: health and metrics.
    admin: bool = False

    def body(self) -> dict[str, Any]:
        """The body's arguments for httpx: one image as it is, several as a form."""
        if not self.images:
            return {}
        if len(self.images) == 1:
            return {"content": self.images[0]}
        kind = "application/octet-stream"
        return {"files": [("image", (f"{i}", image, kind)) for i, image in enumerate(self.images)]}

    def read(self, response: httpx.Response) -> T:
        """The answer.

        Raises `ApiError` for an error, and `InvalidResponseError` if the answer is not GhostServe's.
        """
        if not response.is_success:
            raise api_error(response)
        try:
            return self.parse(response)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            kind = response.headers.get("content-type", "no content type")
            raise InvalidResponseError(
                f"{response.request.url} answered with {kind} that is not GhostServe's ({error!r}); check base_url"
            ) from error


def classify(images: Images, parameters: Mapping[str, Any], options: Options) -> Call[Classification]:
    """`POST /v1/classify`."""
    headers = {"accept": "application/json"}
    return Call("POST", "/v1/classify", _classification, _params(parameters), headers, load_all(images), options)


def features(
    images: Images,
    levels: str | Iterable[Level],
    size: int | tuple[int, int] | str | None,
    parameters: Mapping[str, Any],
    options: Options,
) -> Call[Features]:
    """`POST /v1/features`, as safetensors."""
    names = levels if isinstance(levels, str) else ",".join(levels)
    params = _params({"levels": names, "size": _size(size), **parameters})
    return Call("POST", "/v1/features", _features, params, {"accept": SAFETENSORS}, load_all(images), options)


def feature_image(
    image: Images, level: Level, size: int | tuple[int, int] | str | None, cut: Cut | None, fit: Fit | None,
    model: str | None, options: Options,
) -> Call[bytes]:  # fmt: skip
    """`POST /v1/features`, as an image."""
    params = _params({"levels": level, "size": _size(size), "cut": cut, "fit": fit, "model": model})
    return Call("POST", "/v1/features", _bytes, params, {"accept": PNG}, load_all(image), options)


def attention(
    image: Images, layer: str | None, size: int | tuple[int, int] | str | None, fit: Fit | None,
    dtype: DType | None, model: str | None, options: Options,
) -> Call[Attention]:  # fmt: skip
    """`POST /v1/attention`, as safetensors."""
    params = _params({"layer": layer, "size": _size(size), "fit": fit, "dtype": dtype, "model": model})
    return Call("POST", "/v1/attention", _attention, params, {"accept": SAFETENSORS}, load_all(image), options)


def attention_image(
    image: Images, layer: str | None, size: int | tuple[int, int] | str | None, fit: Fit | None,
    model: str | None, options: Options,
) -> Call[bytes]:  # fmt: skip
    """`POST /v1/attention`, as an image."""
    params = _params({"layer": layer, "size": _size(size), "fit": fit, "model": model})
    return Call("POST", "/v1/attention", _bytes, params, {"accept": PNG}, load_all(image), options)


def models(options: Options) -> Call[tuple[ModelSummary, ...]]:
    """`GET /v1/models`."""
    return Call("GET", "/v1/models", lambda r: tuple(_summary(model) for model in _json(r)["models"]), options=options)


def model(name: str, options: Options) -> Call[ModelDetails]:
    """`GET /v1/models/{id}`."""
    return Call("GET", f"/v1/models/{quote(name, safe='')}", _details, options=options)


def health(path: str, options: Options) -> Call[None]:
    """`GET /livez` or `/readyz`: an error says that it is not."""
    return Call("GET", path, lambda response: None, options=options, admin=True)


def metrics(options: Options) -> Call[str]:
    """`GET /metrics`."""
    return Call("GET", "/metrics", lambda response: response.text, options=options, admin=True)


def _params(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Query parameters: those that are set, as text."""
    text = {True: "true", False: "false"}
    return {
        name: text[value] if isinstance(value, bool) else str(value)
        for name, value in parameters.items()
        if value is not None
    }


def _size(size: int | tuple[int, int] | str | None) -> str | None:
    """The parameter `size` of a side, of width and height, or of the parameter's own text."""
    return f"{size[0]}x{size[1]}" if isinstance(size, tuple) else None if size is None else str(size)


def _json(response: httpx.Response) -> Any:
    return json.loads(response.content)


def _bytes(response: httpx.Response) -> bytes:
    if response.headers.get("content-type") != PNG:
        raise ValueError(f"expected {PNG}")
    return response.content


def server_timing(response: httpx.Response) -> dict[str, float]:
    """Milliseconds by stage, from `Server-Timing`. Entries without a time are left out, as are those of proxies."""
    timings = {}
    for entry in response.headers.get("server-timing", "").split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "dur":
                try:
                    timings[name] = float(value)
                except ValueError:
                    continue
    return timings


def _about(response: httpx.Response) -> tuple[dict[str, float], str]:
    return server_timing(response), response.headers.get("x-request-id", "")


def _prediction(entry: Mapping[str, Any]) -> Prediction:
    return Prediction(int(entry["class"]), str(entry["label"]), float(entry["probability"]), entry.get("wnid"))


def _predictions(entry: Mapping[str, Any]) -> tuple[Prediction, ...]:
    return tuple(_prediction(prediction) for prediction in entry.get("predictions", ()))


def _image(entry: Mapping[str, Any]) -> ImageInfo:
    return ImageInfo(str(entry["format"]), int(entry["width"]), int(entry["height"]))


def _image_error(entry: Mapping[str, Any]) -> ImageError:
    return ImageError(str(entry["code"]), str(entry["detail"]))


def _summary_members(entry: Mapping[str, Any]) -> tuple[str, str, str, int, bool, str | None]:
    number, default = int(entry["classes"]), bool(entry["default"])
    return str(entry["id"]), str(entry["architecture"]), str(entry["digest"]), number, default, entry.get("description")


def _summary(entry: Mapping[str, Any]) -> ModelSummary:
    return ModelSummary(*_summary_members(entry))


def _details(response: httpx.Response) -> ModelDetails:
    entry = _json(response)
    labels = tuple(str(label["label"]) for label in entry["labels"])
    height, width = entry["input"]["size"]
    return ModelDetails(*_summary_members(entry), labels, (int(height), int(width)), entry)


def _classification(response: httpx.Response) -> Classification:
    body = _json(response)
    results = tuple(
        _image_error(entry["error"]) if "error" in entry else Result(_predictions(entry), _image(entry["image"]))
        for entry in body["results"]
    )
    reference = ModelReference(str(body["model"]["id"]), str(body["model"]["digest"]))
    return Classification(reference, *_about(response), results)


def _geometry(entry: Mapping[str, Any]) -> Geometry:
    (sx, sy), (ox, oy) = entry["scale"], entry["offset"]
    left, top, right, bottom = entry["padding"]
    x0, y0, x1, y1 = entry["visible"]
    size = int(entry["width"]), int(entry["height"])
    return Geometry(str(entry["fit"]), *size, (sx, sy), (ox, oy), (x0, y0, x1, y1), (left, top, right, bottom))


@dataclass(frozen=True, slots=True)
class _Tensors:
    """A parsed safetensors answer."""

    model: ModelReference
    tensors: dict[str, Tensor]
    entries: list[dict[str, Any]]
    strides: dict[str, int]


def _tensors(response: httpx.Response) -> _Tensors:
    metadata, tensors = parse_safetensors(response.content)
    reference = ModelReference(metadata["model"], metadata["digest"])
    return _Tensors(reference, tensors, json.loads(metadata["results"]), json.loads(metadata["strides"]))


def _features(response: httpx.Response) -> Features:
    answer = _tensors(response)

    def result(entry: dict[str, Any]) -> FeatureResult | ImageError:
        if "error" in entry:
            return _image_error(entry["error"])
        maps = {name: tensor[entry["row"]] for name, tensor in answer.tensors.items()}
        image, geometry = _image(entry["image"]), _geometry(entry["geometry"])
        return FeatureResult(image, geometry, maps, answer.strides, _predictions(entry))

    results = tuple(result(entry) for entry in answer.entries)
    return Features(answer.model, *_about(response), results, answer.tensors, answer.strides)


def _attention(response: httpx.Response) -> Attention:
    answer = _tensors(response)
    (entry,) = answer.entries
    gate, stride = answer.tensors["attention"][0], int(answer.strides["attention"])
    image, geometry = _image(entry["image"]), _geometry(entry["geometry"])
    return Attention(answer.model, *_about(response), image, geometry, gate, stride)
