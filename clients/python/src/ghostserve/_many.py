"""What `classify_many` of both clients shares: when an image is sent again, and how many are sent at once."""

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


class Limiter:
    """How many images are under way at once: as many as the server takes without refusing some, up to a limit.

    It starts with few and grows by one per answer, until the first refusal. From then on a refusal takes a quarter
    away, and fifty answers add one. A refused image keeps its place while it waits, so a server that refuses
    everything hears of few. Its owner guards it against concurrent use.
    """

    def __init__(self, concurrency: int) -> None:
        """Nothing is under way."""
        self._most = concurrency
        self._limit = float(min(concurrency, 4))
        self._growth = 1.0
        self._active = 0
        self._reduced = 0.0

    def try_acquire(self) -> bool:
        """Takes a place, if there is one."""
        free = self._active < int(self._limit)
        self._active += free
        return free

    def release(self) -> None:
        """Gives a place back."""
        self._active -= 1

    def answered(self) -> None:
        """Notes that the server took an image."""
        self._limit = min(self._limit + self._growth, float(self._most))

    def refused(self, sent: float) -> None:
        """Notes that the server refused a request that was sent at this time."""
        # Requests that were under way at the last reduction say nothing new.
        if sent >= self._reduced:
            self._limit = max(1.0, min(self._limit, float(self._active)) * 0.75)
            self._growth = 0.02
            self._reduced = time.monotonic()


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
    failed: int = 0
    #: How many of the failures were of the connection. Refusals do not use up its attempts.
    disconnected: int = 0
    first_failure: float | None = None

    def handle(self, error: GhostServeError) -> ImageError | float:
        """The image's error; or the seconds after which it shall be sent again. Raises every other error."""
        # A request has one image here, so a body that is too large is its image.
        if isinstance(error, ApiError) and (error.code in IMAGE_CODES or error.code == "body_too_large"):
            return ImageError(error.code, error.detail)
        # Background work that cannot be done in time is refused by its deadline, which is overload as well.
        if isinstance(error, (OverloadedError, UnavailableError, DeadlineExceededError)):
            attempts_left = True
        elif isinstance(error, ConnectionFailedError):
            attempts_left = self.disconnected < self.retry.attempts
            self.disconnected += 1
        else:
            raise error
        now = time.monotonic()
        self.first_failure = now if self.first_failure is None else self.first_failure
        wait = pause(error, self.failed, self.retry)
        self.failed += 1
        if not attempts_left or wait is None or now + wait > self.first_failure + self.patience:
            raise error
        return wait
