"""Which models may not be loaded now, because of how their workers ended. Pure: time comes in as `now`.

    the file may be to blame (a fault in native code)   twice within an hour, no success between: an hour of rest
    killed from outside (the kernel, a person)          three times in a row: 30 s, so that memory can come back
    the load failed                                     10 s, doubled each time in a row, at most 5 minutes

A request that was answered to the end clears the record. Rules of the wider mesh are not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CRASHES = 2
CRASH_WINDOW_S = 3600.0
CRASH_REST_S = 3600.0
KILLS = 3
KILL_REST_S = 30.0
LOAD_REST_S = 10.0
LOAD_REST_S_MAX = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a model rests and until when. `is_quarantined`: its file is suspected, not the circumstances."""

    reason: str
    until: float
    is_quarantined: bool = False


@dataclass(slots=True)
class _Record:
    crashed_at: list[float] = field(default_factory=list)
    kills: int = 0
    failures: int = 0
    refusal: Refusal | None = None


class Quarantine:
    """The records of every model that was in trouble since its last success."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def crashed(self, model: str, reason: str, now: float) -> None:
        """Its worker ended in a way that the file may have caused."""
        record = self._records.setdefault(model, _Record())
        record.crashed_at = [at for at in record.crashed_at if now - at < CRASH_WINDOW_S] + [now]
        if len(record.crashed_at) >= CRASHES:
            text = f"its worker crashed {len(record.crashed_at)} times within an hour and now rests; the last {reason}"
            record.refusal = Refusal(reason=text, until=now + CRASH_REST_S, is_quarantined=True)

    def killed(self, model: str, reason: str, now: float) -> None:
        """Its worker was ended from outside."""
        record = self._records.setdefault(model, _Record())
        record.kills += 1
        if record.kills >= KILLS:
            text = f"its worker {reason}, {record.kills} times in a row; is this machine short of memory?"
            self._rest(record, Refusal(reason=text, until=now + KILL_REST_S))

    def load_failed(self, model: str, reason: str, now: float) -> None:
        """It could not be loaded."""
        record = self._records.setdefault(model, _Record())
        rest_s = min(LOAD_REST_S * 2.0 ** min(record.failures, 10), LOAD_REST_S_MAX)
        record.failures += 1
        self._rest(record, Refusal(reason=reason, until=now + rest_s))

    def succeeded(self, model: str) -> None:
        """A request was answered to the end."""
        self._records.pop(model, None)

    forgive = succeeded
    """Somebody put the file right, or says to try again."""

    def refusal(self, model: str, now: float) -> Refusal | None:
        """Why `model` may not be loaded at `now`, or None."""
        record = self._records.get(model)
        if record is None or record.refusal is None or now >= record.refusal.until:
            return None
        return record.refusal

    def resting(self, now: float) -> dict[str, Refusal]:
        """Every model that may not be loaded at `now`."""
        return {model: refusal for model in self._records if (refusal := self.refusal(model, now))}

    @staticmethod
    def _rest(record: _Record, refusal: Refusal) -> None:
        if record.refusal is None or record.refusal.until < refusal.until:
            record.refusal = refusal
