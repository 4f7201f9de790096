"""The query of a URL, read under limits: each name once, and what a route knows in the form it wants."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from inference.errors import InvalidRequest
from inference.openai.fields import bad_value
from web.services import Query
from web.shapes import checked_query

PARAMETERS_MAX = 32


def query_of(request: web.Request, shape: Any) -> Query:
    """The parameters as they were sent. Raises InvalidRequest when one is twice there, or not what `shape` says."""
    names = list(request.query)
    if len(names) > PARAMETERS_MAX:
        raise InvalidRequest(f"The URL has {len(names)} parameters, the limit is {PARAMETERS_MAX}.")
    twice = next((name for name in names if len(request.query.getall(name)) > 1), None)
    if twice is not None:
        raise bad_value(twice[:40] if twice.isprintable() else "query", "it is there more than once")
    query = dict(request.query)
    unprintable = next((name for name, value in query.items() if not (name + value).isprintable()), None)
    if unprintable is not None:
        name = unprintable[:40] if unprintable.isprintable() else "query"
        raise bad_value(name, "it holds characters that cannot be printed")
    checked_query(shape, query)
    return query
