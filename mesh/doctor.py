"""What is wrong with this machine, and how to fix it: checks that need no running peer and change nothing.

Each check answers one or more `Check`s; `examine` runs them all. A check that breaks or hangs is reported as such: the
doctor must work where nothing else does. Here: the program, its folders and its hardware. The network is
mesh.surroundings' and mesh.firewall's, the other machines mesh.company's.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from gossip.identity import IDENTITY_FILE
from gossip.interfaces import read
from gossip.seeds import Own
from gossip.storage import MESH_FILE
from inference.hardware import Gpu, GpuClaim, Hardware, detect
from mesh import company, control, firewall, surroundings
from mesh.check import Check, Checks, made
from mesh.config import Config, Loaded
from mesh.errors import NotPrivate, StartError
from mesh.hosts import only_address
from mesh.ownership import require_ours
from mesh.ports import port_holder
from mesh.private import require_private
from mesh.version import ADD_ENGINE, ENGINE_PINNED, engine_version

DISK_WARN_BYTES = 10 * 1000**3
"""A 7B model at 4 bits takes 4.5 GB and its download as much again until it is verified."""
DISK_FAIL_BYTES = 500 * 1000**2
MEMORY_WARN_BYTES = 4 * 1024**3
"""A 3B model at 4 bits, its context and the system."""


WITHIN_S = 12.0
"""Everything is checked at once; the slowest is a seed whose name, port and peer port all take their time."""


def examine(loaded: Loaded) -> list[Check]:
    """All checks, in the order a person would make them."""
    config = loaded.config
    running = _running(config.data_dir)
    own_port = company.peer_port_of(running)
    checks: list[tuple[str, Checks]] = [
        ("python", python),
        ("packages", packages),
        ("settings", lambda: settings(loaded)),
        ("engine", lambda: engine(engine_version(), importlib.util.find_spec("llama_cpp") is not None)),
        ("data folder", lambda: data_folder(config.data_dir)),
        ("models folder", lambda: models_folder(config.models_dir)),
        ("disk", lambda: disk(config.models_dir)),
        ("hardware", lambda: hardware(detect(claim(config)))),
        ("port", lambda: port(config.port, running)),
        ("peer port", lambda: surroundings.peer_port(config, own_port)),
        ("run folder", lambda: surroundings.run_folder(config.run_dir)),
        ("addresses", lambda: surroundings.addresses(config)),
        ("container", lambda: surroundings.container(config)),
        ("mDNS", lambda: surroundings.multicast(config)),
        ("firewall", lambda: firewall.firewall(_reachable(config, own_port))),
        ("proxy", surroundings.proxy),
        ("seeds", lambda: company.seeds(config.url, _own(config, own_port), running)),
        ("mesh", lambda: company.mesh(running)),
    ]
    return made(checks, within_s=WITHIN_S)


def _running(data_dir: Path) -> control.Control | None:
    """The peer of these settings, if control.json tells of one that lives."""
    try:
        return control.read(data_dir) if control.is_owned(data_dir) else None
    except NotPrivate:  # the data folder's finding
        return None


def _reachable(config: Config, own_port: int | None) -> list[int]:
    """The ports that other machines must reach; the peer port last."""
    peer_port = own_port or surroundings.wanted_port(config) or 8081
    return [config.port, peer_port] if config.open and config.port else [peer_port]


def _own(config: Config, own_port: int | None) -> Own:
    choice = read(only_address(ip=config.ip, bind=config.bind_address))
    ports = frozenset({config.port, own_port or surroundings.wanted_port(config)})
    return Own(hosts=frozenset((*choice.advertised, *choice.inner)), ports=ports)


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
        for name in ("", "control.json", IDENTITY_FILE, MESH_FILE):
            require_private(folder / name)
    except NotPrivate as error:
        return [Check(name="data folder", state="fail", found=error.what, fix=error.fix)]
    if not os.access(folder, os.W_OK | os.X_OK):
        fix = "make it yours, or choose another with --data-dir"
        return [Check(name="data folder", state="fail", found=f"{folder} cannot be written", fix=fix)]
    if aside := sorted(folder.glob(f"{MESH_FILE}.corrupt-*")):
        found = f"{aside[-1]} was damaged: since then this machine is none of that mesh"
        fix = "let it in again as a new one (llm-router invite there), then delete the file"
        return [Check(name="data folder", state="warn", found=found, fix=fix)]
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


def hardware(machine: Hardware) -> list[Check]:
    """Memory and GPUs."""
    return [*memory(machine), *gpu(machine.gpus)]


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
