"""What requests about registered servers may say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from inference.errors import InvalidRequest
from mesh.adopted.address import Origin
from mesh.adopted.agent import Device
from mesh.adopted.bodies import Report, agent_id_in, registration_of, report_of, settings_of
from mesh.adopted.errors import AddressRefused, GpuRequired

GPU = [{"model": "RTX 4090", "count": 2, "memory": 24}, {"model": "T4", "count": 1}]
BODY: dict[str, Any] = {
    "machine_name": "attic",
    "ip_address": "192.168.1.20",
    "runtime_version": "0.5.1",
    "runtime_port": 11434,
    "gpu_available": True,
    "gpu_devices": GPU,
}


def test_a_registration_is_read_and_the_gpus_are_summed_up() -> None:
    """F162; the reference derives what is left out."""
    found = registration_of(BODY, allow_no_gpu=False)
    assert found.origin == Origin(scheme="http", host="192.168.1.20", port=11434)
    assert found.gpu_devices == (Device(model="RTX 4090", count=2, memory=24), Device(model="T4", count=1))
    assert (found.gpu_count, found.gpu_model) == (3, "RTX 4090")
    told = registration_of(BODY | {"gpu_count": 7, "gpu_model": "H100"}, allow_no_gpu=False)
    assert (told.gpu_count, told.gpu_model) == (7, "H100")


def test_a_whole_origin_may_be_told_instead() -> None:
    body = {"machine_name": "a", "base_url": "https://gpu.lan/v1", "gpu_available": True, "gpu_devices": GPU}
    found = registration_of(body, allow_no_gpu=False)
    assert (str(found.origin), found.ip_address, found.runtime_port) == ("https://gpu.lan:443", "gpu.lan", 443)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"gpu_available": False}, "gpu_available must be true."),
        ({"gpu_available": None}, "gpu_available must be true."),
        ({"gpu_devices": []}, "No GPU devices detected in gpu_devices array."),
        ({"gpu_devices": None}, "No GPU devices detected in gpu_devices array."),
        (
            {"gpu_devices": [{"model": " ", "count": 1}]},
            "Invalid GPU device information (empty model or zero count).",
        ),
        (
            {"gpu_devices": [GPU[0], {"model": "T4", "count": 0}]},
            "Invalid GPU device information (empty model or zero count).",
        ),
        ({"gpu_devices": [{"count": 1}]}, "Invalid GPU device information (empty model or zero count)."),
    ],
)
def test_a_server_without_gpu_is_refused_in_the_references_words(changes: dict[str, Any], text: str) -> None:
    """C11, F43: unless LLM_NODE_ALLOW_NO_GPU is true."""
    with pytest.raises(GpuRequired) as caught:
        registration_of(BODY | changes, allow_no_gpu=False)
    message = f"Validation error: GPU hardware is required for agent registration. {text}"
    assert (caught.value.status, caught.value.message) == (403, message)
    assert registration_of(BODY | changes, allow_no_gpu=True).machine_name == "attic"


def test_a_person_at_the_command_line_need_not_know_of_gpus() -> None:
    silent = {name: value for name, value in BODY.items() if not name.startswith("gpu")}
    assert registration_of(silent, allow_no_gpu=False, is_operator=True).gpu_available is None
    with pytest.raises(GpuRequired):
        registration_of(silent | {"gpu_available": False}, allow_no_gpu=False, is_operator=True)
    with pytest.raises(GpuRequired):
        registration_of(silent, allow_no_gpu=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"machine_name": None},
        {"machine_name": "  "},
        {"machine_name": "x" * 200},
        {"machine_name": "a\nb"},
        {"machine_name": 7},
        {"ip_address": None},
        {"ip_address": 7},
        {"runtime_port": None},
        {"runtime_port": 0},
        {"runtime_port": 65_536},
        {"runtime_port": "11434"},
        {"runtime_port": True},
        {"gpu_available": "yes"},
        {"gpu_devices": {"model": "x"}},
        {"gpu_devices": ["x"]},
        {"gpu_devices": [{"model": 7, "count": 1}]},
        {"gpu_devices": [{"model": "x", "count": 1.5}]},
        {"gpu_devices": [{"model": "x", "count": 1}] * 100},
        {"runtime_version": "x" * 100},
    ],
)
def test_a_registration_that_is_wrong_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        registration_of(BODY | changes, allow_no_gpu=False)
    (name,) = changes
    assert name in caught.value.message


@pytest.mark.parametrize("changes", [{"ip_address": "0.0.0.0/"}, {"base_url": "ftp://x"}, {"ip_address": "127.1"}])
def test_a_registration_under_no_address_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(AddressRefused):
        registration_of(BODY | changes, allow_no_gpu=False)


METRICS: dict[str, Any] = {
    "agent_id": "x",
    "cpu_usage": 12.5,
    "memory_usage": 100,
    "active_requests": 3,
    "avg_response_time_ms": 120.0,
    "timestamp": "2026-01-01T00:00:00Z",
}


def test_metrics_are_read() -> None:
    """F63."""
    report = report_of(METRICS, is_complete=True)
    assert report == Report(cpu_percent=12.5, memory_percent=100.0, active_requests=3, response_ms=120.0)
    assert report_of({}, is_complete=False) == Report()
    assert report_of({"average_response_time_ms": 5, "gpu_usage": 7}, is_complete=False) == Report(
        gpu_percent=7.0, response_ms=5.0
    )


@pytest.mark.parametrize("name", ["cpu_usage", "memory_usage", "gpu_usage"])
@pytest.mark.parametrize("value", [-0.1, 100.1, math.nan, math.inf, -math.inf, "50", True])
def test_a_percentage_is_0_to_100(name: str, value: Any) -> None:
    """F63."""
    for is_complete in (False, True):
        with pytest.raises(InvalidRequest) as caught:
            report_of(METRICS | {name: value}, is_complete=is_complete)
        assert caught.value.status == 400 and name in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {"active_requests": -1},
        {"active_requests": 1.5},
        {"active_requests": 10**9},
        {"avg_response_time_ms": -1},
        {"avg_response_time_ms": math.nan},
        {"cpu_usage": None},
        {"memory_usage": None},
        {"active_requests": None},
    ],
)
def test_metrics_that_are_wrong_or_missing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        report_of(METRICS | changes, is_complete=True)


def test_either_name_of_the_id_will_do_but_not_two_ids() -> None:
    assert agent_id_in({"agent_id": "a"}) == agent_id_in({"node_id": "a"}) == "a"
    assert agent_id_in({"agent_id": "a", "node_id": "a"}) == "a" and agent_id_in({}) is None
    with pytest.raises(InvalidRequest):
        agent_id_in({"agent_id": "a", "node_id": "b"})


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ({"custom_name": " name "}, {"custom_name": "name"}),
        ({"custom_name": ""}, {"custom_name": None}),
        ({"custom_name": None, "notes": None}, {"custom_name": None, "notes": None}),
        ({"notes": " a\nb "}, {"notes": "a\nb"}),
        ({"tags": [" a ", "", "  ", "b", "a"]}, {"tags": ["a", "b"]}),
        ({"tags": None}, {"tags": []}),
        ({}, {}),
        ({"other": 1}, {}),
    ],
)
def test_settings_are_trimmed_cleared_and_left(body: dict[str, Any], changes: dict[str, Any]) -> None:
    """F83."""
    assert settings_of(body).changes == changes


@pytest.mark.parametrize(
    "body",
    [
        {"custom_name": "x" * 65},
        {"custom_name": "a\nb"},
        {"custom_name": 7},
        {"tags": "a"},
        {"tags": [7]},
        {"tags": ["x" * 65]},
        {"tags": [f"t{n}" for n in range(33)]},
        {"notes": "x" * 4097},
        {"notes": ["a"]},
    ],
)
def test_settings_have_bounds(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        settings_of(body)
