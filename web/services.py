"""What the HTTP surface is given: one frozen dataclass of facets, each a few callables.

`web` does not import the peer. `mesh/node.py` fills these with the real thing, tests with lambdas.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from inference.chat import Chunk, EmbeddingRequest, Embeddings, Generation, Started, Usage

Role = Literal["admin", "viewer"]
Recording = Literal["full", "metadata", "off"]
"""What history keeps of a request: all, all but the bodies, nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, as far as the guards know.

    `key_id` names the API key ("control": the token of this machine's command line), `username` and `role` the login.
    `scopes` is what it may do, `models` the globs of models it may use (empty: all), `recording` what its key says of
    its requests in history (None: as the peer is set). `deadline_s` is what the caller sent in `x-llm-router-timeout`
    (seconds from now), or None. `explain`: the caller wants to see every candidate with its score
    (`x-llm-router-explain: 1`).
    """

    ip: str
    key_id: str | None = None
    key_name: str | None = None
    user_id: str | None = None
    username: str | None = None
    role: Role | None = None
    session_id: str | None = None
    scopes: frozenset[str] = frozenset()
    models: tuple[str, ...] = ()
    recording: Recording | None = None
    is_local: bool = False
    background: bool = False
    deadline_s: float | None = None
    explain: bool = False

    @property
    def is_admin(self) -> bool:
        """Whether it may do everything: a login as admin, a key with the scope `admin`, the control token."""
        return self.key_id == "control" or self.role == "admin" or "admin" in self.scopes


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
class Asked:
    """A request for tokens as history keeps it. `body` is the JSON object as it was sent; `is_kept` False: `store`
    was false, so nothing of it is recorded."""

    request_id: str
    kind: Literal["chat", "generate", "embeddings"]
    model: str
    body: Mapping[str, Any]
    is_stream: bool
    caller: Caller
    is_kept: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request ended. `body`: the whole answer as JSON, streams put together; None when there is none."""

    status: Literal["success", "error", "cancelled"]
    http_status: int
    body: Mapping[str, Any] | None = None
    message: str | None = None
    code: str | None = None
    usage: Usage | None = None


class Record(Protocol):
    """One request in history, from its admission to its end. Nothing here ever fails the request."""

    def started(self, started: Started) -> None:
        """A peer makes the answer; called again when another goes on with it."""

    def first_token(self) -> None:
        """The answer has begun."""

    async def ended(self, outcome: Outcome) -> None:
        """Returns when the end is on the disk, or after 250 ms. Await it before the last chunk is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A file on its way to a browser."""

    filename: str
    content_type: str
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditNote:
    """Something a person or a program did. `action` is `noun.verb`; `detail` never holds a secret."""

    action: str
    caller: Caller
    target: str = ""
    detail: str = ""


Query = Mapping[str, str]
"""The query of a URL, each name once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFacet:
    """Requests that were answered, and what people did. `begin` and `audit` are for every peer, into its own log; the
    others answer from what this peer holds of all logs, and are asked at the coordinator.

    Answers are JSON-ready. Raise InvalidRequest naming the parameter, or ModelUnavailable when the store cannot answer.
    """

    begin: Callable[[Asked], Record]
    audit: Callable[[AuditNote], None]
    records: Callable[[Query], Awaitable[dict[str, Any]]]  # {records, total_count, page, per_page, as_of, incomplete}
    record: Callable[[str], Awaitable[dict[str, Any] | None]]
    export: Callable[[Query], Awaitable[Export]]
    stats: Callable[[Query], Awaitable[dict[str, Any]]]
    overview: Callable[[Query], Awaitable[dict[str, Any]]]
    audits: Callable[[Query], Awaitable[dict[str, Any]]]  # {entries, total_count, page, per_page}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who a secret belongs to. `refusal`: why it does not count (revoked, expired), in words for its owner."""

    key_id: str | None = None
    key_name: str | None = None
    user_id: str | None = None
    username: str | None = None
    role: Role | None = None
    session_id: str | None = None
    csrf: str | None = None
    scopes: frozenset[str] = frozenset()
    models: tuple[str, ...] = ()
    recording: Recording | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A new session. `token` is what the cookie holds."""

    user: Mapping[str, Any]
    token: str
    csrf: str
    expires_in_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """A request that the limits of its key let in. `headers` are for its answer; `ended` is told what it took, once."""

    headers: Mapping[str, str] = field(default_factory=dict)
    ended: Callable[[int], None] = lambda tokens: None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountsFacet:
    """Keys, users, sessions. `of_key` and `of_session` answer from memory on every peer; logins, the set-up and limits
    are the business of the peer that is asked; what changes users and keys is asked at the coordinator.

    `who` is an id or a name. Answers are JSON-ready and hold no hash; `create_key`'s alone holds the key, once. Raise
    `inference.errors`.
    """

    of_key: Callable[[str], Principal | None]
    of_session: Callable[[str], Principal | None]
    spend: Callable[[Caller, int], Awaitable[Spending]]  # of about so many tokens; raises 429 above the key's limits
    revoked: Callable[[Caller], bool]  # asked while its requests run
    on_change: Callable[[Callable[[], None]], None]  # calls it when somebody may have been revoked
    login: Callable[[str, str, Caller], Awaitable[Login]]
    logout: Callable[[Caller], Awaitable[None]]
    setup: Callable[[Caller, str | None], dict[str, Any]]  # the code, if one was sent; {needed, machines: [{id, name}]}
    claim: Callable[[Mapping[str, Any], Caller], Awaitable[Login]]
    change_password: Callable[[Mapping[str, Any], Caller], Awaitable[None]]  # one's own
    users: Callable[[], list[dict[str, Any]]]
    user: Callable[[str], dict[str, Any]]
    create_user: Callable[[Mapping[str, Any], Caller], Awaitable[dict[str, Any]]]
    change_user: Callable[[str, Mapping[str, Any], Caller], Awaitable[dict[str, Any]]]
    delete_user: Callable[[str, Caller], Awaitable[dict[str, Any]]]  # who it was
    keys: Callable[[], list[dict[str, Any]]]
    key: Callable[[str], dict[str, Any]]
    create_key: Callable[[Mapping[str, Any], Caller], Awaitable[dict[str, Any]]]
    change_key: Callable[[str, Mapping[str, Any], Caller], Awaitable[dict[str, Any]]]
    delete_key: Callable[[str, Caller], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsFacet:
    """Peers and registered servers as the management API has them. `who` is an id, a unique prefix of six, or a name.

    What changes anything is asked at the coordinator. The first value of `register` is the HTTP status, 201 or 200.
    """

    register: Callable[[Mapping[str, Any], Caller], Awaitable[tuple[int, dict[str, Any]]]]
    heartbeat: Callable[[str | None, Mapping[str, Any]], Awaitable[None]]  # the agent's token, the body
    metrics: Callable[[str, Mapping[str, Any]], Awaitable[None]]
    settings: Callable[[str, Mapping[str, Any], Caller], Awaitable[dict[str, Any]]]
    disconnect: Callable[[str, Caller], Awaitable[None]]
    enable: Callable[[str, Caller], Awaitable[None]]
    delete: Callable[[str, bool, Caller], Awaitable[None]]  # True: also a peer that is online
    mesh_settings: Callable[[], dict[str, Any]]
    change_mesh_settings: Callable[[Mapping[str, Any], Caller], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A request that another peer answers: the coordinator, or the one it is about. `target` is path and query."""

    method: str
    target: str
    body: bytes
    content_type: str
    caller: Caller
    request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedAnswer:
    """What came back. `chunks` is read to its end inside the context that gave it."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassingFacet:
    """How a request reaches the peer that answers it. One hop: who gets a passed request answers or refuses.

    `to_owner` and `to_peer` raise ModelUnavailable (503 with Retry-After) when there is nobody to ask, and
    ModelNotFound-like errors for a peer nobody knows. A write that was passed on can be read here when it returns.
    """

    is_owner: Callable[[], bool]
    to_owner: Callable[[Passed], AbstractAsyncContextManager[PassedAnswer]]
    is_this_peer: Callable[[str], bool]  # `who` means this very peer
    to_peer: Callable[[str, Passed], AbstractAsyncContextManager[PassedAnswer]]
    keeps_accounts: Callable[[], bool] = lambda: False  # this peer changes users and keys itself, whoever coordinates


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsFacet:
    """This peer's own log lines, newest last. `lines` is a query: level, since, grep, limit."""

    lines: Callable[[Query], Awaitable[list[dict[str, Any]]]]


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
    join: Callable[[str, bool], Awaitable[dict[str, Any]]]  # a token line or an address; True: bring the history
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
    key_refused: Callable[[int], None] = lambda status: None  # somebody showed a secret, and got 401, 403 or 429
    login_ended: Callable[[Literal["ok", "refused", "limited"]], None] = lambda outcome: None
    passed_on: Callable[[Literal["ok", "refused", "failed", "nobody"]], None] = lambda outcome: None
    setup_link: Callable[[], str | None] = lambda: None  # where the first administrator is made, while there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may talk to the listener. `hosts` is lower case, without port; `control_token` is the CLI's."""

    hosts: frozenset[str]
    origins: frozenset[str] = frozenset()
    loopback: Literal["open", "key"] = "open"
    open_to_lan: bool = False
    control_token: str = ""
    is_https: bool = False


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
    mesh: MeshFacet | None = None  # None in tests of a peer that has none; likewise the next ones
    history: HistoryFacet | None = None
    accounts: AccountsFacet | None = None
    agents: AgentsFacet | None = None
    passing: PassingFacet | None = None
    logs: LogsFacet | None = None
    limits: Limits = field(default_factory=Limits)
    stop: Callable[[], None] = lambda: None  # the CLI's `down`
