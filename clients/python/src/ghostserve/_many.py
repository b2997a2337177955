"""What `classify_many` of both clients shares: when an image is sent again, and when nobody sends anything."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ._errors import (
    IMAGE_CODES,
    ApiError,
    ConnectionFailedError,
    DeadlineExceededError,
    GhostServeError,
    OverloadedError,
    UnavailableError,
)
from ._retry import Retry, pause
from ._types import ImageError


class Gate:
    """The pause of all senders after the server said that it has too much work."""

    def __init__(self) -> None:
        """Open."""
        self._opens = 0.0

    def delay(self) -> float:
        """Seconds until requests may be sent; 0 or less: now."""
        return self._opens - time.monotonic()

    def close_for(self, seconds: float) -> None:
        """Closes the gate for at least so many seconds."""
        # Two threads that write at once lose one of two nearly equal times.
        self._opens = max(self._opens, time.monotonic() + seconds)


def check(concurrency: int, patience: float) -> None:
    """Checks the arguments of `classify_many` when it is called, and not when its first result is taken."""
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, found {concurrency}")
    if not patience >= 0:
        raise ValueError(f"patience must be 0 seconds or more, found {patience}")


@dataclass(slots=True)
class ImageAttempts:
    """The attempts for one image."""

    retry: Retry
    #: Seconds that the image may be put back.
    patience: float
    gate: Gate
    failed: int = 0
    first_failure: float | None = None

    def handle(self, error: GhostServeError) -> ImageError | None:
        """The image's error; or `None` if it shall be sent again when the gate opens. Raises every other error."""
        # A request has one image here, so a body that is too large is its image.
        if isinstance(error, ApiError) and (error.code in IMAGE_CODES or error.code == "body_too_large"):
            return ImageError(error.code, error.detail)
        # Background work that cannot be done in time is refused by its deadline, which is overload as well.
        if isinstance(error, (OverloadedError, UnavailableError, DeadlineExceededError)):
            attempts_left = True
        elif isinstance(error, ConnectionFailedError):
            attempts_left = self.failed < self.retry.attempts
        else:
            raise error
        now = time.monotonic()
        self.first_failure = now if self.first_failure is None else self.first_failure
        wait = pause(error, self.failed, self.retry)
        self.failed += 1
        if not attempts_left or wait is None or now + wait > self.first_failure + self.patience:
            raise error
        self.gate.close_for(wait)
        return None
