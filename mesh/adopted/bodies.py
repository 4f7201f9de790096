"""What a request about registered servers says, read once: JSON objects to typed values, or InvalidRequest. Pure.

`web` checks the form of what comes over HTTP already; it may do so more strictly, never less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inference.errors import InvalidRequest
from inference.openai.fields import Fields, array_too_long, bad_value, missing, wrong_type
from mesh.adopted.address import Origin, origin_at, origin_of
from mesh.adopted.agent import (
    CUSTOM_NAME_LENGTH_MAX,
    DEVICES_MAX,
    NAME_LENGTH_MAX,
    NOTES_LENGTH_MAX,
    TAG_LENGTH_MAX,
    TAGS_MAX,
    VERSION_LENGTH_MAX,
    Device,
)
from mesh.adopted.errors import GpuRequired

ACTIVE_MAX = 1_000_000
RESPONSE_MS_MAX = 1e9
_HOST_LENGTH_MAX = 256
_COUNT_MAX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A server that wants to be used. `runtime_port` is what it is known by, with its name."""

    machine_name: str
    ip_address: str
    runtime_port: int
    origin: Origin
    runtime_version: str = ""
    gpu_available: bool | None = None
    gpu_devices: tuple[Device, ...] = ()
    gpu_count: int = 0
    gpu_model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How loaded a server says it is. None: it did not say."""

    cpu_percent: float | None = None
    memory_percent: float | None = None
    gpu_percent: float | None = None
    active_requests: int | None = None
    response_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is to be changed, as fields of the admin map; what was not said stays as it is."""

    changes: Mapping[str, Any] = field(default_factory=dict)


def registration_of(body: Mapping[str, Any], *, allow_no_gpu: bool, is_operator: bool = False) -> Registration:
    """The registration in the body of POST /api/agents. Raises InvalidRequest, AddressRefused or GpuRequired.

    `is_operator`: a person at the command line of this machine, who need not know of GPUs; a server that registers
    itself does. `base_url` says more than `ip_address` and `runtime_port` can: another scheme.
    """
    fields = Fields(dict(body))
    url = fields.string("base_url", _HOST_LENGTH_MAX + 32)
    host, port = fields.string("ip_address", _HOST_LENGTH_MAX), fields.integer("runtime_port", 1, 65_535)
    if url is not None:
        origin = origin_of(url)
        host, port = host or origin.host, port or origin.port
    elif host is None or port is None:
        raise missing("ip_address" if host is None else "runtime_port")
    else:
        origin = origin_at(host, port)
    name = _line(fields, "machine_name", NAME_LENGTH_MAX)
    if name is None:
        raise missing("machine_name")
    available = fields.boolean("gpu_available")
    devices = _devices(fields)
    if not allow_no_gpu and not (is_operator and available is None and not devices):
        _check_gpu(available, devices)
    known = tuple(device for device in devices if _is_valid(device))
    count, model = fields.integer("gpu_count", 0, _COUNT_MAX), _line(fields, "gpu_model", _HOST_LENGTH_MAX)
    return Registration(
        machine_name=name,
        ip_address=host.strip(),
        runtime_port=port,
        origin=origin,
        runtime_version=_line(fields, "runtime_version", VERSION_LENGTH_MAX) or "",
        gpu_available=available,
        gpu_devices=known,
        gpu_count=sum(device.count for device in known) if count is None else count,
        gpu_model=model or (known[0].model if known else None),
    )


def report_of(body: Mapping[str, Any], *, is_complete: bool) -> Report:
    """The load in the body of POST /api/health or (`is_complete`) .../metrics. Raises InvalidRequest."""
    fields = Fields(dict(body))
    response_ms = _decimal(fields, "avg_response_time_ms", RESPONSE_MS_MAX)
    if response_ms is None:
        response_ms = _decimal(fields, "average_response_time_ms", RESPONSE_MS_MAX)
    report = Report(
        cpu_percent=_decimal(fields, "cpu_usage", 100),
        memory_percent=_decimal(fields, "memory_usage", 100),
        gpu_percent=_decimal(fields, "gpu_usage", 100),
        active_requests=fields.integer("active_requests", 0, ACTIVE_MAX),
        response_ms=response_ms,
    )
    if is_complete:
        needed = {
            "cpu_usage": report.cpu_percent,
            "memory_usage": report.memory_percent,
            "active_requests": report.active_requests,
        }
        for name, value in needed.items():
            if value is None:
                raise missing(name)
    return report


