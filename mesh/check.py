"""A finding of the doctor, and how many checks are run: beside each other, none for longer than it may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]
Checks = Callable[[], "list[Check]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding: `warn` is worth knowing, `fail` stops the peer or makes it useless.

    `fix` says how to mend it; beside an `ok` it says what to do should something be wrong all the same.
    """

    name: str
    state: State
    found: str
    fix: str = ""


def made(checks: Sequence[tuple[str, Checks]], *, within_s: float) -> list[Check]:
    """Every check's findings, in the order given. One that breaks or is not done in time is a finding itself.

    Each has a thread that nobody waits for in the end: a disk or a driver that hangs must not hang the doctor.
    """
    found: list[list[Check] | None] = [None] * len(checks)

    def make(number: int, name: str, check: Checks) -> None:
        found[number] = _guarded(name, check)

    threads = [
        threading.Thread(target=make, args=(number, name, check), name=f"check {name}", daemon=True)
        for number, (name, check) in enumerate(checks)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"could not be checked within {within_s:g} s"
    return [
        check
        for (name, _), ours in zip(checks, found, strict=True)
        for check in (ours if ours is not None else [_unknown(name, late)])
    ]


def _guarded(name: str, check: Checks) -> list[Check]:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a broken check is a finding; the others go on
        return [_unknown(name, f"could not be checked: {type(error).__name__}: {error}")]


def _unknown(name: str, found: str) -> Check:
    return Check(name=name, state="warn", found=found, fix="run it again; if it stays so, report this line")
