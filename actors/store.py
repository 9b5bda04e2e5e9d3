"""Profiles in memory: columnar arenas, an index from key hash to row, no Python object per person.

Owns the arrays; the kernels of `store_kernels` and `profile_kernels` work on them. Arenas are
reserved once from the operating system and take memory only as pages are touched, so growth
neither copies nor pauses; the index grows by moving a few slots with every insert.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors import profile_kernels
from actors import store_kernels as kernels
from actors.arena import reserve
from actors.events import IMPRESSION, PURCHASED, WEIGHTS
from actors.store_kernels import ROW
from cluster.errors import StoreFull

_UN_PACK_KEY = Struct(">qq").unpack
_PACK_KEY = Struct(">qq").pack
INDEX_SLOTS_MIN = 1 << 10
_NOTHING: NDArray[np.int32] = np.zeros(0, np.int32)
_WEIGHTS = np.array(WEIGHTS, np.float32)
SWEEP_ROWS = 1 << 16


class StoredEvent(NamedTuple):
    """One event of the ring. item is -1 if the event had none."""

    item: int
    event_type: int
    value: float
    time_s: int


def _as_words(content: bytes) -> NDArray[np.uint32]:
    """Bytes as they lie in a blob: a word with their length, then the bytes; none: no words."""
    words = np.zeros((len(content) + 7) // 4 if content else 0, np.uint32)
    if content:
        words[0] = len(content)
        words[1:].view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)
    return words


class ProfileStore:
    """All profiles of one shard. One writer; nothing here awaits or locks.

    profiles_max       rows that may live at once
    profile_bytes_max  bytes that the variable parts may take
    ring_events_max    last events kept per person
    Raises StoreFull from every writing method when a bound is reached; the profile is unchanged.
    """

    def __init__(
        self,
        *,
        profiles_max: int = 1 << 20,
        profile_bytes_max: int = 1 << 30,
        ring_events_max: int = 50,
        session_gap_s: float = 1800.0,
        fast_half_life_s: float = 3600.0,
        slow_half_life_s: float = 14 * 86400.0,
    ) -> None:
        self.rows = reserve(ROW, profiles_max)
        self._flags = self.rows["flags"]
        self._blob_at = self.rows["blob_at"]
        self._ledger_words = self.rows["ledger_words"]
        words_max = min(profile_bytes_max // 4, (1 << 32) - 1)
        self.words: NDArray[np.uint32] = reserve(np.uint32, words_max)
        self.floats: NDArray[np.float32] = self.words.view(np.float32)
        self.index: NDArray[np.int32] = np.zeros(INDEX_SLOTS_MIN, np.int32)
        self.old_index: NDArray[np.int32] = np.zeros(1, np.int32)
        self.heap: NDArray[np.int64] = np.zeros(kernels.HEAP_SLOTS, np.int64)
        # Word 0 is never given out: 0 ends a free list.
        self.heap[kernels.HEAP_NEXT] = 4
        self.heap[kernels.HEAP_LIMIT] = words_max
        self.heap[kernels.RING_MAX] = ring_events_max
        self.heap[kernels.INDEX_MASK] = INDEX_SLOTS_MIN - 1
        self.heap[kernels.OLD_MASK] = -1
        self.heap[kernels.ROWS_LIMIT] = profiles_max
        self.rates: NDArray[np.float64] = np.zeros(profile_kernels.RATES)
        self.rates[profile_kernels.RATE_FAST] = 1.0 / fast_half_life_s
        self.rates[profile_kernels.RATE_SLOW] = 1.0 / slow_half_life_s
        self.rates[profile_kernels.SESSION_GAP] = session_gap_s

    def __len__(self) -> int:
        return int(self.heap[kernels.ROWS_LIVE])

    @property
    def events_total(self) -> int:
        """Events applied since the start."""
        return int(self.heap[kernels.EVENTS_TOTAL])

    def bytes_used(self) -> int:
        """Bytes that profiles take: rows, live blobs and the index."""
        return (
            int(self.heap[kernels.ROWS_NEXT]) * ROW.itemsize
            + int(self.heap[kernels.HEAP_USED]) * 4
            + self.index.nbytes
            + (self.old_index.nbytes if self.heap[kernels.OLD_MASK] >= 0 else 0)
        )

    def find(self, key: bytes) -> int:
        """Row of a 16-byte key hash, or -1."""
        hi, lo = _UN_PACK_KEY(key)
        return int(kernels.find(self.rows, self.index, self.old_index, self.heap, hi, lo))

    def ensure(self, key: bytes, now_s: int) -> int:
        """Row of a key, created at `now_s` if there is none."""
        row = self.find(key)
        if row >= 0:
            return row
        self._keep_index_sparse()
        hi, lo = _UN_PACK_KEY(key)
        row = int(kernels.insert(self.rows, self.index, self.old_index, self.heap, hi, lo, now_s))
        if row < 0:
            raise self._no_row()
        return row

    def ensure_many(
        self, hi: NDArray[np.int64], lo: NDArray[np.int64], times_s: NDArray[np.uint32]
    ) -> NDArray[np.int32]:
        """Rows int32 [n] of many keys (the two halves of each hash), created where missing."""
        out = np.empty(len(hi), np.int32)
        done = 0
        while done < len(hi):
            reached = kernels.ensure_rows(
                self.rows,
                self.index,
                self.old_index,
                self.heap,
                hi,
                lo,
                times_s,
                out,
                done,
                len(hi),
            )
            if reached == done and not self._keep_index_sparse():
                raise self._no_row()
            done = reached
        return out

    def observe(
        self,
        row: int,
        item: int,
        event_type: int,
        weight: float,
        value: float,
        money: float,
        time_s: int,
        session_id: int,
        attributes: NDArray[np.int32],
    ) -> None:
        """Apply an event to counters, affinities, session and money; item -1 = none."""
        if not profile_kernels.observe(
            self.rows,
            self.words,
            self.floats,
            self.heap,
            self.rates,
            attributes,
            row,
            item if item >= 0 else kernels.NO_ITEM,
            event_type,
            weight,
            value,
            money,
            time_s,
            session_id,
        ):
            raise self._full()

    def enter_ring(self, row: int, item: int, event_type: int, value: float, time_s: int) -> None:
        """Put an event on an item into the ring of last events; item >= 0."""
        if not profile_kernels.enter_ring(
            self.rows, self.words, self.heap, row, item, event_type, value, time_s
        ):
            raise self._full()

    def blend(self, row: int, item: int, embeddings: NDArray[np.float32]) -> None:
        """Move the vector towards the embedding of an item, embeddings float32 [items, d]."""
        if not profile_kernels.blend(
            self.rows, self.words, self.floats, self.heap, embeddings, row, item
        ):
            raise self._full()

    def blend_many(
        self,
        rows: NDArray[np.int32],
        items: NDArray[np.int32],
        event_types: NDArray[np.uint8],
        embeddings: NDArray[np.float32],
    ) -> None:
        """`blend` for many events in order; types that say nothing about taste are left out."""
        if not profile_kernels.blend_many(
            self.rows,
            self.words,
            self.floats,
            self.heap,
            embeddings,
            rows,
            items,
            event_types,
            _WEIGHTS,
        ):
            raise self._full()

    def apply_many(
        self,
        rows: NDArray[np.int32],
        items: NDArray[np.int32],
        event_types: NDArray[np.uint8],
        values: NDArray[np.float32],
        times_s: NDArray[np.uint32],
        attributes: NDArray[np.int32],
    ) -> None:
        """`observe` and `enter_ring` for many events in order, all arrays [n]; item -1 = none."""
        applied = profile_kernels.apply_many(
            self.rows,
            self.words,
            self.floats,
            self.heap,
            self.rates,
            attributes,
            _WEIGHTS,
            IMPRESSION,
            PURCHASED,
            rows,
            items,
            event_types,
            values,
            times_s,
        )
        if applied < len(rows):
            raise self._full()

    def check_room(self, row: int, changes: int, words: int) -> None:
        """Raises StoreFull if `changes` to the profile at `row` (-1: a new one) might not fit.

        words  that all changes together may add to its blob
        Asked before the first change, so that a request is applied as a whole or not at all.
        """
        heap = self.heap
        # Each change may move the blob, and the largest blob is BLOB_WORDS_MAX.
        spare_words = int(heap[kernels.HEAP_LIMIT] - heap[kernels.HEAP_NEXT])
        if spare_words < kernels.BLOB_WORDS_MAX * (changes + 1) and not self._fits(row, words):
            raise self._full()
        if row < 0 and len(self) >= heap[kernels.ROWS_LIMIT]:
            raise self._no_row()

    def _fits(self, row: int, words: int) -> bool:
        """Whether a freed blob holds the profile with so many words more.

        One is enough: a blob that grows takes the smallest free one that holds it, so this one is
        taken last, and once it is, nothing has to grow any further.
        """
        if row >= 0:
            stored = kernels.EVENT_WORDS * int(self.rows["ring_n"][row])
            words += int(kernels.fixed_words(self.rows, row)) + stored
        smallest = int(kernels.CLASS_FOR[min(words, kernels.BLOB_WORDS_MAX)])
        return bool(self.heap[kernels.FREE_LISTS + smallest :].any())

    def remove(self, row: int) -> None:
        """Forget the profile at `row`; nothing of it stays in memory."""
        kernels.remove(self.rows, self.words, self.index, self.old_index, self.heap, row)

    def stale(self, before_s: int, start: int) -> tuple[list[int], int]:
        """Rows of profiles last seen before `before_s` among SWEEP_ROWS rows from `start`.

        Returns (rows, where to go on; 0 = at the end), so a sweep never pauses long.
        """
        stop = min(start + SWEEP_ROWS, int(self.heap[kernels.ROWS_NEXT]))
        part = self.rows[start:stop]
        stale = np.flatnonzero((part["flags"] & kernels.LIVE) & (part["last_seen"] < before_s))
        return (stale + start).tolist(), stop if stop < self.heap[kernels.ROWS_NEXT] else 0

    def bought(self, row: int) -> NDArray[np.int32]:
        """Items of the ring that the person has purchased, int32 [n]."""
        if not self._flags[row] & kernels.BOUGHT:
            return _NOTHING
        out = np.empty(int(self.heap[kernels.RING_MAX]), np.int32)
        return out[: profile_kernels.bought(self.rows, self.words, row, out)]

    # What a profile holds, for answers and tests. The hot path reads through kernels.

    def key(self, row: int) -> bytes:
        """The key hash of a row, 16 bytes."""
        return _PACK_KEY(int(self.rows["key_hi"][row]), int(self.rows["key_lo"][row]))

    def version(self, row: int) -> int:
        """How many changes the profile has seen; 0 for row -1."""
        return int(self.rows["version"][row]) if row >= 0 else 0

    def bump(self, row: int) -> None:
        """Count one change that is not an event."""
        self.rows["version"][row] += 1

    def events(self, row: int) -> list[StoredEvent]:
        """The ring, newest first."""
        found = []
        for newest in range(int(self.rows["ring_n"][row])):
            at = int(kernels.event_at(self.rows, row, newest))
            word = int(self.words[at])
            item = word & kernels.ITEM_MASK
            found.append(
                StoredEvent(
                    -1 if item == kernels.NO_ITEM else item,
                    word >> kernels.TYPE_SHIFT,
                    float(self.floats[at + 2]),
                    int(self.words[at + 1]),
                )
            )
        return found

    def counters(self, row: int) -> dict[int, tuple[float, float]]:
        """Decayed counts per event type as of last_seen: {type: (fast, slow)}."""
        entry = self.rows[row]
        at = int(entry["blob_at"]) + int(entry["vector_d"]) + int(entry["trait_words"])
        return {
            int(self.words[i]): (float(self.floats[i + 1]), float(self.floats[i + 2]))
            for i in range(at, at + kernels.COUNTER_WORDS * int(entry["counters_n"]), 3)
        }

    def affinities(self, row: int) -> dict[int, float]:
        """Decayed affinity per attribute id as of last_seen."""
        entry = self.rows[row]
        size = kernels.AFFINITY_WORDS * int(entry["affinities_n"])
        end = int(kernels.fixed_words(self.rows, row)) - int(entry["ledger_words"])
        at = int(entry["blob_at"]) + end - size
        return {
            int(self.words[i]): float(self.floats[i + 1])
            for i in range(at, at + size, kernels.AFFINITY_WORDS)
        }

    def vector(self, row: int) -> NDArray[np.float32]:
        """The person's vector, a view float32 [vector_d]; empty if there is none."""
        start = int(self.rows["blob_at"][row])
        return self.floats[start : start + int(self.rows["vector_d"][row])]

    def traits(self, row: int) -> bytes:
        """The free traits as they were set; b"" if there are none."""
        entry = self.rows[row]
        start = int(entry["blob_at"]) + int(entry["vector_d"])
        return self._bytes_at(start, int(entry["trait_words"]))

    def set_traits(self, row: int, traits: bytes) -> None:
        """Replace the free traits by these bytes; b"" removes them."""
        self._set_section(row, profile_kernels.TRAITS, _as_words(traits))

    def ledger(self, row: int) -> bytes:
        """The ledger as it was set; b"" if there is none."""
        count = int(self._ledger_words[row])
        if count == 0:
            return b""
        end = int(self._blob_at[row]) + int(kernels.fixed_words(self.rows, row))
        return self._bytes_at(end - count, count)

    def ledgers(self) -> list[int]:
        """Rows that have a ledger."""
        rows = self.rows[: int(self.heap[kernels.ROWS_NEXT])]
        found = np.flatnonzero((rows["flags"] & kernels.LIVE) & (rows["ledger_words"] > 0))
        return found.tolist()

    def set_ledger(self, row: int, ledger: bytes) -> None:
        """Replace the ledger by these bytes; b"" removes it."""
        self._set_section(row, profile_kernels.LEDGER, _as_words(ledger))

    def _bytes_at(self, start: int, count: int) -> bytes:
        stored = self.words[start : start + count]
        return stored[1:].tobytes()[: int(stored[0])] if count else b""

    def _set_section(self, row: int, section: int, content: NDArray[np.uint32]) -> None:
        if not profile_kernels.set_section(self.rows, self.words, self.heap, row, section, content):
            raise self._full()

    def _no_row(self) -> StoreFull:
        return StoreFull(f"profiles must be <= {len(self.rows)}, and all are in use")

    def _full(self) -> StoreFull:
        return StoreFull(
            f"profile parts must fit {4 * int(self.heap[kernels.HEAP_LIMIT])} bytes, "
            f"{4 * int(self.heap[kernels.HEAP_USED])} are in use"
        )

    def _keep_index_sparse(self) -> bool:
        """Start a larger index if this one is 3/4 full. Returns whether it did."""
        heap = self.heap
        size = int(heap[kernels.INDEX_MASK]) + 1
        if int(heap[kernels.INDEX_FILLED]) * 4 < size * 3:
            return False
        if heap[kernels.OLD_MASK] >= 0:
            remaining = int(heap[kernels.OLD_MASK]) + 1
            kernels._migrate(self.rows, self.index, self.old_index, heap, remaining)
        # An index full of tombstones is only written anew at its size.
        larger = size * 2 if len(self) * 2 >= size else size
        self.old_index = self.index
        self.index = np.zeros(larger, np.int32)
        heap[kernels.OLD_MASK] = size - 1
        heap[kernels.OLD_AT] = 0
        heap[kernels.INDEX_MASK] = larger - 1
        heap[kernels.INDEX_FILLED] = 0
        return True

    def check(self) -> None:
        """Prove the structure whole; O(n). Raises AssertionError: only a bug can break it."""
        heap = self.heap
        used_rows = int(heap[kernels.ROWS_NEXT])
        live = np.flatnonzero(self.rows["flags"][:used_rows] & kernels.LIVE)
        assert len(live) == len(self), (len(live), len(self))
        slots = self.index[self.index > 0] - 1
        if heap[kernels.OLD_MASK] >= 0:
            slots = np.concatenate([slots, self.old_index[self.old_index > 0] - 1])
        assert np.array_equal(np.sort(slots), live), "the index names each live row once"
        assert int((self.index != 0).sum()) == heap[kernels.INDEX_FILLED]
        free_rows = []
        at = int(heap[kernels.ROWS_FREE])
        while at:
            free_rows.append(at - 1)
            at = int(self.rows["blob_at"][at - 1])
        assert len(free_rows) + len(live) == used_rows, "every used row is live or free"
        spans = []
        for row in live.tolist():
            assert self.find(self.key(row)) == row, row
            entry = self.rows[row]
            size = int(kernels.CLASS_WORDS[entry["blob_class"]])
            fixed = int(kernels.fixed_words(self.rows, row))
            cap, stored, head = (int(entry[f]) for f in ("ring_cap", "ring_n", "ring_head"))
            assert stored <= cap <= heap[kernels.RING_MAX], row
            assert fixed + kernels.EVENT_WORDS * cap <= size, row
            assert head == stored if cap < heap[kernels.RING_MAX] else head <= cap, row
            if size:
                spans.append((int(entry["blob_at"]), size))
        assert sum(size for _, size in spans) == heap[kernels.HEAP_USED]
        for size_class, size in enumerate(kernels.CLASS_WORDS.tolist()):
            at = int(heap[kernels.FREE_LISTS + size_class])
            while at:
                spans.append((at, size))
                at = int(self.words[at])
        spans.sort()
        end = 4
        for start, size in spans:
            assert start == end, f"blobs must lie side by side: {start} after {end}"
            end = start + size
        assert end == heap[kernels.HEAP_NEXT]
