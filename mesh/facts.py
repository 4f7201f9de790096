"""What a peer tells the others of itself, to and from the bytes that gossip carries.

    load        fast: how busy it is, and what is in its memory; rides on every ping, and on forwarded answers
    inventory   slow: what it has and what it is; fetched when its version changes
    door        slow: until when the mesh lets machines in, as this peer last heard or set it

Whatever comes from another peer is hostile until read here: sizes, counts and types are checked by gossip.codec.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.codec import Codec, CodecError

LOAD = "load"
INVENTORY = "inventory"
DOOR = "door"

MODELS_IN_LOAD_MAX = 16
MODELS_IN_INVENTORY_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoad:
    """One model in memory, or being loaded. Rates in tokens per second, 0 where nothing was measured yet.

    `prefill_rate` is of prompt tokens that had to be computed; `decode_rate` of one answer; `service_s` how long a
    request holds a slot.
    """

    model: str
    is_loaded: bool
    active: int
    queued: int
    slots: int
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    service_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy a peer is. Percent 0..100; `gpu` 0 without one. `response_ms`: mean time of an answer."""

    cpu: float
    memory: float
    gpu: float
    active: int
    queued: int
    response_ms: float
    models: tuple[ModelLoad, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFact:
    """One model file. `sha256` is empty until the file was hashed; `load_s` 0 until it was loaded once.

    `context`: the longest prompt plus answer of one request, in tokens, as this peer would load it.
    """

    id: str
    sha256: str
    size_bytes: int
    context: int
    is_embedding: bool
    quantization: str | None
    created: int
    slots: int
    load_s: float
    is_usable: bool
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFact:
    name: str
    memory_bytes: int
    is_usable: bool
    capability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a peer is and has. `max_loaded` models may be in its memory at once."""

    client_port: int
    engine: str | None
    cores: int
    memory_bytes: int
    budget_bytes: int
    max_loaded: int
    gpus: tuple[GpuFact, ...] = ()
    models: tuple[ModelFact, ...] = ()


_CODEC = Codec({1: Load, 2: Inventory})


def load_out(load: Load) -> bytes:
    return _CODEC.encode(load)


def load_in(data: bytes) -> Load | None:
    """None when it is nothing that a peer of ours would say."""
    found = _decoded(data)
    return found if isinstance(found, Load) and _is_sane(found) else None


def inventory_out(inventory: Inventory) -> bytes:
    return _CODEC.encode(inventory)


def inventory_in(data: bytes) -> Inventory | None:
    found = _decoded(data)
    return found if isinstance(found, Inventory) and len(found.models) <= MODELS_IN_INVENTORY_MAX else None


def _decoded(data: bytes) -> object:
    try:
        return _CODEC.decode(data)
    except CodecError:
        return None


def _is_sane(load: Load) -> bool:
    percents = (load.cpu, load.memory, load.gpu)
    numbers = [
        load.active,
        load.queued,
        load.response_ms,
        *(n for m in load.models for n in (m.active, m.queued, m.prefill_rate, m.decode_rate, m.service_s)),
    ]
    return all(0 <= p <= 100 for p in percents) and all(0 <= n < 1e12 for n in numbers)
