"""How a registered server is: what its watcher decides, and what it tells everybody else. Pure.

The watcher is the coordinator, or for a server that only one peer can reach, that peer. A server lives while it says so
(heartbeats, with their load) or while it answers the watcher's probes; it is offline when it has been silent for longer
than LLM_ROUTER_NODE_TIMEOUT *and* a probe fails. Ollama and its like send no heartbeats, so the probe decides alone.

What the watcher knows travels as one gossip fact (`agents`), with ages instead of times: clocks differ. A server's last
POINTS_MAX reports stay with the watcher.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from gossip.codec import Codec, CodecError
from mesh.adopted.agent import AGENTS_MAX
from mesh.adopted.bodies import ACTIVE_MAX, RESPONSE_MS_MAX, Report

AGENTS = "agents"
"""The key of the fact."""
FACT_BYTES_MAX = 64 * 1024
POINTS_MAX = 360
STALE_S = 120.0
"""What a server said of its load longer ago says nothing."""
AGE_S_MAX = 10 * 365 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One report, for the curves of the dashboard. `at` is unix seconds."""

    at: float
    report: Report


@dataclass(slots=True, kw_only=True)
class Standing:
    """One server as its watcher sees it. Times are the loop's; `heard_at` of its last heartbeat or registration,
    `seen_at` of its last sign of life."""

    is_online: bool
    online_since: float
    heard_at: float
    seen_at: float
    report: Report = field(default_factory=Report)
    reported_at: float | None = None
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=POINTS_MAX))

    @classmethod
    def registered(cls, now: float) -> Standing:
        """It was asked a moment ago, and answered."""
        return cls(is_online=True, online_since=now, heard_at=now, seen_at=now)

    @classmethod
    def found(cls, sight: Sight) -> Standing:
        """As the watcher before this one saw it."""
        return cls(
            is_online=sight.is_online,
            online_since=sight.online_since,
            heard_at=sight.seen_at,
            seen_at=sight.seen_at,
            report=sight.report,
            reported_at=sight.reported_at,
        )

    def heartbeat(self, report: Report, now: float, at: float) -> bool:
        """It says that it lives, and how it is; what it leaves out stays as it was. True if it was offline.

        `at` is the wall clock.
        """
        self.heard_at = now
        if any(getattr(report, one.name) is not None for one in fields(Report)):
            self.report = merged(self.report if self._is_fresh(now) else Report(), report)
            self.reported_at = now
            self.points.append(Point(at=at, report=self.report))
        return self._alive(now)

    def probed(self, is_there: bool, now: float, timeout_s: float) -> bool:
        """A probe ended. True if it came back, or is lost now."""
        if is_there:
            return self._alive(now)
        was_online = self.is_online
        if now - self.heard_at > timeout_s:
            self.is_online = False
        return was_online and not self.is_online

    def _alive(self, now: float) -> bool:
        was_offline = not self.is_online
        if was_offline:
            self.is_online, self.online_since = True, now
        self.seen_at = now
        return was_offline

    def _is_fresh(self, now: float) -> bool:
        return self.reported_at is not None and now - self.reported_at <= STALE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One server as any peer sees it. Times are of this peer's loop."""

    is_online: bool
    online_since: float
    seen_at: float
    report: Report
    reported_at: float | None

    def fresh(self, now: float) -> Report | None:
        """What it said of its load, if that is not stale."""
        return self.report if self.reported_at is not None and now - self.reported_at <= STALE_S else None


def merged(before: Report, now: Report) -> Report:
    """`now`, and of `before` what it does not say."""
    told = {one.name: getattr(now, one.name) for one in fields(Report)}
    return Report(**{name: getattr(before, name) if value is None else value for name, value in told.items()})


def seen(standing: Standing) -> Sight:
    """What the watcher itself knows."""
    return Sight(
        is_online=standing.is_online,
        online_since=standing.online_since,
        seen_at=standing.seen_at,
        report=standing.report,
        reported_at=standing.reported_at,
    )


