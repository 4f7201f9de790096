"""What a peer tells the others of itself, to and from the bytes that gossip carries.

    load        fast: how busy it is, and what is in its memory; rides on every ping, and on forwarded answers
    inventory   slow: what it has and what it is; fetched when its version changes
    door        slow: until when the mesh lets machines in, as this peer last heard or set it

Whatever comes from another peer is hostile until read here: sizes, counts and types are checked by gossip.codec.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gossip.codec import Codec, CodecError
from inference.models import names
from inference.models.errors import BadModelName
from inference.models.model import HELLO

LOAD = "load"
INVENTORY = "inventory"
DOOR = "door"

MODELS_IN_LOAD_MAX = 16
MODELS_IN_INVENTORY_MAX = 1000
LOAD_BYTES_MAX = 1024
INVENTORY_BYTES_MAX = 256 * 1024
"""What gossip carries of a fast and of a slow fact (gossip.config): it refuses more, as the bug that it is."""
ALIASES_MAX = 8
GPUS_MAX = 64
_TEXT_MAX = 128
_SLOTS_MAX = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    """How busy a peer is. Percent 0..100; `gpu` 0 without one. `response_ms`: mean time of an answer.

    `beat` counts the reports that only say "still so": gossip carries what is new, and age is what a router goes by.
    """

    cpu: float
    memory: float
    gpu: float
    active: int
    queued: int
    response_ms: float
    models: tuple[ModelLoad, ...] = ()
    beat: int = 0


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
    """As bytes that gossip carries; the last models are left out where long names leave no room for all."""
    data = _CODEC.encode(load)
    while len(data) > LOAD_BYTES_MAX and load.models:
        load = replace(load, models=load.models[:-1])
        data = _CODEC.encode(load)
    return data


def load_in(data: bytes) -> Load | None:
    """None when it is nothing that a peer of ours would say."""
    found = _decoded(data)
    return found if isinstance(found, Load) and _is_sane(found) else None


def inventory_out(inventory: Inventory) -> bytes:
    """As bytes that gossip carries; the last models are left out where there is no room for all."""
    data = _CODEC.encode(inventory)
    while len(data) > INVENTORY_BYTES_MAX and inventory.models:
        fit = len(inventory.models) * INVENTORY_BYTES_MAX // len(data)
        inventory = replace(inventory, models=inventory.models[: min(fit, len(inventory.models) - 1)])
        data = _CODEC.encode(inventory)
    return data


def inventory_in(data: bytes) -> Inventory | None:
    """None when it is nothing that a peer of ours would say; models that cannot be are left out."""
    found = _decoded(data)
    if not isinstance(found, Inventory) or not _is_plausible(found):
        return None
    models = {model.id: model for model in found.models if _is_model(model)}
    return replace(found, models=tuple(_with_fit_aliases(model) for model in models.values()))


def _decoded(data: bytes) -> object:
    try:
        return _CODEC.decode(data)
    except CodecError:
        return None


def _is_plausible(inventory: Inventory) -> bool:
    texts = (inventory.engine or "", *(gpu.name for gpu in inventory.gpus))
    return (
        len(inventory.models) <= MODELS_IN_INVENTORY_MAX
        and len(inventory.gpus) <= GPUS_MAX
        and inventory.client_port < 65_536
        and all(_is_fit(text) for text in texts)
        and all(0 <= gpu.capability < 1e6 for gpu in inventory.gpus)
    )


def _is_model(model: ModelFact) -> bool:
    try:
        if model.id != HELLO:
            names.checked(model.id)
    except BadModelName:
        return False
    return (
        (not model.sha256 or _SHA256.fullmatch(model.sha256) is not None)
        and _is_fit(model.quantization or "")
        and 0 <= model.load_s < 1e6
        and model.slots <= _SLOTS_MAX
    )


def _with_fit_aliases(model: ModelFact) -> ModelFact:
    return replace(model, aliases=tuple(alias for alias in model.aliases if alias and _is_fit(alias))[:ALIASES_MAX])


def _is_fit(text: str) -> bool:
    """To be shown: a short line."""
    return len(text) <= _TEXT_MAX and text.isprintable()


def _is_sane(load: Load) -> bool:
    if len(load.models) > MODELS_IN_LOAD_MAX or any(m.slots > _SLOTS_MAX for m in load.models):
        return False
    percents = (load.cpu, load.memory, load.gpu)
    numbers = [
        load.active,
        load.queued,
        load.response_ms,
        *(n for m in load.models for n in (m.active, m.queued, m.prefill_rate, m.decode_rate, m.service_s)),
    ]
    return all(0 <= p <= 100 for p in percents) and all(0 <= n < 1e12 for n in numbers)
