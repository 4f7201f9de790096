"""What this machine has: memory, cores, GPUs, within the limits of its container. Reads it; decides nothing more.

Memory and cores come from psutil, narrowed by CPU affinity and by cgroup limits (v1 and v2, Linux kernel
documentation, admin-guide/cgroup-v2); NVIDIA GPUs from NVML. Other vendors are not looked for yet: they are what the
user says (`GpuClaim`). Never reads the environment.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

log = logging.getLogger(__name__)

GIB = 1024**3
RAM_HEADROOM_SHARE = 8  # an eighth stays with the system and the other programs
GPU_HEADROOM_BYTES = GIB // 2  # CUDA context and what the desktop draws with
CGROUP_UNLIMITED = 2**60  # v1 writes a number near 2^63 for "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. `is_usable` False: somebody says it is there, but nothing was found that could compute on it.

    `capability` orders GPUs when nothing was measured: CUDA's compute capability times 1,000 (9.0 is 9,000) plus GiB.
    """

    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    is_usable: bool
    capability: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClaim:
    """What the user says of the GPUs, for when detection finds none (LLM_GPU_AVAILABLE, _MODEL, _COUNT)."""

    is_available: bool = False
    model: str | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The machine as this process may use it. Cores: at least 1, physical never above logical."""

    ram_total_bytes: int
    ram_available_bytes: int
    cores_physical: int
    cores_logical: int
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLimits:
    """What the control groups of this process allow; None: no limit. `cpus` may be a fraction."""

    memory_bytes: int | None = None
    memory_used_bytes: int = 0
    cpus: float | None = None


NO_CLAIM = GpuClaim()
NO_LIMITS = CgroupLimits()


def detect(claim: GpuClaim = NO_CLAIM) -> Hardware:
    """The hardware of this machine. Takes up to a second when NVML wakes a GPU: call it in a thread."""
    limits = cgroup_limits()
    memory = psutil.virtual_memory()
    logical = _allowed_cpus() or psutil.cpu_count(logical=True) or 1
    return within(
        limits,
        ram_total_bytes=memory.total,
        ram_available_bytes=memory.available,
        cores_physical=psutil.cpu_count(logical=False) or logical,
        cores_logical=logical,
        gpus=nvidia_gpus(_nvml()) or claimed_gpus(claim),
    )


def within(
    limits: CgroupLimits,
    *,
    ram_total_bytes: int,
    ram_available_bytes: int,
    cores_physical: int,
    cores_logical: int,
    gpus: tuple[Gpu, ...],
) -> Hardware:
    """What is left of a machine under `limits`. A quota of 2.5 CPUs counts as 3 cores."""
    total, available = ram_total_bytes, ram_available_bytes
    if limits.memory_bytes is not None and limits.memory_bytes < total:
        total = limits.memory_bytes
        available = min(available, max(0, total - limits.memory_used_bytes))
    quota = math.ceil(limits.cpus) if limits.cpus is not None else cores_logical
    logical = max(1, min(cores_logical, quota))
    return Hardware(
        ram_total_bytes=total,
        ram_available_bytes=available,
        cores_physical=max(1, min(cores_physical, logical)),
        cores_logical=logical,
        gpus=gpus,
    )


def memory_budget_bytes(hardware: Hardware) -> int:
    """Bytes that loaded models may take when the user set no LLM_NODE_MAX_MEMORY_BYTES.

    The larger of RAM less an eighth (at least 1 GiB, at most half of it stays free) and the memory of all usable GPUs
    less half a GiB each. Not their sum: without knowing how the layers are divided, a sum would promise too much.
    """
    ram = hardware.ram_total_bytes
    ram_budget = ram - min(max(GIB, ram // RAM_HEADROOM_SHARE), ram // 2)
    gpu_budget = sum(max(0, gpu.memory_total_bytes - GPU_HEADROOM_BYTES) for gpu in hardware.gpus if gpu.is_usable)
    return max(ram_budget, gpu_budget)


def default_threads(cores: int) -> int:
    """Threads for an engine on `cores` physical cores: all of one or two, else all but one.

    Hyper-threads add nothing to matrix products. A core left free keeps the peer answering and spares the engine the
    stalls of a barrier that waits for a thread without a core; with two cores that would cost half the speed.
    """
    return max(1, cores if cores <= 2 else cores - 1)


def claimed_gpus(claim: GpuClaim) -> tuple[Gpu, ...]:
    """F136: what to say when detection fails. Such GPUs are not usable: nothing was found that computes on them."""
    if not claim.is_available:
        return ()
    gpu = Gpu(name=claim.model or "GPU", memory_total_bytes=0, memory_free_bytes=0, is_usable=False)
    return (gpu,) * max(1, 1 if claim.count is None else claim.count)


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> CgroupLimits:
    """The tightest limits among this process's control groups and their parents; none off Linux."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return NO_LIMITS
    memory: list[tuple[int, int]] = []  # (limit, used)
    cpus: list[float] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for folder in _upwards(root, path):
                memory += _memory_v2(folder)
                cpus += _cpus_v2(folder)
        if "memory" in controllers.split(","):
            for folder in _upwards(root / "memory", path):
                memory += _memory_v1(folder)
        if "cpu" in controllers.split(","):
            for folder in _upwards(root / "cpu", path):
                cpus += _cpus_v1(folder)
    limit, used = min(memory, default=(None, 0), key=lambda pair: pair[0] or 0)
    return CgroupLimits(memory_bytes=limit, memory_used_bytes=used, cpus=min(cpus, default=None))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The folder of a control group and those above it. In a container only the root may be there, and counts."""
    group = PurePosixPath(path.lstrip("/"))
    for part in (group, *group.parents):
        if ".." not in part.parts:
            yield root / part


def _memory_v2(folder: Path) -> list[tuple[int, int]]:
    limit = _number(folder / "memory.max")
    if limit is None:
        return []
    used = _number(folder / "memory.current") or 0
    return [(limit, max(0, used - _stat(folder / "memory.stat", "inactive_file")))]


def _memory_v1(folder: Path) -> list[tuple[int, int]]:
    limit = _number(folder / "memory.limit_in_bytes")
    if limit is None or limit >= CGROUP_UNLIMITED:
        return []
    used = _number(folder / "memory.usage_in_bytes") or 0
    return [(limit, max(0, used - _stat(folder / "memory.stat", "total_inactive_file")))]


def _cpus_v2(folder: Path) -> list[float]:
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
        return [int(words[0]) / int(words[1])]
    return []


def _cpus_v1(folder: Path) -> list[float]:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return [quota / period] if quota and period else []


def _number(file: Path) -> int | None:
    """The number in a file of one number; None for `max`, -1 or no such file."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _stat(file: Path, key: str) -> int:
    for line in _text(file).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdecimal():
            return int(value)
    return 0


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _allowed_cpus() -> int | None:
    """Logical CPUs in this process's affinity mask, where the system has one."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else None


def _nvml() -> Any:
    import pynvml  # here: a tenth of a second that need not pass before a peer listens

    return pynvml


def nvidia_gpus(nvml: Any) -> tuple[Gpu, ...]:
    """The GPUs that `nvml` (the module pynvml) knows; none without NVIDIA's driver. One that fails is left out."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.debug("NVML is not available: %s", error)
        return ()
    try:
        found = [_nvidia_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        log.warning("NVIDIA GPUs cannot be counted and are not used: %s", error)
        return ()
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return tuple(gpu for gpu in found if gpu is not None)


def _nvidia_gpu(nvml: Any, index: int) -> Gpu | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(handle)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError as error:
        log.warning("NVIDIA GPU %d cannot be read and is not used: %s", index, error)
        return None
    return Gpu(
        name=name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name),
        memory_total_bytes=int(memory.total),
        memory_free_bytes=int(memory.free),
        is_usable=True,
        capability=1000.0 * major + 100.0 * minor + int(memory.total) / GIB,
    )


def gpu_use_percent(nvml: Any = None) -> float:
    """How busy the busiest GPU is, 0..100; 0 without one that tells. Takes milliseconds: call it in a thread."""
    nvml = nvml or _nvml()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return 0.0
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return float(max((nvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in handles), default=0))
    except nvml.NVMLError as error:
        log.debug("NVML tells no use: %s", error)
        return 0.0
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
