"""The commands that need no peer: config, doctor, env, version, completion; and what the start prints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mesh import control
from mesh.cli.entry import program
from mesh.cli.greeting import Start, draining, greeting
from mesh.cli.output import duration, harmless, plain, size
from mesh.settings import SETTINGS
from mesh.version import ENGINE_PINNED, llama_cpp_commit

ROOT = Path(__file__).parents[3]


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(program, arguments, env=environ)


def test_config_prints_every_setting_with_its_value_and_origin(tmp_path: Path) -> None:
    """F17-F53: `llm-router config` prints every setting with its value and where it came from."""
    (tmp_path / "config.toml").write_text("slots = 4", encoding="utf-8")
    result = run("config", "--json", LLM_ROUTER_PORT="9000", OPENAI_API_KEY="sk-very-secret")
    shown = json.loads(result.stdout)
    assert set(shown) == {setting.name for setting in SETTINGS if not setting.is_hidden}
    assert shown["port"] == {"value": 9000, "origin": "environment LLM_ROUTER_PORT"}
    assert shown["slots"] == {"value": 4, "origin": f"file {tmp_path / 'config.toml'}"}
    assert shown["openai_api_key"] == {"value": "***", "origin": "environment OPENAI_API_KEY"}
    assert shown["allowed_hosts"] == {"value": [], "origin": "default"}

    table = run("config", LLM_ROUTER_PORT="9000", OPENAI_API_KEY="sk-very-secret", ROUTER_HOST="127.0.0.1")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in table.stdout.splitlines()}
    assert rows["port"] == ["9000", "environment LLM_ROUTER_PORT"]
    assert rows["openai_api_key"] == ["***", "environment OPENAI_API_KEY"]
    assert "very-secret" not in table.output
    assert "warning: ROUTER_HOST is an old name: use LLM_ROUTER_HOST" in table.stderr


def test_env_prints_the_words_of_each_shell(tmp_path: Path) -> None:
    assert run("env", "--shell", "bash").stdout == (
        "export OPENAI_BASE_URL=http://127.0.0.1:8080/v1\nexport OPENAI_API_KEY=loopback-needs-no-key\n"
    )
    assert run("env", "--shell", "fish").stdout.startswith("set -gx OPENAI_BASE_URL http://127.0.0.1:8080/v1\n")
    assert run("env", "--shell", "powershell").stdout.startswith('$env:OPENAI_BASE_URL = "http://127.0.0.1:8080/v1"\n')
    control.publish(tmp_path, port=4321, url="http://127.0.0.1:4321", version="0.1.0", token="t")
    running = run("env", "--json")
    assert json.loads(running.stdout)["OPENAI_BASE_URL"] == "http://127.0.0.1:4321/v1"
    assert running.stderr == ""


def test_version_names_ours_and_the_engines_build() -> None:
    shown = json.loads(run("version", "--json").stdout)
    assert set(shown) == {"llm_router", "python", "llama_cpp_python", "llama_cpp"}
    assert run("--version").stdout == f"llm-router {shown['llm_router']}\n"
    assert run("version").stdout.splitlines()[0] == f"llm-router {shown['llm_router']}"


def test_the_llama_cpp_of_the_pinned_engine_is_known() -> None:
    assert llama_cpp_commit(ENGINE_PINNED)
    assert llama_cpp_commit("0.0.1") is None and llama_cpp_commit(None) is None


def test_doctor_as_json_and_as_lines_say_the_same(tmp_path: Path) -> None:
    result = run("doctor", "--json", LLM_ROUTER_PORT="0")
    checks = json.loads(result.stdout)["checks"]
    lines = run("doctor", LLM_ROUTER_PORT="0").stdout
    assert {check["name"] for check in checks} >= {"python", "packages", "engine", "data folder", "port", "GPU"}
    assert all(check["name"] in lines for check in checks)
    assert result.exit_code == int(any(check["state"] == "fail" for check in checks))
    assert "\x1b" not in lines


def test_doctor_works_where_the_settings_do_not() -> None:
    result = run("doctor", LLM_ROUTER_PORT="eighty")
    assert result.exit_code == 1
    assert "FAIL  settings" in result.stdout and "eighty" in result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_prints_a_script_for_each_shell(shell: str) -> None:
    result = CliRunner().invoke(program, ["completion", shell], prog_name="llm-router")
    assert result.exit_code == 0
    assert "_LLM_ROUTER_COMPLETE" in result.stdout and "llm-router" in result.stdout


def completed(kind: str, folder: Path, **environ: str) -> list[str]:
    code = "import sys; sys.argv = ['llm-router']; from mesh.cli.entry import main; main()"
    kept = os.environ | {"LLM_ROUTER_DATA_DIR": str(folder), "_LLM_ROUTER_COMPLETE": kind} | environ
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, cwd=ROOT, timeout=60)
    return done.stdout.splitlines()


def test_bash_and_powershell_complete_commands_and_flags(tmp_path: Path) -> None:
    assert completed("bash_complete", tmp_path, COMP_WORDS="llm-router st", COMP_CWORD="1") == ["plain,status"]
    assert completed("bash_complete", tmp_path, COMP_WORDS="llm-router up --max-l", COMP_CWORD="2") == [
        "plain,--max-loaded-models"
    ]
    assert completed("powershell_complete", tmp_path, COMP_WORDS="llm-router mod", COMP_LAST="mod") == ["model"]
    assert completed("powershell_complete", tmp_path, COMP_WORDS="llm-router model un", COMP_LAST="un") == ["unload"]
    assert "import" in completed("powershell_complete", tmp_path, COMP_WORDS="llm-router model ", COMP_LAST="")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_bash_script_is_one_that_bash_reads() -> None:
    script = CliRunner().invoke(program, ["completion", "bash"], prog_name="llm-router").stdout
    assert subprocess.run(["bash", "-n"], input=script, text=True, timeout=30).returncode == 0


START = Start(
    name="tower",
    version="0.1.0",
    engine="0.3.36",
    gpus=("RTX 4090",),
    cores=8,
    memory_bytes=32 * 1024**3,
    models=2,
    models_dir=Path("/m"),
    url="http://127.0.0.1:8080",
)


def test_the_start_says_what_a_person_needs() -> None:
    text = greeting(START)
    for part in (
        "tower: llm-router 0.1.0",
        "llama-cpp-python 0.3.36",
        "RTX 4090",
        "models     2 in /m",
        "http://127.0.0.1:8080/dashboard",
        "export OPENAI_BASE_URL=http://127.0.0.1:8080/v1",
        'llm-router run hello "What are you?"',
    ):
        assert part in text
    assert "OPEN:" not in text


def test_the_start_without_engine_says_how_to_add_it_and_offers_nothing_that_needs_it() -> None:
    import dataclasses

    start = dataclasses.replace(START, engine=None, gpus=(), models=0, lan_url="http://attic:8080", is_open=True)
    text = greeting(dataclasses.replace(start, warnings=["old name"]))
    assert "install llm-router-mesh[llama]" in text and "C++ compiler" in text
    assert "run hello" not in text
    assert "no GPU seen" in text and "OPEN:" in text and "warning: old name" in text


def test_the_drain_counts_requests() -> None:
    assert draining(1) == "draining 1 request, Ctrl+C again to stop now"
    assert draining(3) == "draining 3 requests, Ctrl+C again to stop now"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (size(0), "0 B"),
        (size(2_400_000), "2.4 MB"),
        (size(491_000_000), "491 MB"),
        (size(3 * 10**13), "30.0 TB"),
        (size(None), ""),
        (duration(0.85), "850 ms"),
        (duration(119), "119 s"),
        (duration(7200), "2 h"),
        (plain(None), "-"),
        (plain(True), "yes"),
        (plain(["a", "b"]), "a, b"),
        (plain({"a": 1.0}), "a 1"),
        (harmless("a\x1b[31mb\nc\u202ed"), "a\ufffd[31mb\nc\ufffdd"),
    ],
)
def test_what_people_read(shown: str, expected: str) -> None:
    assert shown == expected
