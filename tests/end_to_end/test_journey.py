"""The command line as a person uses it, from the first start to the last Ctrl+C: real processes, real engine."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import SCRIPTED_ANSWER
from tests.fixtures.peer import Peer, llm_router, placed, until

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A peer as it is after the first start: no model but the built-in one."""
    with Peer.started(tmp_path_factory.mktemp("home") / "data") as running:
        yield running


def json_of(peer: Peer, *words: str) -> Any:
    done = peer.command(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def model_ids(peer: Peer) -> list[str]:
    return [m["id"] for m in json_of(peer, "model", "list")["models"]]


# -- the first minute


def test_start_prints_the_url_and_the_next_command(home: Peer) -> None:
    assert f"{home.url}/v1" in home.stdout and f"export OPENAI_BASE_URL={home.url}/v1" in home.stdout
    (command,) = re.findall(r'llm-router (run hello ".*")', home.stdout)
    done = home.command("run", "hello", "What are you?")
    assert command == 'run hello "What are you?"'
    assert done.returncode == 0 and "small" in done.stdout and done.stderr == ""


def test_piped_text_is_the_prompt_and_belongs_to_a_given_one(home: Peer) -> None:
    alone = json.loads(home.command("run", "hello", "--json", stdin="Hello").stdout)
    given = json.loads(home.command("run", "hello", "Hello", "--json").stdout)
    both = json.loads(home.command("run", "hello", "Hello", "--json", stdin="and more of it").stdout)
    assert alone["usage"]["prompt_tokens"] == given["usage"]["prompt_tokens"] < both["usage"]["prompt_tokens"]
    empty = home.command("run", "hello")
    assert empty.returncode == 2 and "there is no prompt" in empty.stderr


def test_conversation_goes_on_until_the_input_ends(home: Peer) -> None:
    done = home.command("chat", "hello", stdin="Hello\n/clear\nWhat are you?\n/exit\nnever asked\n")
    assert done.returncode == 0
    answers = done.stdout.strip().splitlines()
    assert len(answers) >= 2 and "forgotten" in done.stderr


def test_status_ps_and_models_are_json_for_scripts(home: Peer) -> None:
    assert home.command("run", "hello", "Hello").returncode == 0
    status = json_of(home, "status")
    assert status["ready"] is True and status["pid"] == home.process.pid
    assert status["engine"].startswith("llama-cpp-python ") and status["models_loaded"] == ["hello"]
    (loaded,) = json_of(home, "ps")["models"]
    assert loaded["model"] == "hello" and loaded["state"] == "loaded" and loaded["slots"] > 0
    (model,) = json_of(home, "model", "list")["models"]
    assert model["id"] == "hello" and model["loaded"] and model["capabilities"] == ["chat", "completion"]


@pytest.mark.parametrize("words", [("ps",), ("status",), ("model", "list"), ("model", "show", "hello")])
def test_tables_for_people_hold_the_same(home: Peer, words: tuple[str, ...]) -> None:
    assert home.command("run", "hello", "Hello").returncode == 0
    done = home.command(*words)
    assert done.returncode == 0 and "hello" in done.stdout


def test_model_that_is_not_there_exits_with_five_and_names_the_nearest(home: Peer) -> None:
    done = home.command("run", "helo", "Hello")
    assert done.returncode == 5
    assert "hello" in done.stderr and done.stdout == ""


# -- models


def test_imported_model_is_listed_runs_is_shown_and_removed(home: Peer, scripted_gguf: Path) -> None:
    imported = json_of(home, "model", "import", str(scripted_gguf), "--name", "my/talker")
    assert imported["id"] == "my/talker"
    assert model_ids(home) == ["my/talker", "hello"]
    said = home.command("run", "my/talker", "Hello", "--temperature", "0")
    assert said.stdout == SCRIPTED_ANSWER + "\n"
    shown = json_of(home, "model", "show", "my/talker")
    assert shown["size_bytes"] == scripted_gguf.stat().st_size and re.fullmatch("[0-9a-f]{64}", shown["sha256"])
    asked = home.command("model", "rm", "my/talker")
    assert asked.returncode == 2 and "--yes" in asked.stderr and "my/talker" in model_ids(home)
    assert home.command("model", "rm", "my/talker", "--yes").returncode == 0
    assert model_ids(home) == ["hello"] and scripted_gguf.exists()
    assert home.command("run", "my/talker", "Hello").returncode == 5
    assert not list((home.data_dir / "models" / "blobs").iterdir())


def test_file_that_is_no_model_is_refused_with_its_name(home: Peer, tmp_path: Path) -> None:
    (tmp_path / "letter.gguf").write_text("Dear reader, " * 100)
    done = home.command("model", "import", str(tmp_path / "letter.gguf"))
    assert done.returncode == 1 and "letter.gguf" in done.stderr and "Traceback" not in done.stderr
    missing = home.command("model", "import", str(tmp_path / "nothing.gguf"))
    assert missing.returncode == 5
    assert model_ids(home) == ["hello"]


def test_file_put_into_the_models_folder_appears_and_one_taken_away_goes(
    tmp_path: Path, tiny_gguf: Path, scripted_gguf: Path
) -> None:
    models = tmp_path / "models"
    placed(models, leaving=tiny_gguf)
    with Peer.started(tmp_path / "data", "--models-dir", str(models)) as peer:
        assert model_ids(peer) == ["leaving", "hello"]
        (models / "leaving.gguf").unlink()
        placed(models / "somebody", coming=scripted_gguf)
        until(lambda: "leaving" not in model_ids(peer), "the file that went is forgotten")
        until(lambda: len(model_ids(peer)) == 2, "the file that came is listed")
        name = model_ids(peer)[0]
        assert "coming" in name
        assert peer.command("run", name, "Hello", "--temperature", "0").stdout == SCRIPTED_ANSWER + "\n"
        refused = peer.command("model", "rm", name, "--yes")
        assert refused.returncode == 1 and "delete it there" in refused.stderr
        assert (models / "somebody" / "coming.gguf").exists()


# -- two peers


def test_second_peer_runs_beside_the_first_with_the_same_models(
    home: Peer, tmp_path: Path, scripted_gguf: Path
) -> None:
    shared = home.data_dir / "models"
    with Peer.started(tmp_path / "second", "--models-dir", str(shared), "--name", "second") as other:
        assert other.port != home.port and json_of(other, "status")["name"] == "second"
        assert json_of(other, "model", "import", str(scripted_gguf), "--name", "shared")["id"] == "shared"
        until(lambda: "shared" in model_ids(home), "the first peer sees it too")
        for peer in (home, other):
            said = peer.command("run", "shared", "Hello", "--temperature", "0")
            assert said.stdout == SCRIPTED_ANSWER + "\n"
    assert home.command("model", "rm", "shared", "--yes").returncode == 0
    assert model_ids(home) == ["hello"]


def test_second_peer_in_the_same_data_folder_is_refused_naming_the_process(home: Peer) -> None:
    done = llm_router(home.data_dir, "up", "--port", "0")
    assert done.returncode == 1 and done.stdout == ""
    assert f"process {home.process.pid}" in done.stderr and "fix:" in done.stderr
    assert home.get("/ready").status == 200


def test_busy_port_names_who_has_it(home: Peer, tmp_path: Path) -> None:
    done = llm_router(tmp_path / "data", "up", "--port", str(home.port))
    assert done.returncode == 1
    assert f"port {home.port} is in use by llm-router (process {home.process.pid})" in done.stderr
    assert "--port 0" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = llm_router(tmp_path / "data", "up", "--port", str(port), "--host", "127.0.0.1")
    assert done.returncode == 1 and f"(process {os.getpid()})" in done.stderr
    assert not (tmp_path / "data" / "control.json").exists()


@pytest.mark.parametrize(
    ("words", "env", "expected"),
    [
        (("up", "--port", "99999"), {}, ("port", "99999", "--port", "65535")),
        (("up",), {"LLM_ROUTER_SLOTS": "many"}, ("slots", "many", "LLM_ROUTER_SLOTS", "64")),
        (("--threads", "-3"), {}, ("threads", "-3", "--threads", "1024")),
    ],
)
def test_bad_setting_ends_the_start_with_one_line(
    tmp_path: Path, words: tuple[str, ...], env: dict[str, str], expected: tuple[str, ...]
) -> None:
    done = llm_router(tmp_path / "data", *words, env=env)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert all(word in line for word in expected), line


# -- the end


def test_down_ends_the_peer_and_what_needs_one_then_says_so(tmp_path: Path) -> None:
    with Peer.started(tmp_path / "data") as peer:
        assert peer.command("run", "hello", "Hello").returncode == 0
        worker = peer.worker("hello")
        done = peer.command("down")
        assert done.returncode == 0, done.stderr
        assert peer.process.wait(30) == 0
        assert not worker.is_running()
        assert not (peer.data_dir / "control.json").exists()
        after = peer.command("ps")
    assert after.returncode == 3 and "llm-router" in after.stderr


# -- commands that need no peer


def test_config_says_where_each_value_came_from(tmp_path: Path) -> None:
    env = {"LLM_ROUTER_SLOTS": "3", "LLM_ROUTER_ADMIN_PASSWORD": "correct horse"}
    done = llm_router(tmp_path / "data", "config", "--json", env=env)
    settings = json.loads(done.stdout)
    assert settings["slots"] == {"value": 3, "origin": "environment LLM_ROUTER_SLOTS"}
    assert settings["port"] == {"value": 8080, "origin": "default"}
    assert "correct horse" not in done.stdout + done.stderr
    table = llm_router(tmp_path / "data", "config", env=env).stdout
    assert re.search(r"slots\s+3\s+environment LLM_ROUTER_SLOTS", table) and "correct horse" not in table


def test_doctor_finds_nothing_wrong_beside_a_running_peer(home: Peer) -> None:
    done = home.command("doctor", "--json", "--data-dir", str(home.data_dir))
    checks = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert checks["engine"]["state"] == checks["packages"]["state"] == checks["data folder"]["state"] == "ok"
    assert (done.returncode == 1) is any(c["state"] == "fail" for c in checks.values())
    assert all(c["fix"] for c in checks.values() if c["state"] != "ok")


def test_env_points_clients_at_this_peer(home: Peer) -> None:
    done = home.command("env", "--shell", "bash")
    lines = dict(line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines())
    assert lines["OPENAI_BASE_URL"] == f"{home.url}/v1"
    with openai.OpenAI(base_url=lines["OPENAI_BASE_URL"], api_key=lines["OPENAI_API_KEY"]) as client:
        assert [m.id for m in client.models.list()] == ["hello"]


def test_version_names_ours_pythons_and_the_engines(tmp_path: Path) -> None:
    found = json.loads(llm_router(tmp_path / "data", "version", "--json").stdout)
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["llm_router"])
    assert re.fullmatch(r"3\.1[1-3]\.\d+", found["python"])
    assert found["llama_cpp_python"] and found["llama_cpp"]
    assert llm_router(tmp_path / "data", "--version").stdout == f"llm-router {found['llm_router']}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_prints_a_script_for_the_shell(tmp_path: Path, shell: str) -> None:
    done = llm_router(tmp_path / "data", "completion", shell)
    assert done.returncode == 0 and "llm-router" in done.stdout and "_LLM_ROUTER_COMPLETE" in done.stdout


def test_completion_knows_the_models_of_the_running_peer(home: Peer) -> None:
    typed = {"_LLM_ROUTER_COMPLETE": "bash_complete", "COMP_WORDS": "llm-router run he", "COMP_CWORD": "2"}
    done = llm_router(home.data_dir, env=typed)
    assert done.stdout.strip() == "plain,hello"


def test_commands_read_an_answer_to_its_end_so_that_no_client_seems_to_have_left(home: Peer) -> None:
    for _ in range(5):
        assert home.command("run", "hello", "Hello").returncode == 0
    counted = home.get("/metrics").body.decode()
    assert 'route="/v1/chat/completions",status="200"' in counted
    assert 'route="/v1/chat/completions",status="499"' not in counted
