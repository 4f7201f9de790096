"""The entries of a log, as typed values and as bytes.

An entry is a msgpack array: a tag that names the class, then the fields in the order below. Fields behind those known
are ignored and missing ones take their defaults: fields are added at the end and never change their meaning. A log is
named by the peer that writes it and the run of that peer (unix ms at its start); its entries are numbered 1, 2, 3, ...
without gaps. Times are unix ms; bodies are bytes as they were sent, or None where they are not kept.

Not here: where entries are kept (mesh.history.store), what is taken out of bodies first (mesh.history.redaction).
Source: the msgpack specification; the checks are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, NamedTuple, TypeAlias, get_type_hints

import msgpack

from mesh.history.errors import BadEntry

ENTRY_BYTES_MAX = 64 * 2**20
"""A request may have 32 MiB; an entry holds one body and some fields."""
TEXT_CHARACTERS_MAX = 4096
ITEMS_MAX = 64
INT_MAX = (1 << 63) - 1
"""The largest that SQLite stores."""

Kind: TypeAlias = Literal["chat", "generate", "embeddings"]
Recording: TypeAlias = Literal["full", "metadata"]
Status: TypeAlias = Literal["success", "error", "cancelled", "interrupted"]
ActorKind: TypeAlias = Literal["user", "key", "control", "peer", "system"]


class LogId(NamedTuple):
    """Which log: the peer that writes it, and the run of that peer (unix ms)."""

    peer: str
    run: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A request was admitted at the ingress. `id` is made there; its End carries the same one."""

    id: str
    at_ms: int
    kind: Kind
    model: str
    client_ip: str = ""
    key_id: str = ""
    key_name: str = ""
    user: str = ""
    stream: bool = False
    recording: Recording = "full"
    request_body: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The request is over. `node` is the peer that served it last, with the name and address it had then.

    `continued_on` names the peers that went on with the answer, in order. `message` and `code` say what failed.
    """

    id: str
    at_ms: int
    status: Status
    message: str = ""
    code: str = ""
    http_status: int = 200
    node: str = ""
    node_name: str = ""
    node_ip: str = ""
    attempts: int = 1
    continued_on: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_ms: int | None = None
    duration_ms: int = 0
    response_body: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Somebody did something that is watched, such as `key.create`, to `target`."""

    at_ms: int
    actor: str
    actor_kind: ActorKind
    action: str
    ip: str = ""
    target: str = ""
    detail: str = ""


Entry: TypeAlias = Start | End | Audit


def encode(entry: Entry) -> bytes:
    """The bytes of an entry. Texts are cut to 4,096 characters and made valid UTF-8; BadEntry if it is over 64 MiB."""
    kind = type(entry)
    data: bytes = msgpack.packb([_TAGS[kind], *map(_plain, _VALUES[kind](entry))], unicode_errors="replace")
    if len(data) > ENTRY_BYTES_MAX:
        raise BadEntry(f"the entry has {len(data)} bytes, {ENTRY_BYTES_MAX} is the limit; leave its body out")
    return data


def decode(data: bytes) -> Entry:
    """The entry of these bytes. Raises BadEntry, and nothing else."""
    if len(data) > ENTRY_BYTES_MAX:
        raise BadEntry(f"the entry has {len(data)} bytes, {ENTRY_BYTES_MAX} is the limit")
    try:
        values = msgpack.unpackb(data, use_list=False, raw=False)
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise BadEntry(f"an entry that is no msgpack: {type(error).__name__}") from None
    if type(values) is not tuple or not values or type(values[0]) is not int:
        raise BadEntry("an entry that does not begin with a tag")
    kind = _CLASSES.get(values[0])
    if kind is None:
        raise BadEntry(f"an entry of unknown kind {values[0]}; a newer program may have written it")
    table = {}
    for (name, check), value in zip(_CHECKS[kind], values[1:], strict=False):
        table[name] = check(name, value)
    try:
        return kind(**table)
    except TypeError:
        raise BadEntry(f"an entry of kind {values[0]} with {len(values) - 1} fields, which are too few") from None


def body_of(entry: Entry) -> bytes | None:
    """The body that an entry carries, if any."""
    if isinstance(entry, Start):
        return entry.request_body
    return entry.response_body if isinstance(entry, End) else None


def body_span(data: bytes, entry: Entry) -> tuple[int, int] | tuple[None, None]:
    """Where in its bytes the body of an entry begins, and how many bytes it has."""
    body = body_of(entry)
    if not body:
        return None, None
    at = len(data) - len(body) if data.endswith(body) else data.find(body)
    return at, len(body)


def without_body(data: bytes) -> bytes:
    """The same entry with None for its body; fields that this program does not know stay. Raises BadEntry."""
    entry = decode(data)
    if body_of(entry) is None:
        return data
    name = "request_body" if isinstance(entry, Start) else "response_body"
    values = msgpack.unpackb(data, raw=False)
    values[1 + [field.name for field in dataclasses.fields(entry)].index(name)] = None
    stripped: bytes = msgpack.packb(values)
    return stripped


def _plain(value: Any) -> Any:
    """What msgpack packs: texts within their limit and free of NUL, at which SQLite would end them."""
    if isinstance(value, str):
        return value.replace("\0", "")[:TEXT_CHARACTERS_MAX]
    if isinstance(value, tuple):
        return [_plain(item) for item in value[:ITEMS_MAX]]
    return value


def _text(name: str, value: Any) -> str:
    if type(value) is not str or len(value) > TEXT_CHARACTERS_MAX or "\0" in value:
        raise BadEntry(f"{name} is no text of at most {TEXT_CHARACTERS_MAX} characters without NUL")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if type(value) is not tuple or len(value) > ITEMS_MAX:
        raise BadEntry(f"{name} is no list of at most {ITEMS_MAX}")
    return tuple(_text(name, item) for item in value)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= INT_MAX:
        raise BadEntry(f"{name} is no whole number from 0 to 2^63 - 1")
    return value


def _maybe_whole(name: str, value: Any) -> int | None:
    return None if value is None else _whole(name, value)


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise BadEntry(f"{name} is neither true nor false")
    return value


def _body(name: str, value: Any) -> bytes | None:
    if value is not None and type(value) is not bytes:
        raise BadEntry(f"{name} is no bytes")
    return value


def _one_of(*allowed: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if type(value) is not str or value not in allowed:
            raise BadEntry(f"{name} is none of {', '.join(allowed)}")
        return value

    return check


Check: TypeAlias = Callable[[str, Any], Any]

_BY_TYPE: dict[Any, Check] = {
    str: _text,
    int: _whole,
    bool: _flag,
    int | None: _maybe_whole,
    bytes | None: _body,
    tuple[str, ...]: _texts,
}


def _check_of(hint: Any) -> Check:
    return _one_of(*hint.__args__) if getattr(hint, "__origin__", None) is Literal else _BY_TYPE[hint]


_CLASSES: dict[int, type[Start] | type[End] | type[Audit]] = {1: Start, 2: End, 3: Audit}
_TAGS: dict[type, int] = {kind: tag for tag, kind in _CLASSES.items()}
_VALUES: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    kind: attrgetter(*(field.name for field in dataclasses.fields(kind))) for kind in _TAGS
}
_CHECKS: dict[type, list[tuple[str, Check]]] = {
    kind: [(field.name, _check_of(get_type_hints(kind)[field.name])) for field in dataclasses.fields(kind)]
    for kind in _TAGS
}
