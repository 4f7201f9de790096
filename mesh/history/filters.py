"""What is asked of the history, read from the query of a URL. Pure: the present comes in as `now_ms`.

Parameters that are not known are ignored; a page or a page length that is none counts as the default, as the contract
has it. Everything else that cannot be meant raises InvalidRequest naming its parameter.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass

from inference.errors import InvalidRequest
from inference.openai.fields import bad_value, not_one_of
from mesh.history.projection import STATES, TIME_MS_MAX
from mesh.moments import ALLOWED, moment

PER_PAGE = (10, 25, 50, 100)
PAGE_MAX = 10**9
TEXT_CHARACTERS_MAX = 1000
DAY_MS = 86_400_000

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_AS_OF = re.compile(r"([0-9a-f]{1,16})\.([0-9a-f]{1,16})\.([0-9a-f]{1,16})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Times in unix ms, the first one included, the other not. None: no bound."""

    from_ms: int | None = None
    to_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which requests. Empty: all of them."""

    span: Span = Span()
    model: str = ""
    agent: str = ""
    ingress: str = ""
    key: str = ""
    status: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilters:
    """Which things that were done. Empty: all of them."""

    span: Span = Span()
    actor: str = ""
    action: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsOf:
    """The state of one file at one time: its first `arrived` records and endings, of requests not after `until_ms`.

    Numbers of arrivals mean nothing in another peer's `file`; the time does.
    """

    arrived: int
    file: str
    until_ms: int

    def __str__(self) -> str:
        return f"{self.arrived:x}.{self.file}.{self.until_ms:x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of the answer, and of when."""

    number: int = 1
    size: int = 10
    as_of: AsOf | None = None

    @property
    def offset(self) -> int:
        """How many come before it."""
        return (self.number - 1) * self.size


def filters_of(query: Mapping[str, str], now_ms: int) -> Filters:
    """The filters of a list or of an export. Raises InvalidRequest."""
    status = _text(query, "status")
    if status and status not in STATES:
        raise not_one_of("status", status, STATES)
    return Filters(
        span=span_of(query, now_ms),
        model=_text(query, "model"),
        agent=_text(query, "agent"),
        ingress=_text(query, "ingress"),
        key=_text(query, "key"),
        status=status,
        text=_text(query, "q"),
    )


def audit_filters_of(query: Mapping[str, str], now_ms: int) -> AuditFilters:
    """The filters of the list of what was done. Raises InvalidRequest."""
    return AuditFilters(
        span=span_of(query, now_ms),
        actor=_text(query, "actor"),
        action=_text(query, "action"),
        text=_text(query, "q"),
    )


def span_of(query: Mapping[str, str], now_ms: int) -> Span:
    """`from` and `to`. A date alone is the whole day in UTC, as `to` up to its end. Raises InvalidRequest."""
    return Span(from_ms=_time(query, "from", now_ms), to_ms=_time(query, "to", now_ms))


def page_of(query: Mapping[str, str]) -> Page:
    """The page. Raises InvalidRequest for an `as_of` that no answer had."""
    number = _number(query.get("page", ""), default=1)
    size = _number(query.get("per_page", ""), default=PER_PAGE[0])
    return Page(
        number=min(max(number, 1), PAGE_MAX), size=size if size in PER_PAGE else PER_PAGE[0], as_of=_as_of(query)
    )


def _as_of(query: Mapping[str, str]) -> AsOf | None:
    text = query.get("as_of", "")
    if not text:
        return None
    match = _AS_OF.fullmatch(text)
    if match is None or int(match[1], 16) >= 1 << 63 or int(match[3], 16) > TIME_MS_MAX:
        raise bad_value("as_of", "it is not the as_of of an answer; leave it out to see the newest")
    return AsOf(arrived=int(match[1], 16), file=match[2], until_ms=int(match[3], 16))


def _text(query: Mapping[str, str], name: str) -> str:
    text = query.get(name, "").strip()
    if len(text) > TEXT_CHARACTERS_MAX:
        raise bad_value(name, f"it has {len(text):,} characters, {TEXT_CHARACTERS_MAX:,} is the limit")
    if "\0" in text or (not text.isascii() and text != text.encode("utf-8", "replace").decode()):
        raise bad_value(name, "it holds NUL or half a surrogate pair")
    return text


def _time(query: Mapping[str, str], name: str, now_ms: int) -> int | None:
    text = query.get(name, "").strip()
    if not text:
        return None
    try:
        if _DATE.fullmatch(text):
            day = datetime.datetime.fromisoformat(f"{text}T00:00:00+00:00")
            found = int(day.timestamp() * 1000) + (DAY_MS if name == "to" else 0)
        else:
            found = round(moment(text, now=now_ms / 1000) * 1000)
    except (ValueError, OverflowError) as error:
        reason = str(error) if "zone" in str(error) else f"allowed is {ALLOWED}, or a date"
        raise _bad_time(name, text, reason) from None
    if not 0 <= found <= TIME_MS_MAX:
        raise _bad_time(name, text, "it is before 1970 or after 9999")
    return found


def _bad_time(name: str, text: str, reason: str) -> InvalidRequest:
    return bad_value(name, f"{text[:40]!r} is no time: {reason}")


def _number(text: str, *, default: int) -> int:
    text = text.strip()
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else default
