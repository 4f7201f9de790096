"""Who holds whose logs, and what has to travel next. Pure.

A log is written by one peer, its origin, and copied as a prefix: entry 1, 2, 3, ... up to where the copy goes
(`have`), less what its origin retired (`low`). Three disks hold it: the origin's, the coordinator's and the first
successor's; the coordinator's own logs are on the disks of two successors. Fewer machines hold fewer copies. Peers that
never coordinate (LLM_ROUTER_COORDINATOR=never, a laptop that leaves the house) and guests hold no logs but their own.

An origin pushes its logs to who should hold them. The coordinator also pulls from everybody, and its successors from
the coordinator, so that logs whose origin is off move along when others take over.

Whose word counts: entries of a log are taken from its origin alone while the origin is alive, so that no other member
can write into its past or ahead of it. When it is not, any full member may pass on what it holds, for else a log would
be lost with its origin: a member could then add entries to the log of a peer that is off. Full members may read and
keep the history of the mesh anyway; guests may neither. What an origin retired is believed of the origin alone; another
copy may at most begin later than this one ends. An origin whose disk was lost takes its own older logs from full
members, and from then on they are its own word again.

Records from before this peer came into the mesh stay on its disk: `floors` says up to where each of its logs is
private.

Not here: how it travels (mesh.history.replication), what may be added to a copy (mesh.history.prefixes).
Source: prefix replication as in viewstamped replication (Liskov and Cowling 2012) without its vote, since nothing needs
one: only the origin writes; version vectors from Parker et al. 1983.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mesh.history.entries import LogId

COPIES = 3
"""Disks that a log is on, the origin's among them."""

Span: TypeAlias = tuple[int, int]
"""(low, have): up to where a log was retired, and up to where it goes."""
Vector: TypeAlias = Mapping[LogId, Span]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mate:
    """Another member of the mesh. `is_eligible` is False for one that never coordinates.

    `is_alive`: alive or suspect. `has_left`: it said goodbye. `since_ms`: when it stopped being alive, if known.
    `run`: when its process began (unix ms), as gossip has it; the log that it writes is no older.
    """

    peer: str
    is_alive: bool
    is_guest: bool = False
    is_eligible: bool = True
    has_left: bool = False
    since_ms: int | None = None
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The mesh as this peer sees it. `succession`: who may coordinate and is alive, first in the order first."""

    me: str
    is_guest: bool = False
    is_eligible: bool = True
    mates: Mapping[str, Mate] = field(default_factory=dict)
    coordinator: str | None = None
    succession: Sequence[str] = ()

    @property
    def is_coordinator(self) -> bool:
        return self.coordinator == self.me


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Send me what follows on number `after` of that log."""

    log: LogId
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """A peer whose newest records may be missing here. `entries` that are known to be missing.

    `reason`: it is not there to ask, it has more than came yet, or it is a guest, whose records stay with it.
    """

    peer: str
    reason: Literal["offline", "behind", "guest"]
    entries: int = 0
    since_ms: int | None = None


# -- who holds what


def keepers(origin: str, view: View) -> tuple[str, ...]:
    """The peers that should hold the logs of `origin` beside itself, at most COPIES - 1, the coordinator first."""
    return tuple(peer for peer in _line(view) if peer != origin)[: COPIES - 1]


def targets(view: View) -> tuple[str, ...]:
    """Whom this peer pushes its own logs to; nobody while it is a guest."""
    return () if view.is_guest else keepers(view.me, view)


def sources(view: View, *, recovers: bool) -> tuple[str, ...]:
    """Whom this peer asks what they hold: everybody as coordinator, the coordinator as one of its first successors.

    `recovers`: its own disk was lost, and anybody may hold its older logs.
    """
    others = tuple(sorted(peer for peer in view.mates if may_read(peer, view)))
    if view.is_guest:
        return ()
    if view.is_coordinator or recovers:
        return others
    is_next = view.me in _line(view)[1:COPIES]
    return (view.coordinator,) if view.coordinator in others and is_next else ()


def may_hold(peer: str, view: View) -> bool:
    """True if the logs of others may lie on that peer's disk, and it is there."""
    if peer == view.me:
        return not view.is_guest and view.is_eligible
    mate = view.mates.get(peer)
    return mate is not None and mate.is_alive and not mate.is_guest and mate.is_eligible


def is_alive(peer: str, view: View) -> bool:
    """True if that peer is there, as far as this one knows."""
    mate = view.mates.get(peer)
    return peer == view.me or (mate is not None and mate.is_alive)


def may_read(peer: str, view: View) -> bool:
    """True if that peer is a full member: it may say what it has, and be told. Guests may not."""
    mate = view.mates.get(peer)
    return mate is not None and mate.is_alive and not mate.is_guest


