"""How much a key may ask: a token bucket each, since a browser's key is anybody's."""

from __future__ import annotations

from cluster.errors import Overloaded


class RateLimited(Overloaded):
    """The key has used up its rate: what happened, and after how many seconds it may ask again."""

    def __init__(self, text: str, retry_after_s: float = 1.0) -> None:
        super().__init__(text, retry_after_s)
        self.text = text
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.text


class Bucket:
    """Holds up to `burst` tokens, one a message, and gets `rate` a second. The clock is passed in.

    >>> bucket = Bucket(2.0, 3.0)
    >>> [bucket.wait_s(t) for t in (0.0, 0.0, 0.0, 0.0, 0.5, 0.5)]
    [0.0, 0.0, 0.0, 0.5, 0.0, 0.5]
    """

    __slots__ = ("_at_s", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at_s: float | None = None

    def wait_s(self, now_s: float) -> float:
        """Take a token: 0.0; or how long until there is one."""
        if self._at_s is not None:
            self._tokens += max(now_s - self._at_s, 0.0) * self.rate
        self._at_s = now_s
        self._tokens = min(self._tokens, self.burst)
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.rate
        self._tokens -= 1.0
        return 0.0

    def take(self, now_s: float) -> None:
        """Take a token. Raises RateLimited if there is none."""
        wait_s = self.wait_s(now_s)
        if wait_s:
            text = f"the key may send {self.rate:g} messages a second, {self.burst:g} at once"
            raise RateLimited(text, wait_s)
