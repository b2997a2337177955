"""Exceptions. Every one that this package raises about a request is a `GhostServeError`."""

from __future__ import annotations

import json
from typing import Any

import httpx

#: Codes of errors that are about one image: another image may succeed.
IMAGE_CODES = frozenset(
    {
        "image_too_large",
        "invalid_base64",
        "no_image",
        "undecodable_image",
        "unsupported_image_format",
    }
)


class GhostServeError(Exception):
    """The base class of all errors of this package."""


class ConnectionFailedError(GhostServeError):
    """The server could not be reached, or closed the connection before it had answered."""


class RequestTimeoutError(GhostServeError):
    """The client's own `timeout` passed before the answer arrived."""


class InvalidResponseError(GhostServeError):
    """The answer is not one of GhostServe. Check `base_url`, and the proxies on the way."""


class ApiError(GhostServeError):
    """The server answered with an error (`application/problem+json`).

    Its subclasses say what to do about it; `code` names the reason.
    """

    #: HTTP status.
    status: int
    #: Stable name of the reason, such as `undecodable_image`. `http_error` if the answer is not GhostServe's.
    code: str
    #: Text for people: the error, and what to do.
    detail: str
    #: The request's id, which is also in the server's log.
    request_id: str | None
    #: Seconds after which the server asks to be tried again.
    retry_after: float | None

    def __init__(
        self, status: int, code: str, detail: str, request_id: str | None = None, retry_after: float | None = None
    ) -> None:
        """Creates the error from the members of a problem."""
        super().__init__(status, code, detail, request_id, retry_after)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        """The detail, then what identifies the error."""
        request = f", request {self.request_id}" if self.request_id else ""
        return f"{self.detail} ({self.status} {self.code}{request})"


class InvalidRequestError(ApiError):
    """The request is wrong: a parameter, a limit on bytes or images, an unknown path. Correct it."""


class UnknownModelError(InvalidRequestError):
    """The server does not serve this model. `Client.models()` lists those that it serves."""


class ImageRejectedError(InvalidRequestError):
    """The image is damaged, too large, or of a format that the server does not read."""


class OverloadedError(ApiError):
    """The server has more work than it can do in time. Try again after `retry_after` seconds."""


class UnavailableError(ApiError):
    """The server starts or stops, or a proxy found none. Try again, or try another server."""


class DeadlineExceededError(ApiError):
    """The request's deadline, or the server's, passed or cannot be met."""


class ServerError(ApiError):
    """A bug of the server. Its log has the cause under `request_id`."""


def _class_of(status: int, code: str) -> type[ApiError]:
    if code == "overloaded" or status == 429:
        return OverloadedError
    if code in IMAGE_CODES:
        return ImageRejectedError
    if code == "unknown_model":
        return UnknownModelError
    if code == "deadline_exceeded" or status == 504:
        return DeadlineExceededError
    if status in (502, 503):
        return UnavailableError
    return ServerError if status >= 500 else InvalidRequestError


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of `Retry-After`. `None` if it is absent, or a date: GhostServe sends seconds."""
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return seconds if 0 <= seconds < float("inf") else None


def api_error(response: httpx.Response) -> ApiError:
    """The error of an answer whose status is not a success. The body must have been read."""
    problem: dict[str, Any] = {}
    if "json" in response.headers.get("content-type", ""):
        try:
            body = json.loads(response.content)
            problem = body if isinstance(body, dict) else {}
        except ValueError:
            pass
    code = str(problem.get("code", "http_error"))
    detail = problem.get("detail") or f"the server answered {response.status_code} {response.reason_phrase}"
    request_id = problem.get("request_id") or response.headers.get("x-request-id")
    kind = _class_of(response.status_code, code)
    return kind(response.status_code, code, str(detail), request_id, _retry_after(response))
