"""One comparison of two maps, from the asking side: bucket by bucket, until each has what it lacked.

The asker names the rows that it has; the other tells those that are not named, and which of the named it lacks. So
each row goes over the wire once, in the direction in which it is missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from mesh.admin.map import BUCKETS, AdminMap
from mesh.admin.messages import DIGEST_BYTES, NAME_BYTES, NAMES_MAX, Ask, Told, names_in, on_the_wire
from mesh.admin.replica import Taken
from mesh.admin.rows import written

ROUNDS_MAX = 400
"""Questions in one comparison: a full map has a hundred thousand rows, or 64 MiB."""
IN_THE_WAY = frozenset({"clock", "author", "full", "malformed", "signature"})
"""Refusals after which this map does not hold all that the other does."""
IN_THE_WAY_OF_A_COPY = IN_THE_WAY - {"author"}
"""A copy is all that the other has of signers: rows of departed members are to be signed anew there, or dropped, and
who has them may wait for just this comparison to do so."""


def differing(admin_map: AdminMap, digests: bytes, *, with_closed: bool) -> list[int]:
    """The buckets whose digests are not those of `admin_map`; a guest looks at what it may have only."""
    mine = on_the_wire(admin_map.digests())
    last = BUCKETS if with_closed else BUCKETS // 2
    ends = [(at, at * DIGEST_BYTES, (at + 1) * DIGEST_BYTES) for at in range(last)]
    return [at for at, begin, end in ends if end <= len(digests) and mine[begin:end] != digests[begin:end]]


class Rounds:
    """`moved` counts the rows that were taken in on either side so far."""

    def __init__(
        self,
        admin_map: AdminMap,
        *,
        ask: Callable[[Ask], Awaitable[object | None]],
        give: Callable[[Sequence[bytes]], Awaitable[int]] | None,
        take: Callable[[Sequence[bytes]], Awaitable[Taken]],
        in_the_way: Collection[str] = IN_THE_WAY,
    ) -> None:
        """`give` tells how many were taken; it is None for one that only takes."""
        self._map = admin_map
        self._ask = ask
        self._give = give
        self._take = take
        self._in_the_way = frozenset(in_the_way)
        self._refused: set[bytes] = set()
        self._is_whole = True
        self.moved = 0

    async def run(self, buckets: Iterable[int]) -> bool:
        """True if all of these buckets were gone through, and nothing had to be refused for now."""
        left = deque(buckets)
        for _ in range(ROUNDS_MAX):
            if not left:
                return self._is_whole
            chosen = self._chosen(left)
            have = {hashed[:NAME_BYTES] for hashed, _ in self._map.hashes(chosen)} | self._refused
            packed = b"".join(sorted(have)[:NAMES_MAX])
            told = await self._ask(Ask(mesh=self._map.mesh_id, buckets=tuple(chosen), have=packed))
            if not isinstance(told, Told) or not 1 <= told.buckets <= len(chosen):
                return False
            await self._took(told)
            if told.is_all:
                await self._gave(chosen[: told.buckets], told.wanted)
                for _ in range(told.buckets):
                    left.popleft()
            elif not told.rows:
                return False
        return False

    def _chosen(self, left: Iterable[int]) -> list[int]:
        """As many of them as the names of what is here fit into one question."""
        chosen: list[int] = []
        room = NAMES_MAX - len(self._refused)
        for bucket in left:
            room -= self._map.count(bucket)
            if chosen and room < 0:
                break
            chosen.append(bucket)
        return chosen

    async def _took(self, told: Told) -> None:
        if told.rows:
            taken = await self._take(told.rows)
            self.moved += taken.accepted
            self._refused |= taken.names
            self._is_whole = self._is_whole and not self._in_the_way & {
                why for why, count in taken.refused.items() if count
            }

    async def _gave(self, buckets: Sequence[int], wanted: bytes) -> None:
        if self._give is None or not wanted:
            return
        names = names_in(wanted)
        rows = [written(row) for hashed, row in self._map.hashes(buckets) if hashed[:NAME_BYTES] in names]
        if rows:
            self.moved += await self._give(rows)
