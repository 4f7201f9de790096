"""The checks of the doctor, each made to pass and to fail."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from gossip.storage import MeshFile
from inference.hardware import Gpu, Hardware
from mesh import control, doctor
from mesh.check import Check, made
from mesh.config import load
from mesh.version import ENGINE_PINNED


def examined(folder: Path) -> list[Check]:
    """Nothing is asked of the network."""
    return doctor.examine(load({"data_dir": str(folder), "port": "0", "mdns": "false"}, {}))


def test_every_check_is_made_once_and_what_is_wrong_has_a_fix(tmp_path: Path) -> None:
    checks = examined(tmp_path)
    names = [check.name for check in checks if check.name not in ("not told", "container", "WSL", "proxy")]
    assert names == [
        "python", "packages", "settings", "engine", "data folder", "models folder", "disk", "memory", "GPU",
        "port", "peer port", "run folder", "addresses", "mDNS", "firewall", "mesh",
    ]  # fmt: skip
    assert all(check.fix for check in checks if check.state != "ok")
    assert {check.name: check.state for check in checks}["packages"] == "ok"


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> list[Check]:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(doctor, "disk", broken)
    checks = {check.name: check for check in examined(tmp_path)}
    assert checks["disk"].state == "warn" and "the disk is on fire" in checks["disk"].found
    assert "GPU" in checks


def test_a_check_that_hangs_is_a_finding_too() -> None:
    never = threading.Event()

    def hangs() -> list[Check]:
        never.wait()
        return []

    def works() -> list[Check]:
        return [Check(name="quick", state="ok", found="fine")]

    try:
        late, quick = made([("slow", hangs), ("quick", works)], within_s=0.2)
    finally:
        never.set()
    assert (late.name, late.state, late.found) == ("slow", "warn", "could not be checked within 0.2 s")
    assert late.fix and quick.found == "fine"


def test_the_engine_is_missing_or_of_another_version() -> None:
    (missing,) = doctor.engine(None, False)
    assert missing.state == "warn" and "llm-router-mesh[llama]" in missing.fix
    (other,) = doctor.engine("0.3.1", True)
    assert other.state == "warn" and ENGINE_PINNED in other.found
    assert doctor.engine(ENGINE_PINNED, True)[0].state == "ok"
    assert doctor.engine(ENGINE_PINNED, False)[0].state == "warn"


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_a_data_folder_that_others_may_enter_fails_with_the_command_to_run(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert doctor.data_folder(folder)[0].found.endswith("is made at the first start")
    folder.mkdir(mode=0o700)
    assert doctor.data_folder(folder)[0].state == "ok"
    folder.chmod(0o755)
    (check,) = doctor.data_folder(folder)
    assert (check.state, check.fix) == ("fail", f"chmod 700 {folder}")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize("name", ["identity.pem", "mesh.json", "control.json"])
def test_a_secret_that_others_may_read_fails_with_the_command_to_run(tmp_path: Path, name: str) -> None:
    tmp_path.chmod(0o700)
    secret = tmp_path / name
    secret.write_text("{}")
    secret.chmod(0o600)
    assert doctor.data_folder(tmp_path)[0].state == "ok"
    secret.chmod(0o640)
    (check,) = doctor.data_folder(tmp_path)
    assert (check.state, check.fix) == ("fail", f"chmod 600 {secret}")


def test_a_mesh_file_that_was_set_aside_warns(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "mesh.json").write_text("{")
    (tmp_path / "mesh.json").chmod(0o600)
    MeshFile(tmp_path).load()
    (check,) = doctor.data_folder(tmp_path)
    assert check.state == "warn" and "mesh.json.corrupt-" in check.found and "llm-router invite" in check.fix


def test_the_models_folder_may_be_made_later_but_not_where_a_file_stands(tmp_path: Path) -> None:
    assert doctor.models_folder(tmp_path)[0].found == str(tmp_path)
    assert "is made when it is needed" in doctor.models_folder(tmp_path / "a" / "b")[0].found
    (tmp_path / "file").write_text("")
    (check,) = doctor.models_folder(tmp_path / "file" / "models")
    assert check.state == "fail" and "--models-dir" in check.fix


@pytest.mark.parametrize(("free", "state"), [(100 * 10**9, "ok"), (2 * 10**9, "warn"), (10**6, "fail")])
def test_little_room_warns_and_none_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert doctor.disk(tmp_path / "not yet there")[0].state == state


def test_a_port_is_free_ours_or_somebody_elses(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        (taken,) = doctor.port(number, None)
        assert taken.state == "fail" and f"process {os.getpid()}" in taken.found and "--port 0" in taken.fix
        mine = control.publish(tmp_path, port=number, url="", version="", token="t")
        assert doctor.port(number, mine)[0].state == "ok"
    assert doctor.port(number, None)[0].found == f"{number} is free"
    assert doctor.port(0, None)[0].state == "ok"


def test_a_small_memory_warns() -> None:
    def machine(gib: int) -> Hardware:
        return Hardware(ram_total_bytes=gib << 30, ram_available_bytes=1 << 30, cores_physical=1, cores_logical=1)

    assert doctor.memory(machine(2))[0].state == "warn"
    assert doctor.memory(machine(8))[0].state == "ok"


def test_a_gpu_that_is_only_said_to_be_there_warns() -> None:
    """F136: LLM_GPU_AVAILABLE, LLM_GPU_MODEL, LLM_GPU_COUNT say what to say when detection fails."""
    environ = {"LLM_GPU_AVAILABLE": "true", "LLM_GPU_MODEL": "RTX 9090", "LLM_GPU_COUNT": "2"}
    claim = doctor.claim(load({}, environ).config)
    assert (claim.is_available, claim.model, claim.count) == (True, "RTX 9090", 2)

    said = Gpu(name="RTX 9090", memory_total_bytes=0, memory_free_bytes=0, is_usable=False)
    real = Gpu(name="RTX 4090", memory_total_bytes=24 << 30, memory_free_bytes=20 << 30, is_usable=True)
    assert doctor.gpu([said])[0].state == "warn"
    assert doctor.gpu([real])[0].found == "RTX 4090 (24 GiB)"
    assert doctor.gpu([])[0].state == "ok"


def test_warnings_of_the_settings_are_findings() -> None:
    (check,) = doctor.settings(load({}, {"ROUTER_PORT": "8080"}))
    assert check.state == "warn" and "LLM_ROUTER_PORT" in check.found
