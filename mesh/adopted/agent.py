"""A registered server as the admin map has it: typed values, to and from the fields of `agent/<uuid>`. Pure.

The map comes from other members, so what is read is checked again, the address above all: a row that names one where
nothing may be asked (mesh.adopted.address) is no agent.
"""

from __future__ import annotations

import ipaddress
import math
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from inference.models import names
from inference.models.errors import BadModelName
from inference.providers.openai_compatible import Server
from mesh.adopted.address import Rules, is_loopback, joined, origin_at, parsed, why_not
from mesh.adopted.errors import AddressRefused

PREFIX = "agent/"
AGENTS_MAX = 256
MODELS_MAX = 200
MODELS_BYTES_MAX = 40 * 1024
"""Of all names together: a value of the admin map holds 64 KiB."""
NAME_LENGTH_MAX = 128
CUSTOM_NAME_LENGTH_MAX = 64
TAGS_MAX = 32
TAG_LENGTH_MAX = 64
NOTES_LENGTH_MAX = 4096
DEVICES_MAX = 64
VERSION_LENGTH_MAX = 64

# No server tells what its models are for; these are how embedding models are called.
_EMBEDS = re.compile(r"embed|minilm|(?<![a-z0-9])(bge|gte|e5)(?![a-z0-9])|sentence-t", re.IGNORECASE)
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """GPUs of one model; `memory` in bytes."""

    model: str
    count: int
    memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentModel:
    """A model of a server: `id` is what the mesh calls it, `name` what the server does; the same, as a rule."""

    id: str
    name: str
    is_embedding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """`runtime_port` is as it was told, `port` where it answers (that one, or the next). `host` is what it is called,
    `address` what that meant when it was registered. `via`: the only peer that can reach it, "" for everybody.
    `registered_at` is unix seconds. `gpu_available` None: nobody said.
    """

    id: str
    machine_name: str
    ip_address: str
    runtime_port: int
    scheme: Literal["http", "https"]
    host: str
    port: int
    address: str
    registered_at: float
    token_hash: str
    via: str = ""
    runtime_version: str = ""
    gpu_available: bool | None = None
    gpu_devices: tuple[Device, ...] = ()
    gpu_count: int = 0
    gpu_model: str | None = None
    models: tuple[AgentModel, ...] = ()
    custom_name: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    is_cordoned: bool = False

    @property
    def key(self) -> str:
        return PREFIX + self.id

    @property
    def name(self) -> str:
        """What answers call it. Never an address (F75): a machine that was registered under one gets another name."""
        name = self.custom_name or self.machine_name
        return f"server-{self.id[:6]}" if _is_address(name) else name

    @property
    def server(self) -> Server:
        """How it is asked."""
        return Server(
            id=self.id, name=self.name, scheme=self.scheme, host=self.host, port=self.port, address=self.address
        )

    @property
    def base_url(self) -> str:
        return f"{self.scheme}://{joined(self.host, self.port)}"


def models_of(told: Iterable[str]) -> tuple[AgentModel, ...]:
    """The models that a server names, each under a name that a model may have.

    llama-server calls a model by the path of its file: then it is the last part of it. What has no fit name, or one
    that is taken, is left out, and so are more than MODELS_MAX.
    """
    found: dict[str, AgentModel] = {}
    size = 0
    for name in told:
        model_id = _fit(name)
        if model_id is None or model_id in found:
            continue
        size += len(model_id.encode()) + len(name.encode()) + 32
        if len(found) == MODELS_MAX or size > MODELS_BYTES_MAX:
            break
        found[model_id] = AgentModel(id=model_id, name=name, is_embedding=_EMBEDS.search(model_id) is not None)
    return tuple(found.values())


def agent_out(agent: Agent) -> dict[str, Any]:
    """Every field as the admin map keeps it."""
    fields = asdict(agent)
    del fields["id"]
    fields["models"] = models_out(agent.models)
    return fields


def models_out(models: Iterable[AgentModel]) -> list[list[Any]]:
    """The field `models`."""
    return [[model.id, model.name, model.is_embedding] for model in models]


