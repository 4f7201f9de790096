"""One line of the route table: what is asked, who answers, who may ask, and what `/openapi.json` says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from web.border import Handler
from web.guards import Policy

Owner = Literal["coordinator", "accounts", "peer"]
"""Who answers, where it is not the peer that was asked: the coordinator, or the peer that `{id}` names.

"accounts" is the coordinator too, unless that is a machine which nobody confirmed: it is not told of passwords and keys
(`PassingFacet.keeps_accounts`)."""
COORDINATOR: Final = "coordinator"
ACCOUNTS: Final = "accounts"
PEER: Final = "peer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of a route. `shape` is that of its JSON (web.shapes), `media` are other content types it may have."""

    shape: Any = None
    media: tuple[str, ...] = ()
    description: str = ""
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a route takes and answers. `query` and `body` are shapes; `errors` come on top of those any route has."""

    summary: str
    tag: str
    answers: Mapping[int, Answer]
    query: Any = None
    body: Any = None
    is_body_optional: bool = False
    errors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path with what belongs to them. `owned`: see `Owner`; None: every peer answers by itself."""

    method: str
    path: str
    handler: Handler
    policy: Policy
    operation: Operation | None = field(default=None, compare=False)
    owned: Owner | None = None


def both_spellings(
    method: str,
    path: str,
    handler: Handler,
    policy: Policy,
    operation: Operation | None = None,
    owned: Owner | None = None,
) -> list[Route]:
    """The route under `/api/agents`, and the same one under `/api/nodes`, as scripts for the reference call it."""
    assert path.startswith("/api/agents"), path
    paths = (path, path.replace("/api/agents", "/api/nodes", 1))
    return [Route(method, spelling, handler, policy, operation, owned) for spelling in paths]
