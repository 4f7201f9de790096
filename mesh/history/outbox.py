"""What waits for the disk: a queue of entries in the order they were made, within a bound. Pure.

Everything that this peer records passes through here, so a disk that is slow, full or locked changes nothing but how
long it gets. The entries of a batch are being written; they stay until the disk says that they are on it, and come
again in the same order when it fails, 0.1 s later, then 0.2, up to 5 s. When more waits than the bound, the oldest
bodies go first (the record of the request stays, without them), then the oldest entries; both are counted. What is
being written is left alone.

Not here: who writes (mesh.history.writer).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from mesh.history.entries import End, Entry, Start

BYTES_MAX = 64 * 2**20
BATCH_ENTRIES_MAX = 512
BATCH_BYTES_MAX = 4 * 2**20
"""What one commit takes: less than 50 ms of writing."""
RETRY_S = 0.1
RETRY_S_MAX = 5.0
FIELDS_BYTES = 512
"""What an entry takes beside its bodies, about, in memory."""


@dataclass(slots=True, kw_only=True, eq=False)
class Waiting:
    """An entry in the queue. `ended` is called once: True when it is on the disk, False when it was dropped."""

    entry: Entry
    size_bytes: int
    ended: Callable[[bool], None] | None = None


class Outbox:
    """The queue. `now` is in seconds, from any clock that only goes on."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._queue: deque[Waiting] = deque()
        self._with_body: deque[Waiting] = deque()
        self._batch: list[Waiting] = []
        self._failures = 0
        self._is_careful = False
        self.retry_at = 0.0
        self.size_bytes = 0
        self.bodies_dropped = 0
        self.entries_dropped = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._batch)

    @property
    def is_sick(self) -> bool:
        """The last try failed."""
        return self._failures > 0

    def put(self, entry: Entry, ended: Callable[[bool], None] | None = None) -> Waiting:
        """Queues `entry` behind all others, and makes room for it if it must."""
        body = _body_of(entry)
        waiting = Waiting(entry=entry, size_bytes=FIELDS_BYTES + len(body or b""), ended=ended)
        self._queue.append(waiting)
        if body is not None:
            self._with_body.append(waiting)
        self.size_bytes += waiting.size_bytes
        self._make_room()
        return waiting

    def batch(self, now: float) -> list[Waiting]:
        """What to write now, in order; nothing while something is being written, or before the next try is due."""
        if self._batch or now < self.retry_at:
            return []
        size_bytes, entries_max = 0, 1 if self._is_careful else BATCH_ENTRIES_MAX
        while self._queue and len(self._batch) < entries_max and size_bytes < BATCH_BYTES_MAX:
            waiting = self._queue.popleft()
            if self._with_body and self._with_body[0] is waiting:
                self._with_body.popleft()
            size_bytes += waiting.size_bytes
            self._batch.append(waiting)
        return list(self._batch)

    def written(self) -> list[Waiting]:
        """The batch is on the disk."""
        done, self._batch = self._batch, []
        self._failures, self.retry_at = 0, 0.0
        self._is_careful = self._is_careful and bool(self._queue)
        self._end(done, is_written=True)
        return done

    def failed(self, now: float) -> None:
        """The disk did not take the batch, or nobody knows whether it did: it comes again, in the same order."""
        self.retry_at = now + min(RETRY_S_MAX, RETRY_S * 2 ** min(self._failures, 10))
        self._failures += 1
        self._put_back()

    def refused(self) -> list[Waiting]:
        """Something in the batch can never be written. The entries come again one by one; one that is alone goes.

        Returns what is gone.
        """
        if len(self._batch) > 1:
            self._is_careful = True
            self._put_back()
            return []
        gone, self._batch = self._batch, []
        self._failures, self.retry_at = 0, 0.0
        self.entries_dropped += len(gone)
        self._end(gone, is_written=False)
        return gone

    def _put_back(self) -> None:
        back, self._batch = self._batch, []
        self._queue.extendleft(reversed(back))
        self._with_body.extendleft(w for w in reversed(back) if _body_of(w.entry) is not None)
        self._make_room()

    def _make_room(self) -> None:
        while self.size_bytes > self._bytes_max and self._with_body:
            waiting = self._with_body.popleft()
            waiting.entry = _without_body(waiting.entry)
            self.size_bytes += FIELDS_BYTES - waiting.size_bytes
            waiting.size_bytes = FIELDS_BYTES
            self.bodies_dropped += 1
        while self.size_bytes > self._bytes_max and self._queue:
            self.entries_dropped += 1
            self._end([self._queue.popleft()], is_written=False)

    def _end(self, gone: list[Waiting], *, is_written: bool) -> None:
        for waiting in gone:
            self.size_bytes -= waiting.size_bytes
            if waiting.ended is not None:
                waiting.ended(is_written)


def _body_of(entry: Entry) -> bytes | None:
    if isinstance(entry, Start):
        return entry.request_body
    return entry.response_body if isinstance(entry, End) else None


def _without_body(entry: Entry) -> Entry:
    if isinstance(entry, Start):
        return replace(entry, request_body=None)
    return replace(entry, response_body=None) if isinstance(entry, End) else entry
