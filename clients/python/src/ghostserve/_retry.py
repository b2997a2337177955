"""When a request is sent again, and how long the client waits before it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from ._errors import ConnectionFailedError, DeadlineExceededError, GhostServeError, OverloadedError, UnavailableError


@dataclass(frozen=True, slots=True)
class Retry:
    """How a client repeats requests that the server refused for now, and those whose connection failed.

    That is safe: no request of this API changes anything.
    """

    #: Attempts after the first one. 0: none.
    attempts: int = 2
    #: Seconds before the first repetition if the server names no time; doubled each time.
    backoff: float = 0.1
    #: The longest wait in seconds. If the server asks for a longer one, its error is raised at once.
    max_wait: float = 30.0
    #: Waits are longer by a random part of themselves, up to this one, so that clients do not return together.
    jitter: float = 0.25

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if min(self.attempts, self.backoff, self.max_wait, self.jitter) < 0:
            raise ValueError(f"the numbers of a Retry are 0 or more, found {self}")


def retry_policy(retries: Retry | int) -> Retry:
    """A policy from itself or from its number of attempts."""
    return retries if isinstance(retries, Retry) else Retry(attempts=retries)


class Attempts:
    """The attempts of one request, and the time that is left to them."""

    def __init__(self, retry: Retry, deadline: float | None) -> None:
        """Starts the clock."""
        self._retry = retry
        self._failed = 0
        self._end = None if deadline is None else time.monotonic() + deadline

    def remaining(self) -> float | None:
        """Seconds until the deadline; `None` without one."""
        return None if self._end is None else self._end - time.monotonic()

    def time_to_send(self) -> float | None:
        """What remains. Raises `DeadlineExceededError` if the deadline passed before the request could be sent."""
        remaining = self.remaining()
        if remaining is not None and remaining <= 0:
            raise DeadlineExceededError(504, "deadline_exceeded", "the deadline passed before the request was sent")
        return remaining

    def wait_after(self, error: GhostServeError) -> float | None:
        """Seconds to wait before the next attempt; `None` if the error is final."""
        if not isinstance(error, (OverloadedError, UnavailableError, ConnectionFailedError)):
            return None
        if self._failed >= self._retry.attempts:
            return None
        wait = pause(error, self._failed, self._retry)
        self._failed += 1
        remaining = self.remaining()
        too_long = wait is None or (remaining is not None and wait >= remaining)
        return None if too_long else wait


def pause(error: GhostServeError, failed: int, retry: Retry) -> float | None:
    """Seconds to wait after so many failures and this one: what the server asks for, or twice the last wait.

    `None` if the server asks for more than the policy allows.
    """
    asked: float | None = getattr(error, "retry_after", None)
    if asked is not None and asked > retry.max_wait:
        return None
    # A server that asks for 0 seconds still gets some rest.
    wait: float = max(asked or 0.0, min(retry.backoff * 2.0 ** min(failed, 30), retry.max_wait))
    return wait * (1 + random.uniform(0, retry.jitter))
