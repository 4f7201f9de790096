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

    `deadline_s` is what the caller sent in `x-llm-router-timeout` (seconds from now), or None. `explain`: the caller
    wants to see every candidate with its score (`x-llm-router-explain: 1`).
    """

    ip: str
    key_id: str | None = None
    is_local: bool = False
    background: bool = False
    deadline_s: float | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFacet:
    """Making tokens. All raise `inference.errors`.

    `generate` yields `Chunk`s: the first carries `started` (the request has a slot), the last one
    `finish_reason`. Closing the iterator (`aclose`) cancels the request down to its slot.
    """

    generate: Callable[[Generation, Caller], AsyncIterator[Chunk]]
    embed: Callable[[EmbeddingRequest, Caller], Awaitable[Embeddings]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarder:
    """The peer that forwarded a request to this one, and what it says of it (`x-mesh-context`).

    `peer` is the id its certificate proves, "" for this peer's own clients. `fairness_key` names the caller at the
    ingress. `may_refuse`: a holder whose slots are full answers 429 instead of queueing; the ingress tries another.
    `is_resumed`: it had a slot somewhere and lost it, so it waits at the head of the queue. `deadline_s` from now.
    `sha256`: the model file it must be made with.
    """

    peer: str
    fairness_key: str = ""
    background: bool = False
    deadline_s: float | None = None
    attempt: int = 1
    may_refuse: bool = False
    is_resumed: bool = False
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HopFacet:
    """Making tokens for another peer of the mesh: on this machine only, never forwarded again.

    `generate` yields chunks as `ChatFacet.generate` does, also those without text (tokens that are held back).
    `load` is what rides on answers: opaque to `web`, msgpack of mesh.facts.
    """

    generate: Callable[[Generation, Forwarder], AsyncIterator[Chunk]]
    embed: Callable[[EmbeddingRequest, Forwarder], Awaitable[Embeddings]]
    load: Callable[[], bytes]
    heartbeat_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshFacet:
    """The mesh as people see and govern it. Dicts are JSON-ready. `who` is an id, a unique prefix of six, or a name.

    What cannot be done raises `inference.errors` (404 for a peer nobody knows, 409 where the state forbids it).
    """

    overview: Callable[[], dict[str, Any]]  # /api/mesh, addresses included; the route takes them out
    agents: Callable[[], list[dict[str, Any]]]  # /api/agents, likewise
    peer: Callable[[str], dict[str, Any]]  # peers show
    identity: Callable[[], dict[str, Any]]
    joins: Callable[[], list[dict[str, Any]]]  # who asks to join now: {id, name, digits, seconds_left, address}
    door: Callable[[float], dict[str, Any]]  # minutes from now, 0 shuts it
    approve: Callable[[str], Awaitable[dict[str, Any]]]  # six digits, or the id of the request
    deny: Callable[[str], Awaitable[dict[str, Any]]]
    invite: Callable[[int, float], Awaitable[dict[str, Any]]]  # uses, hours -> {line, command, expires_at}
    join: Callable[[str], Awaitable[dict[str, Any]]]  # a token line, or an address
    leave: Callable[[], Awaitable[dict[str, Any]]]
    rename: Callable[[str, str], Awaitable[dict[str, Any]]]
    revoke: Callable[[str], Awaitable[dict[str, Any]]]
    trust: Callable[[str], Awaitable[dict[str, Any]]]
    well_known: Callable[[], dict[str, Any]]  # {version, mesh, peer_port}


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
    holders: tuple[str, ...] = ()  # names of the peers that have it, this one first


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
    mesh: MeshFacet | None = None  # None in tests of a peer that has none
    limits: Limits = field(default_factory=Limits)
    stop: Callable[[], None] = lambda: None  # the CLI's `down`