def agent_in(key: str, fields: Mapping[str, Any]) -> Agent | None:
    """The agent that a key of the admin map holds; None when it holds none."""
    try:
        agent_id = key.removeprefix(PREFIX)
        if str(uuid.UUID(agent_id)) != agent_id:
            return None
        agent = Agent(
            id=agent_id,
            machine_name=_line(fields["machine_name"], NAME_LENGTH_MAX),
            ip_address=_line(fields["ip_address"], NAME_LENGTH_MAX * 2),
            runtime_port=_integer(fields["runtime_port"], 1, 65_535),
            scheme="https" if fields["scheme"] == "https" else "http",
            host=_line(fields["host"], NAME_LENGTH_MAX * 2),
            port=_integer(fields["port"], 1, 65_535),
            address=_line(fields["address"], NAME_LENGTH_MAX),
            registered_at=_decimal(fields["registered_at"]),
            token_hash=_line(fields["token_hash"], 64),
            via=_text(fields.get("via"), NAME_LENGTH_MAX) or "",
            runtime_version=_text(fields.get("runtime_version"), VERSION_LENGTH_MAX) or "",
            gpu_available=_truth(fields.get("gpu_available")),
            gpu_devices=tuple(_device(device) for device in fields.get("gpu_devices") or ())[:DEVICES_MAX],
            gpu_count=_integer(fields.get("gpu_count") or 0, 0, 1_000_000),
            gpu_model=_text(fields.get("gpu_model"), NAME_LENGTH_MAX * 2),
            models=_models(fields.get("models") or ()),
            custom_name=_text(fields.get("custom_name"), CUSTOM_NAME_LENGTH_MAX),
            tags=tuple(_line(tag, TAG_LENGTH_MAX) for tag in fields.get("tags") or ())[:TAGS_MAX],
            notes=_text(fields.get("notes"), NOTES_LENGTH_MAX),
            is_cordoned=bool(fields.get("is_cordoned")),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    return agent if _may_be_asked(agent) else None


def _may_be_asked(agent: Agent) -> bool:
    """What another member wrote leads nowhere that nobody may register."""
    address = parsed(agent.address)
    if address is None or why_not(address, agent.port, Rules(allow_loopback=bool(agent.via))) is not None:
        return False
    try:
        return origin_at(agent.host, agent.port).host == agent.host and bool(agent.via) == is_loopback(address)
    except AddressRefused:
        return False


def _fit(name: str) -> str | None:
    """`name` if a model may be called so, else what is left of the last part of it."""
    last = re.split(r"[/\\]", name)[-1]
    stem = last[: -len(".gguf")] if last.lower().endswith(".gguf") else last
    for candidate in (name, _UNFIT.sub("-", stem).strip("._-")):
        try:
            return names.checked(candidate)
        except BadModelName:
            pass
    return None


def _models(rows: Iterable[Any]) -> tuple[AgentModel, ...]:
    found: dict[str, AgentModel] = {}
    for model_id, name, is_embedding in rows:
        if _fit(model_id) == model_id and isinstance(name, str) and len(found) < MODELS_MAX:
            found[model_id] = AgentModel(id=model_id, name=name, is_embedding=bool(is_embedding))
    return tuple(found.values())


def _device(told: Mapping[str, Any]) -> Device:
    memory = told.get("memory")
    return Device(
        model=_line(told["model"], NAME_LENGTH_MAX * 2),
        count=_integer(told["count"], 1, 1_000_000),
        memory=None if memory is None else _integer(memory, 0, 1 << 53),
    )


def _is_address(name: str) -> bool:
    """`1.2.3.4`, `1.2.3.4:80`, `[::1]:80`: what the command line calls a server that got no name."""
    for text in (name, name.rpartition(":")[0]):
        try:
            ipaddress.ip_address(text.strip("[]"))
            return True
        except ValueError:
            pass
    return False


def _line(value: Any, length_max: int) -> str:
    if not isinstance(value, str) or not value or len(value) > length_max or not value.isprintable():
        raise ValueError
    return value


def _text(value: Any, length_max: int) -> str | None:
    if value is not None and (not isinstance(value, str) or len(value) > length_max):
        raise ValueError
    return value or None


def _integer(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError
    return value


def _decimal(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None
