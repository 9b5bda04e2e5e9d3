"""Builds a base beside the answering thread. The kernels release the GIL, so decisions go on."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Thread

from actors.engine import base as bases
from actors.engine import history
from actors.engine.base import Base
from actors.engine.history import History


class Build:
    """One base under construction. `parts` must not change any more.

    included  position of the log up to which the base will hold its events
    """

    def __init__(
        self,
        parts: Sequence[History],
        events_max: int,
        items_n: int,
        included: int,
        half_life_s: float,
    ) -> None:
        self.included = included
        self._arguments = (parts, events_max, items_n, half_life_s)
        self._base: Base | None = None
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, name="onehop-build", daemon=True)

    def start(self) -> None:
        """Begin in another thread."""
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether `result` answers at once."""
        return not self._thread.is_alive()

    def result(self) -> Base:
        """The base, when it is ready. Raises what the building raised."""
        if self._thread.ident is None:
            self._run()
        else:
            self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._base is not None
        return self._base

    def _run(self) -> None:
        parts, events_max, items_n, half_life_s = self._arguments
        try:
            self._base = bases.build(history.merge(parts, events_max), items_n, half_life_s)
        except Exception as error:
            self._error = error
