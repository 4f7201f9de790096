"""Rumours and news that still have to go out, the least often sent first, each a bounded number of times.

Source: memberlist queue.go (TransmitLimitedQueue). A newer rumour about a member replaces older ones; suspicions of the
same member by others stand beside each other, since each confirms the first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from gossip.config import GossipConfig
from gossip.messages import SUSPECT, NewsRow, Rumour

# Beyond this the most often sent are forgotten: everybody hears of them in the next sync.
QUEUE_MAX = 4096
CROWD = 64


Key = tuple[str, ...]


class Broadcasts:
    """A row of levels: at level n waits what went out n times."""

    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._levels: list[dict[Key, _Item]] = [{}]
        self._level_of: dict[Key, int] = {}
        self._limit = config.retransmit_mult
        # the keys of the rumours about a member
        self._about: dict[str, list[Key]] = {}

    def __bool__(self) -> bool:
        return bool(self._level_of)

    def rumour(self, rumour: Rumour) -> None:
        size = 20 + len(rumour.peer) + len(rumour.source)
        if rumour.about is not None:
            size += 8 + len(rumour.about.version) + sum(len(address) + 2 for address in rumour.about.addresses)
        key: Key = ("suspect", rumour.peer, rumour.source)
        if rumour.rank != SUSPECT:
            self.drop(rumour.peer)
            key = ("rumour", rumour.peer)
        self._add(key, rumour, size)
        keys = self._about.setdefault(rumour.peer, [])
        if key not in keys:
            keys.append(key)

    def news(self, row: NewsRow) -> None:
        self._add(("news", *row[:2]), row, 12 + len(row[0]) + len(row[1]))

    def drop(self, ref: str) -> None:
        """Rumours about this member are out of date."""
        for key in self._about.pop(ref, ()):
            self._remove(key)

    def heard_rumour(self, ref: str) -> None:
        """Another told what I still tell. In a crowd (a thousand start at once) it goes around without me.

        Not otherwise: a refutation that misses one member may cost its owner its life there.
        """
        if len(self._level_of) > CROWD:
            self._count(("rumour", ref))

    def heard_news(self, row: NewsRow) -> None:
        if len(self._level_of) > CROWD:
            self._count(("news", *row[:2]))

    def forget(self, ref: str) -> None:
        """Nobody is called that any more."""
        self.drop(ref)
        for key in [key for key in self._level_of if key[1] == ref]:
            self._remove(key)

    def taken(
        self, room: float, members: int, *, is_counted: bool = True
    ) -> tuple[tuple[Rumour, ...], tuple[NewsRow, ...], int]:
        """What goes out now in at most `room` bytes, and how many bytes that is.

        Not counted: sent to somebody who is probably not there.
        """
        if not self._level_of:
            return (), (), 0
        chosen = self._chosen(room)
        if is_counted:
            self._limit = self._config.retransmit_mult * math.ceil(math.log10(members + 1))
            for key, _ in reversed(chosen):
                self._count(key)
        contents = [item.content for _, item in chosen]
        return (
            tuple([each for each in contents if isinstance(each, Rumour)]),
            tuple([each for each in contents if not isinstance(each, Rumour)]),
            sum(item.size for _, item in chosen),
        )

    def _chosen(self, room: float) -> list[tuple[Key, _Item]]:
        """Least sent first, of those the newest."""
        chosen: list[tuple[Key, _Item]] = []
        for level in self._levels:
            for key, item in reversed(level.items()):
                if item.size > room:
                    return chosen
                room -= item.size
                chosen.append((key, item))
        return chosen

    def _add(self, key: Key, content: Rumour | NewsRow, size: int) -> None:
        self._remove(key)
        if len(self._level_of) >= QUEUE_MAX:
            self._remove(next(iter(next(level for level in reversed(self._levels) if level))))
        self._put(key, _Item(content, size), 0)

    def _count(self, key: Key) -> None:
        level = self._level_of.get(key)
        if level is not None:
            item = self._levels[level][key]
            self._remove(key)
            if level + 1 < self._limit:
                self._put(key, item, level + 1)

    def _put(self, key: Key, item: _Item, level: int) -> None:
        while len(self._levels) <= level:
            self._levels.append({})
        self._levels[level][key] = item
        self._level_of[key] = level

    def _remove(self, key: Key) -> None:
        level = self._level_of.pop(key, None)
        if level is not None:
            del self._levels[level][key]


class _Item(NamedTuple):
    content: Rumour | NewsRow
    size: int
