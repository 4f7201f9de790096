"""What the HTTP surface is given: one frozen dataclass of facets, each a few callables.

`web` does not import the peer. `mesh/node.py` fills these with the real thing, tests with lambdas.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from inference.chat import Chunk, EmbeddingRequest, Embeddings, Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, as far as the guards know.

    `deadline_s` is what the caller sent in `x-llm-router-timeout` (seconds from now), or None.
    """

    ip: str
    key_id: str | None = None
    is_local: bool = False
    background: bool = False
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFacet:
    """Making tokens. All raise `inference.errors`.

    `generate` yields `Chunk`s: the first carries `started` (the request has a slot), the last one
    `finish_reason`. Closing the iterator (`aclose`) cancels the request down to its slot.
    """

    generate: Callable[[Generation, Caller], AsyncIterator[Chunk]]
    embed: Callable[[EmbeddingRequest, Caller], Awaitable[Embeddings]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model as `/v1/models` shows it. Sizes in bytes, `created` in unix seconds."""

    id: str
    created: int
    size_bytes: int
    ready: bool
    loaded: bool
    context: int | None = None
    capabilities: tuple[str, ...] = ("chat", "completion")
    quantization: str | None = None
    sha256: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsFacet:
    """The models this peer knows. `resolve` answers exact id, alias or unique file stem, or raises ModelNotFound."""

    list: Callable[[], list[ModelView]]
    resolve: Callable[[str], ModelView]
    load: Callable[[str], Awaitable[None]]
    unload: Callable[[str], Awaitable[bool]]
    import_file: Callable[[str, str | None], Awaitable[ModelView]]
    remove: Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFacet:
    """What this peer says of itself. `ready`: listener and store are open. `status` and `ps` are JSON-ready."""

    name: str
    version: str
    ready: Callable[[], bool]
    status: Callable[[], dict[str, Any]]
    ps: Callable[[], dict[str, Any]]
    metrics: Callable[[], bytes]
    observe: Callable[[str, str, int, float], None]  # route, method, status, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may talk to the listener. `hosts` is lower case, without port; `control_token` is the CLI's."""

    hosts: frozenset[str]
    origins: frozenset[str] = frozenset()
    loopback: Literal["open", "key"] = "open"
    open_to_lan: bool = False
    control_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one connection and one request. Times in seconds, sizes in bytes."""

    body_bytes: int = 32 * 1024 * 1024
    bodies_bytes: int = 512 * 1024 * 1024  # of all requests whose body is being read or parsed
    header_bytes: int = 16 * 1024
    headers_s: float = 10.0
    body_s: float = 30.0
    heartbeat_s: float = 10.0
    connections: int = 12_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything the HTTP surface can do."""

    chat: ChatFacet
    models: ModelsFacet
    state: StateFacet
    access: Access
    limits: Limits = field(default_factory=Limits)
    stop: Callable[[], None] = lambda: None  # the CLI's `down`