def may_take(peer: str, log: LogId, view: View) -> bool:
    """True if entries of `log` may be given to that peer: one that coordinates or may, or who wrote them."""
    return may_read(peer, view) and (log.peer == peer or may_hold(peer, view))


def accepts(log: LogId, source: str, view: View, *, own: LogId, recovers: bool) -> bool:
    """True if entries of `log` are taken here when `source` sends them. `own`: the log that this peer writes now."""
    if not may_read(source, view):
        return False
    if log.peer == view.me:
        return recovers and log.run < own.run
    if not may_hold(view.me, view):
        return False
    return source == log.peer or not is_alive(log.peer, view)


# -- what travels next


def wanted(
    mine: Vector, theirs: Mapping[str, Vector], view: View, *, own: LogId, recovers: bool
) -> dict[str, list[Want]]:
    """What to ask of whom: each log that this peer should hold and somebody has more of, of the best source for it.

    A copy that goes on where this one ends is better than one that begins later; then the longest.
    """
    found: dict[str, list[Want]] = {}
    for log in sorted({log for vector in theirs.values() for log in vector}):
        if log.peer != view.me and view.me not in keepers(log.peer, view):
            continue
        have = mine.get(log, (0, 0))[1]
        offers = [
            (vector[log][0] > have, -vector[log][1], source)
            for source, vector in theirs.items()
            if log in vector and vector[log][1] > have and accepts(log, source, view, own=own, recovers=recovers)
        ]
        if offers:
            found.setdefault(min(offers)[2], []).append(Want(log=log, after=have))
    return found


def to_push(mine: Vector, theirs: Vector, me: str, floors: Mapping[LogId, int]) -> Want | None:
    """What of the own logs that peer lacks, newest run first; None when it has all, and knows what was retired."""
    for log in sorted((log for log in mine if log.peer == me), reverse=True):
        low, have = shown(log, mine[log], floors)
        their_low, their_have = theirs.get(log, (0, 0))
        if have > max(their_have, low) or (low > their_low and their_have > 0):
            return Want(log=log, after=max(their_have, low))
    return None


def shown(log: LogId, span: Span, floors: Mapping[LogId, int]) -> Span:
    """What others see of a log: private entries look as if they were retired."""
    low, have = span
    floor = min(floors.get(log, 0), have)
    return max(low, floor), have


def believed_low(log: LogId, source: str, span: Span, first: int, low: int) -> int:
    """How much of the log is retired here too when `source` says that it is up to `low`."""
    if source == log.peer:
        return low
    old_low, have = span
    return first - 1 if first > have + 1 else old_low


def next_run(known: Iterable[LogId], me: str, now_ms: int, above: int = 0) -> int:
    """The run of a new log of this peer: above all that are known to it, so that no log is ever written twice."""
    return max([now_ms, above + 1, *(log.run + 1 for log in known if log.peer == me)])


def held_through(haves: Iterable[int], disks: int) -> int:
    """Up to where a log is on that many disks, given where each copy ends."""
    ordered = sorted(haves, reverse=True)
    return ordered[disks - 1] if len(ordered) >= disks else 0


# -- what is missing


def is_written(log: LogId, known: Iterable[LogId], view: View, *, own: LogId) -> bool:
    """True if that log may still get entries: what is open in another one will never end. `known`: all known logs."""
    if log.peer == view.me:
        return log == own
    mate = view.mates.get(log.peer)
    if mate is None or not mate.is_alive or log.run < mate.run:
        return False
    return log.run >= max((each.run for each in known if each.peer == log.peer), default=0)


def behind(mine: Vector, told: Mapping[str, Vector], view: View) -> list[Behind]:
    """The members whose newest records this peer may lack. `told`: what each last said of its own logs.

    A peer that crashed may have written after it was last heard; one that said goodbye had nothing left to say.
    """
    found = []
    for peer, mate in sorted(view.mates.items()):
        missing = sum(
            max(0, have - max(low, mine.get(log, (0, 0))[1]))
            for log, (low, have) in told.get(peer, {}).items()
            if log.peer == peer
        )
        if mate.is_guest:
            found.append(Behind(peer=peer, reason="guest", entries=missing))
        elif not mate.is_alive and (missing or not mate.has_left):
            found.append(Behind(peer=peer, reason="offline", entries=missing, since_ms=mate.since_ms))
        elif mate.is_alive and (missing or peer not in told):
            found.append(Behind(peer=peer, reason="behind", entries=missing))
    return found


def _line(view: View) -> list[str]:
    """Everybody who may hold others' logs: the coordinator, then its successors."""
    line = dict.fromkeys([*filter(None, (view.coordinator,)), *view.succession])
    return [peer for peer in line if may_hold(peer, view)]
