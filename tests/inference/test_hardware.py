"""What the machine has, and what a container leaves of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.hardware import (
    GIB,
    NO_LIMITS,
    CgroupLimits,
    Gpu,
    GpuClaim,
    Hardware,
    cgroup_limits,
    claimed_gpus,
    default_threads,
    detect,
    gpu_use_percent,
    memory_budget_bytes,
    nvidia_gpus,
    within,
)

GPU = Gpu(name="RTX 4090", memory_total_bytes=24 * GIB, memory_free_bytes=23 * GIB, is_usable=True)


def machine(ram_gib: float, *gpus: Gpu) -> Hardware:
    ram = int(ram_gib * GIB)
    return Hardware(ram_total_bytes=ram, ram_available_bytes=ram, cores_physical=4, cores_logical=8, gpus=gpus)


def limited(limits: CgroupLimits) -> Hardware:
    return within(
        limits,
        ram_total_bytes=64 * GIB,
        ram_available_bytes=50 * GIB,
        cores_physical=8,
        cores_logical=16,
        gpus=(GPU,),
    )


def test_this_machine_has_memory_and_cores() -> None:
    hardware = detect()
    assert 0 < hardware.ram_available_bytes <= hardware.ram_total_bytes <= psutil.virtual_memory().total
    assert 1 <= hardware.cores_physical <= hardware.cores_logical <= (psutil.cpu_count() or 1)
    assert all(gpu.memory_free_bytes <= gpu.memory_total_bytes for gpu in hardware.gpus)


def test_without_limits_the_machine_is_as_it_is() -> None:
    hardware = limited(NO_LIMITS)
    assert (hardware.ram_total_bytes, hardware.ram_available_bytes) == (64 * GIB, 50 * GIB)
    assert (hardware.cores_physical, hardware.cores_logical, hardware.gpus) == (8, 16, (GPU,))


def test_a_containers_memory_limit_is_the_memory_there_is() -> None:
    hardware = limited(CgroupLimits(memory_bytes=8 * GIB, memory_used_bytes=3 * GIB))
    assert (hardware.ram_total_bytes, hardware.ram_available_bytes) == (8 * GIB, 5 * GIB)


def test_a_limit_above_the_machine_means_nothing() -> None:
    assert limited(CgroupLimits(memory_bytes=100 * GIB)).ram_total_bytes == 64 * GIB


@pytest.mark.parametrize(("cpus", "physical", "logical"), [(0.5, 1, 1), (2.5, 3, 3), (12.0, 8, 12), (99.0, 8, 16)])
def test_a_containers_cpu_quota_bounds_the_cores(cpus: float, physical: int, logical: int) -> None:
    hardware = limited(CgroupLimits(cpus=cpus))
    assert (hardware.cores_physical, hardware.cores_logical) == (physical, logical)


def files(root: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_cgroup_v2_limits_are_the_tightest_on_the_way_up(tmp_path: Path) -> None:
    files(
        tmp_path,
        {
            "proc": "0::/system.slice/router.service\n",
            "fs/memory.max": "max\n",
            "fs/system.slice/memory.max": "8000\n",
            "fs/system.slice/memory.current": "5000\n",
            "fs/system.slice/memory.stat": "anon 1000\ninactive_file 4000\n",
            "fs/system.slice/router.service/memory.max": "9000\n",
            "fs/system.slice/cpu.max": "max 100000\n",
            "fs/system.slice/router.service/cpu.max": "150000 100000\n",
        },
    )
    limits = cgroup_limits(tmp_path / "fs", tmp_path / "proc")
    assert limits == CgroupLimits(memory_bytes=8000, memory_used_bytes=1000, cpus=1.5)


def test_cgroup_v1_limits_are_read_from_their_own_trees(tmp_path: Path) -> None:
    files(
        tmp_path,
        {
            "proc": "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
            "fs/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "fs/memory/docker/abc/memory.limit_in_bytes": "4000\n",
            "fs/memory/docker/abc/memory.usage_in_bytes": "3000\n",
            "fs/memory/docker/abc/memory.stat": "cache 1\ntotal_inactive_file 500\n",
            "fs/cpu/cpu.cfs_quota_us": "-1\n",
            "fs/cpu/cpu.cfs_period_us": "100000\n",
            "fs/cpu/docker/abc/cpu.cfs_quota_us": "200000\n",
            "fs/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
        },
    )
    limits = cgroup_limits(tmp_path / "fs", tmp_path / "proc")
    assert limits == CgroupLimits(memory_bytes=4000, memory_used_bytes=2500, cpus=2.0)


def test_in_a_container_only_the_root_of_the_tree_may_be_visible(tmp_path: Path) -> None:
    files(tmp_path, {"proc": "0::/not/visible/here\n", "fs/memory.max": "7000\n", "fs/cpu.max": "100000 100000\n"})
    assert cgroup_limits(tmp_path / "fs", tmp_path / "proc") == CgroupLimits(memory_bytes=7000, cpus=1.0)


@pytest.mark.parametrize("proc", ["", "0::/\n", "nonsense\n", "0::/../../etc\n", ":::\n"])
def test_nothing_there_or_nonsense_means_no_limits(tmp_path: Path, proc: str) -> None:
    files(tmp_path, {"proc": proc, "fs/cpu.max": "a b", "fs/memory.max": "many"})
    assert cgroup_limits(tmp_path / "fs", tmp_path / "proc") == NO_LIMITS
    assert cgroup_limits(tmp_path / "fs", tmp_path / "absent") == NO_LIMITS


def test_the_budget_is_memory_less_headroom_or_the_gpus() -> None:
    """F49: the budget for loaded models when none is set."""
    assert memory_budget_bytes(machine(64)) == 56 * GIB
    assert memory_budget_bytes(machine(4)) == 3 * GIB
    assert memory_budget_bytes(machine(1)) == GIB // 2
    assert memory_budget_bytes(machine(16, GPU)) == 24 * GIB - GIB // 2
    assert memory_budget_bytes(machine(16, GPU, GPU)) == 48 * GIB - GIB
    assert memory_budget_bytes(machine(64, GPU)) == 56 * GIB


@given(st.integers(1, 2**45))
def test_the_budget_leaves_something_and_gives_something(ram: int) -> None:
    budget = memory_budget_bytes(
        Hardware(ram_total_bytes=ram, ram_available_bytes=ram, cores_physical=1, cores_logical=1)
    )
    assert ram / 2 <= budget <= ram - ram // 8


def test_gpus_that_detection_missed_are_what_the_user_says_and_not_usable() -> None:
    """F136: LLM_GPU_AVAILABLE, LLM_GPU_MODEL and LLM_GPU_COUNT."""
    claimed = claimed_gpus(GpuClaim(is_available=True, model="Radeon 780M", count=2))
    assert [gpu.name for gpu in claimed] == ["Radeon 780M"] * 2
    assert not any(gpu.is_usable for gpu in claimed)
    assert len(claimed_gpus(GpuClaim(is_available=True))) == 1
    assert claimed_gpus(GpuClaim(model="Radeon", count=2)) == ()
    assert memory_budget_bytes(machine(8, *claimed)) == 7 * GIB


@pytest.mark.parametrize(("cores", "threads"), [(0, 1), (1, 1), (2, 2), (3, 2), (8, 7), (64, 63)])
def test_threads_leave_a_core_free_where_there_are_three(cores: int, threads: int) -> None:
    assert default_threads(cores) == threads


class FakeNvml:
    """NVML with as many GPUs as it is given; a string in the place of one is the error it answers with."""

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: tuple[str | bytes, int, int] | str, has_driver: bool = True) -> None:
        self.gpus, self.has_driver, self.is_open = gpus, has_driver, False

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise self.NVMLError("Driver Not Loaded")
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str | bytes, int, int]:
        gpu = self.gpus[index]
        if isinstance(gpu, str):
            raise self.NVMLError(gpu)
        return gpu

    def nvmlDeviceGetName(self, handle: tuple[str | bytes, int, int]) -> str | bytes:
        return handle[0]

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[str | bytes, int, int]) -> SimpleNamespace:
        return SimpleNamespace(total=handle[1], free=handle[2])

    def nvmlDeviceGetCudaComputeCapability(self, handle: tuple[str | bytes, int, int]) -> tuple[int, int]:
        return (8, 9) if "4090" in str(handle[0]) else (6, 1)

    def nvmlDeviceGetUtilizationRates(self, handle: tuple[str | bytes, int, int]) -> SimpleNamespace:
        return SimpleNamespace(gpu=handle[1] - handle[2])


def test_nvidia_gpus_are_what_nvml_says_without_those_that_fail() -> None:
    """F132: NVIDIA GPUs by NVML."""
    nvml = FakeNvml(("RTX 4090", 24, 20), "GPU is lost", (b"Tesla P40", 22, 21))
    assert [(gpu.name, gpu.memory_total_bytes, gpu.memory_free_bytes, gpu.is_usable) for gpu in nvidia_gpus(nvml)] == [
        ("RTX 4090", 24, 20, True),
        ("Tesla P40", 22, 21, True),
    ]
    assert not nvml.is_open


def test_a_newer_gpu_is_the_more_capable_one() -> None:
    newer, older = nvidia_gpus(FakeNvml(("RTX 4090", 24 * GIB, 0), ("Tesla P40", 22 * GIB, 0)))
    assert (newer.capability, older.capability) == (8924.0, 6122.0)


def test_the_use_of_the_gpus_is_that_of_the_busiest() -> None:
    assert gpu_use_percent(FakeNvml(("a", 24, 20), ("b", 24, 7))) == 17.0
    assert gpu_use_percent(FakeNvml()) == 0.0
    assert gpu_use_percent(FakeNvml(has_driver=False)) == 0.0


def test_without_a_driver_there_are_no_nvidia_gpus() -> None:
    assert nvidia_gpus(FakeNvml(("RTX 4090", 24, 20), has_driver=False)) == ()
