"""Rumours and news that still have to go out, the least often sent first, each a bounded number of times.

Source: memberlist queue.go (TransmitLimitedQueue). A newer rumour about a member replaces older ones; suspicions of the
same member by others stand beside each other, since each confirms the first.
"""

from __future__ import annotations

import math

from gossip.config import GossipConfig
from gossip.messages import SUSPECT, NewsRow, Rumour

# Beyond this the most often sent are forgotten: everybody hears of them in the next sync.
QUEUE_MAX = 4096


class Broadcasts:
    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._waiting: dict[tuple[str, ...], _Item] = {}
        self._turn = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def rumour(self, rumour: Rumour) -> None:
        size = 20 + len(rumour.peer) + len(rumour.source)
        if rumour.about is not None:
            size += 8 + len(rumour.about.version) + sum(len(address) + 2 for address in rumour.about.addresses)
        if rumour.rank == SUSPECT:
            self._add(("suspect", rumour.peer, rumour.source), rumour, size)
        else:
            self.drop(rumour.peer)
            self._add(("rumour", rumour.peer), rumour, size)

    def news(self, row: NewsRow) -> None:
        self._add(("news", *row[:2]), row, 12 + len(row[0]) + len(row[1]))

    def drop(self, ref: str, *, news: bool = False) -> None:
        """Rumours about this member are out of date."""
        for key in [key for key in self._waiting if key[1] == ref and (news or key[0] != "news")]:
            del self._waiting[key]

    def taken(
        self, room: float, members: int, *, is_counted: bool = True
    ) -> tuple[tuple[Rumour, ...], tuple[NewsRow, ...], int]:
        """What goes out now in at most `room` bytes, and how many bytes that is.

        Not counted: sent to somebody who is probably not there.
        """
        if not self._waiting:
            return (), (), 0
        limit = self._config.retransmit_mult * math.ceil(math.log10(members + 1))
        rumours: list[Rumour] = []
        news: list[NewsRow] = []
        used = 0
        for key, item in sorted(self._waiting.items(), key=_least_sent_newest_first):
            if used + item.size > room:
                break
            used += item.size
            (rumours if isinstance(item.content, Rumour) else news).append(item.content)  # type: ignore[arg-type]
            if not is_counted:
                continue
            item.sent += 1
            if item.sent >= limit:
                del self._waiting[key]
        return tuple(rumours), tuple(news), used

    def _add(self, key: tuple[str, ...], content: Rumour | NewsRow, size: int) -> None:
        if len(self._waiting) >= QUEUE_MAX and key not in self._waiting:
            del self._waiting[max(self._waiting, key=lambda each: self._waiting[each].sent)]
        self._turn += 1
        self._waiting[key] = _Item(content, size, self._turn)


class _Item:
    __slots__ = ("content", "sent", "size", "turn")

    def __init__(self, content: Rumour | NewsRow, size: int, turn: int) -> None:
        self.content, self.size, self.turn, self.sent = content, size, turn, 0


def _least_sent_newest_first(entry: tuple[tuple[str, ...], _Item]) -> tuple[int, int]:
    return entry[1].sent, -entry[1].turn
