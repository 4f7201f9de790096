"""What is wrong with this machine, and how to fix it: checks that need no running peer and change nothing.

Each check answers one or more `Check`s; `examine` runs them all. A check that breaks is reported as such: the doctor
must work where nothing else does.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference.hardware import Gpu, GpuClaim, Hardware, detect
from mesh import control
from mesh.config import Config, Loaded
from mesh.errors import NotPrivate, StartError
from mesh.ownership import require_ours
from mesh.ports import port_holder
from mesh.private import require_private
from mesh.version import ADD_ENGINE, ENGINE_PINNED, engine_version

DISK_WARN_BYTES = 10 * 1000**3
"""A 7B model at 4 bits takes 4.5 GB and its download as much again until it is verified."""
DISK_FAIL_BYTES = 500 * 1000**2
MEMORY_WARN_BYTES = 4 * 1024**3
"""A 3B model at 4 bits, its context and the system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding: `warn` is worth knowing, `fail` stops the peer or makes it useless."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def examine(loaded: Loaded) -> list[Check]:
    """All checks, in the order a person would make them."""
    config = loaded.config
    return [
        *_guarded("python", python),
        *_guarded("packages", packages),
        *_guarded("settings", lambda: settings(loaded)),
        *_guarded("engine", lambda: engine(engine_version(), importlib.util.find_spec("llama_cpp") is not None)),
        *_guarded("data folder", lambda: data_folder(config.data_dir)),
        *_guarded("models folder", lambda: models_folder(config.models_dir)),
        *_guarded("disk", lambda: disk(config.models_dir)),
        *_guarded("port", lambda: port(config.port, control.read(config.data_dir))),
        *_guarded("memory", lambda: memory(detect())),
        *_guarded("GPU", lambda: gpu(detect(claim(config)).gpus)),
    ]


def claim(config: Config) -> GpuClaim:
    """What the settings say of the GPUs, for when none is detected."""
    return GpuClaim(is_available=bool(config.gpu_available), model=config.gpu_model, count=config.gpu_count)


def python() -> list[Check]:
    """Python 3.11 to 3.13, 64 bits, on a system we know."""
    found = f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {platform.machine()}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        fix = "install with a supported one: uv tool install --python 3.13 llm-router-mesh"
        return [Check(name="python", state="fail", found=f"{found}; supported are 3.11 to 3.13", fix=fix)]
    if sys.maxsize < 2**32:
        return [Check(name="python", state="fail", found=f"{found}, 32 bits", fix="install a 64-bit Python")]
    return [Check(name="python", state="ok", found=found)]


def packages() -> list[Check]:
    """The four import packages are ours."""
    try:
        require_ours()
    except StartError as error:
        return [Check(name="packages", state="fail", found=error.what, fix=error.fix)]
    return [Check(name="packages", state="ok", found="mesh, inference, gossip and web are ours")]


def settings(loaded: Loaded) -> list[Check]:
    """What reading the settings warned of."""
    if not loaded.warnings:
        source = loaded.config.config or "environment and defaults"
        return [Check(name="settings", state="ok", found=str(source))]
    return [Check(name="settings", state="warn", found=warning, fix="llm-router config") for warning in loaded.warnings]


def engine(version: str | None, is_importable: bool) -> list[Check]:
    """The llama extra: there, whole, and of the tested version."""
    if version is None or not is_importable:
        found = "llama-cpp-python is not installed: no model can run on this machine"
        return [Check(name="engine", state="warn", found=found, fix=f"{ADD_ENGINE} (minutes; needs a C++ compiler)")]
    if version != ENGINE_PINNED:
        found = f"llama-cpp-python {version}; tested is {ENGINE_PINNED}"
        return [Check(name="engine", state="warn", found=found, fix=f"{ADD_ENGINE} (minutes; needs a C++ compiler)")]
    return [Check(name="engine", state="ok", found=f"llama-cpp-python {version}")]


def data_folder(folder: Path) -> list[Check]:
    """Folder and secret files are its owner's only."""
    if not folder.exists():
        return [Check(name="data folder", state="ok", found=f"{folder} is made at the first start")]
    try:
        for path in (folder, folder / "control.json"):
            require_private(path)
    except NotPrivate as error:
        return [Check(name="data folder", state="fail", found=error.what, fix=error.fix)]
    if not os.access(folder, os.W_OK | os.X_OK):
        fix = "make it yours, or choose another with --data-dir"
        return [Check(name="data folder", state="fail", found=f"{folder} cannot be written", fix=fix)]
    return [Check(name="data folder", state="ok", found=str(folder))]


def models_folder(folder: Path) -> list[Check]:
    """It can be written, or made."""
    nearest = _existing(folder)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        found = f"{folder} cannot be " + ("written" if nearest == folder else f"made in {nearest}")
        return [
            Check(name="models folder", state="fail", found=found, fix="make it yours, or choose another: --models-dir")
        ]
    found = str(folder) if nearest == folder else f"{folder} is made when it is needed"
    return [Check(name="models folder", state="ok", found=found)]


def disk(folder: Path) -> list[Check]:
    """Room for models."""
    free = shutil.disk_usage(_existing(folder)).free
    found = f"{free / 1000**3:.1f} GB free for {folder}"
    fix = "free some, or point --models-dir at a larger disk"
    if free < DISK_FAIL_BYTES:
        return [Check(name="disk", state="fail", found=found, fix=fix)]
    if free < DISK_WARN_BYTES:
        return [Check(name="disk", state="warn", found=found, fix=fix)]
    return [Check(name="disk", state="ok", found=found)]


def port(number: int, running: control.Control | None) -> list[Check]:
    """The client port is free, or ours."""
    if number == 0:
        return [Check(name="port", state="ok", found="any free one")]
    holder = port_holder(number)
    if holder is None:
        return [Check(name="port", state="ok", found=f"{number} is free")]
    if running is not None and f"(process {running.pid})" in holder:
        return [Check(name="port", state="ok", found=f"{number} is this peer's, process {running.pid}")]
    fix = "stop it, or start with --port 0 (any free port) or --port NUMBER"
    return [Check(name="port", state="fail", found=f"{number} is in use by {holder}", fix=fix)]


def memory(machine: Hardware) -> list[Check]:
    """Enough for a small model, within the limits of a container."""
    total, available = machine.ram_total_bytes, machine.ram_available_bytes
    found = f"{total / 1024**3:.1f} GiB, {available / 1024**3:.1f} GiB available"
    if total < MEMORY_WARN_BYTES:
        fix = "small models (up to about 1.5B parameters at 4 bits) fit"
        return [Check(name="memory", state="warn", found=found, fix=fix)]
    return [Check(name="memory", state="ok", found=found)]


def gpu(gpus: Sequence[Gpu]) -> list[Check]:
    """What is seen. None is no fault: the CPU serves. One that is only said to be there is worth knowing."""
    if not gpus:
        return [Check(name="GPU", state="ok", found="none seen: models run on the CPU")]
    found = ", ".join(f"{g.name} ({g.memory_total_bytes / 1024**3:.0f} GiB)" if g.is_usable else g.name for g in gpus)
    if all(g.is_usable for g in gpus):
        return [Check(name="GPU", state="ok", found=found)]
    fix = "install the driver, or unset LLM_GPU_AVAILABLE"
    return [Check(name="GPU", state="warn", found=f"{found}: not usable, models run on the CPU", fix=fix)]


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a broken check is a finding; the others go on
        return [Check(name=name, state="warn", found=f"could not be checked: {type(error).__name__}: {error}")]
