"""What lists of past things share: moments as options, pages of any length, and times as people read them."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from mesh.cli.client import Peer, with_query
from mesh.cli.failure import Exit, Failure
from mesh.cli.output import count
from mesh.moments import ALLOWED, moment, rfc_3339

PAGE_SIZES = (10, 25, 50, 100)
"""What the API has; other lengths are put together from its largest."""
LIMIT_MAX = 10_000


def as_moment(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """For options: a time ago, RFC 3339 or unix seconds, this machine's where no zone is named; as RFC 3339 in UTC."""
    if value is None:
        return None
    try:
        return rfc_3339(moment(value, now=time.time(), is_local=True))
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"{value!r} is not {ALLOWED}.", ctx, param) from None


def with_pages(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--page` and `--limit`."""
    page = click.option("--page", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="Which page.")
    limit = click.option(
        "--limit",
        type=click.IntRange(1, LIMIT_MAX),
        default=50,
        show_default=True,
        metavar="N",
        help="How many on a page.",
    )
    return page(limit(command))


def fetched(peer: Peer, path: str, query: Mapping[str, object], *, field: str, page: int, limit: int) -> dict[str, Any]:
    """One page of that length: what the API answers, with the items under `field`.

    A page that takes several calls is of one moment: `as_of` of the first answer goes with the others.
    """
    if limit in PAGE_SIZES:
        return _page(peer, path, {**query, "page": page, "per_page": limit}, field)
    size = PAGE_SIZES[-1]
    first, last = (page - 1) * limit, page * limit
    answer: dict[str, Any] = {}
    items: list[Any] = []
    asked = dict(query)
    for number in range(first // size, (last - 1) // size + 1):
        found = _page(peer, path, asked | {"page": number + 1, "per_page": size}, field)
        answer = answer or found
        if answer.get("as_of") is not None:
            asked["as_of"] = answer["as_of"]
        items += found[field]
        if len(found[field]) < size:
            break
    begins = first - first // size * size
    return answer | {field: items[begins : begins + limit], "page": page, "per_page": limit}


def footer(answer: Mapping[str, Any], shown: int, noun: str) -> str:
    """`51-100 of 1,234 requests; more: --page 3`."""
    total, page, limit = int(answer["total_count"]), int(answer["page"]), int(answer["per_page"])
    if not shown:
        return f"no {noun} on this page; there are {total:,}" if total else f"no {noun} found"
    first = (page - 1) * limit + 1
    line = f"{first:,}-{first + shown - 1:,} of {total:,} {noun}s" if total > shown else count(shown, noun)
    return line + (f"; more: --page {page + 1}" if first + shown - 1 < total else "")


def local_time(value: object) -> str:
    """A moment of an answer (RFC 3339, or unix seconds) on this machine's clock; a dash for what is none."""
    if isinstance(value, str):
        try:
            return _shown(datetime.datetime.fromisoformat(value).timestamp())
        except (ValueError, OverflowError, OSError):
            return value or "-"
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return _shown(float(value))
        except (ValueError, OverflowError, OSError):
            return str(value)
    return "-"


def _shown(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _page(peer: Peer, path: str, query: Mapping[str, object], field: str) -> dict[str, Any]:
    answer = peer.get(with_query(path, query))
    if not isinstance(answer, dict) or not isinstance(answer.get(field), list) or "total_count" not in answer:
        raise Failure("the peer's answer is not understood", fix="llm-router doctor", code=Exit.UNREACHABLE)
    return answer