def together(sights: Iterable[Sight]) -> Sight | None:
    """Of what several watchers say: it lives if one of them knows it, and its newest report counts."""
    found = list(sights)
    if not found:
        return None
    online = [sight for sight in found if sight.is_online] or found
    newest = max(found, key=lambda s: -1.0 if s.reported_at is None else s.reported_at)
    return Sight(
        is_online=online[0].is_online,
        online_since=min(sight.online_since for sight in online),
        seen_at=max(sight.seen_at for sight in found),
        report=newest.report,
        reported_at=newest.reported_at,
    )


# -- the fact


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One server; ages in seconds when the fact was made. None where it did not say."""

    id: str
    is_online: bool
    online_s: float
    seen_ago_s: float
    reported_ago_s: float | None
    cpu: float | None
    memory: float | None
    gpu: float | None
    active: int | None
    response_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Agents:
    rows: tuple[_Row, ...]


# A tag is a version of the format; fields may be added at the end of a row.
_CODEC = Codec({1: _Agents})


def news_out(standings: dict[str, Standing], now: float) -> bytes:
    """The fact; the last ones are left out where there is no room for all."""
    rows = [_row(agent_id, standing, now) for agent_id, standing in sorted(standings.items())][:AGENTS_MAX]
    data = _CODEC.encode(_Agents(rows=tuple(rows)))
    while len(data) > FACT_BYTES_MAX:
        rows = rows[: min(len(rows) - 1, len(rows) * FACT_BYTES_MAX // len(data))]
        data = _CODEC.encode(_Agents(rows=tuple(rows)))
    return data


def news_in(data: bytes, received_at: float) -> dict[str, Sight]:
    """What a watcher tells, by id; nothing when it is nothing that a peer of ours would say."""
    if len(data) > FACT_BYTES_MAX:
        return {}
    try:
        told = _CODEC.decode(data)
    except CodecError:
        return {}
    assert isinstance(told, _Agents)
    return {row.id: _sight(row, received_at) for row in told.rows[:AGENTS_MAX] if _is_sane(row)}


def _row(agent_id: str, standing: Standing, now: float) -> _Row:
    report = standing.report
    return _Row(
        id=agent_id,
        is_online=standing.is_online,
        online_s=_age(now - standing.online_since),
        seen_ago_s=_age(now - standing.seen_at),
        reported_ago_s=None if standing.reported_at is None else _age(now - standing.reported_at),
        cpu=report.cpu_percent,
        memory=report.memory_percent,
        gpu=report.gpu_percent,
        active=report.active_requests,
        response_ms=report.response_ms,
    )


def _sight(row: _Row, received_at: float) -> Sight:
    report = Report(
        cpu_percent=row.cpu,
        memory_percent=row.memory,
        gpu_percent=row.gpu,
        active_requests=row.active,
        response_ms=row.response_ms,
    )
    return Sight(
        is_online=row.is_online,
        online_since=received_at - row.online_s,
        seen_at=received_at - row.seen_ago_s,
        report=report,
        reported_at=None if row.reported_ago_s is None else received_at - row.reported_ago_s,
    )


def _age(seconds: float) -> float:
    return round(min(AGE_S_MAX, max(0.0, seconds)), 1)


def _is_sane(row: _Row) -> bool:
    ages = (row.online_s, row.seen_ago_s, row.reported_ago_s or 0.0)
    percents = (row.cpu or 0.0, row.memory or 0.0, row.gpu or 0.0)
    return (
        len(row.id) == 36
        and all(0 <= age <= AGE_S_MAX for age in ages)
        and all(0 <= percent <= 100 for percent in percents)
        and (row.active or 0) <= ACTIVE_MAX
        and 0 <= (row.response_ms or 0.0) <= RESPONSE_MS_MAX
    )