def agent_id_in(body: Mapping[str, Any]) -> str | None:
    """`agent_id`, or `node_id`, which is the same. Raises InvalidRequest when they differ."""
    fields = Fields(dict(body))
    old, new = fields.string("agent_id", NAME_LENGTH_MAX), fields.string("node_id", NAME_LENGTH_MAX)
    if old is not None and new is not None and old != new:
        raise bad_value("node_id", "it differs from 'agent_id', which is the same thing")
    return new if old is None else old


def settings_of(body: Mapping[str, Any]) -> Settings:
    """The changes in the body of PUT .../settings: trimmed; "" and null clear; blank tags are dropped.

    Raises InvalidRequest.
    """
    fields = Fields(dict(body))
    changes: dict[str, Any] = {}
    if fields.has("custom_name"):
        changes["custom_name"] = _line(fields, "custom_name", CUSTOM_NAME_LENGTH_MAX)
    if fields.has("notes"):
        changes["notes"] = (fields.string("notes", NOTES_LENGTH_MAX) or "").strip() or None
    if fields.has("tags"):
        changes["tags"] = _tags(fields.raw("tags"))
    return Settings(changes=changes)


def _check_gpu(available: bool | None, devices: tuple[Device, ...]) -> None:
    """The reference's rules, in its words."""
    if not available:
        raise GpuRequired("gpu_available must be true.")
    if not devices:
        raise GpuRequired("No GPU devices detected in gpu_devices array.")
    if not all(map(_is_valid, devices)):
        raise GpuRequired("Invalid GPU device information (empty model or zero count).")


def _is_valid(device: Device) -> bool:
    return bool(device.model) and device.count > 0


def _devices(fields: Fields) -> tuple[Device, ...]:
    told = fields.raw("gpu_devices")
    if told is None:
        return ()
    if not isinstance(told, list):
        raise wrong_type("gpu_devices", "an array", told)
    if len(told) > DEVICES_MAX:
        raise array_too_long("gpu_devices", len(told), DEVICES_MAX)
    return tuple(_device(item, f"gpu_devices[{index}]") for index, item in enumerate(told))


def _device(told: Any, path: str) -> Device:
    if not isinstance(told, dict):
        raise wrong_type(path, "an object", told)
    fields = Fields(told, path)
    return Device(
        model=_line(fields, "model", _HOST_LENGTH_MAX) or "",
        count=fields.integer("count", -_COUNT_MAX, _COUNT_MAX) or 0,
        memory=fields.integer("memory", 0, 1 << 53),
    )


def _tags(told: Any) -> list[str]:
    if told is None:
        return []
    if not isinstance(told, list):
        raise wrong_type("tags", "an array", told)
    tags = [_line(Fields({"tag": tag}, f"tags[{index}]"), "tag", TAG_LENGTH_MAX) for index, tag in enumerate(told)]
    kept = list(dict.fromkeys(tag for tag in tags if tag))
    if len(kept) > TAGS_MAX:
        raise array_too_long("tags", len(kept), TAGS_MAX)
    return kept


def _line(fields: Fields, name: str, length_max: int) -> str | None:
    """A line without space around it; None when nothing is left."""
    value = (fields.string(name, length_max) or "").strip()
    if not value.isprintable():
        raise bad_value(fields.param(name), "it holds characters that cannot be printed")
    return value or None


def _decimal(fields: Fields, name: str, high: float) -> float | None:
    value = fields.decimal(name, 0, high)
    if value is not None and math.isnan(value):  # no comparison tells
        raise InvalidRequest(f"Invalid '{name}': it is not a number.", param=name, code="invalid_value")
    return value
