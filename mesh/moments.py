"""A moment as people and programs write one: `10m` ago, RFC 3339, unix seconds. Pure: the present comes in as `now`."""

from __future__ import annotations

import datetime
import re

ALLOWED = "a time ago (30s, 10m, 2h, 7d), RFC 3339 (2026-11-23T14:03:00Z) or unix seconds"
"""For messages and help."""

_AGO = re.compile(r"(\d{1,6})\s*([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNIX = re.compile(r"\d{9,12}(?:\.\d{1,9})?", re.ASCII)
# A plus sign that was not escaped in a URL arrives as a space.
_RFC_3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?)([Zz]|[+\- ]\d{2}:\d{2})?)?", re.ASCII
)


def moment(text: str, *, now: float, is_local: bool = False) -> float:
    """Unix seconds. A time that names no zone is one of this machine's clock if `is_local`, else refused.

    Raises ValueError.
    """
    text = text.strip()
    if match := _AGO.fullmatch(text):
        return now - int(match[1]) * _SECONDS[match[2]]
    if _UNIX.fullmatch(text):
        return float(text)
    match = _RFC_3339.fullmatch(text)
    if match is None:
        raise ValueError(f"allowed is {ALLOWED}")
    day, clock, offset = match.groups()
    if offset is None and not is_local:
        raise ValueError("a time without its zone; put Z or an offset such as +01:00 behind it")
    written = f"{day}T{clock or '00:00'}{(offset or '').upper().replace(' ', '+')}"
    try:
        return datetime.datetime.fromisoformat(written).timestamp()
    except (OverflowError, OSError):  # a year that this machine's clock cannot have
        raise ValueError("out of range") from None


def rfc_3339(seconds: float) -> str:
    """Unix seconds as `2026-11-23T14:03:00.125Z`."""
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
