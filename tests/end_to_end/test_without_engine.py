"""A peer installed without the `llama` extra: it starts, says what is missing, and serves what needs no engine."""

from __future__ import annotations

import json
import sysconfig
import venv
from pathlib import Path

import openai
import pytest

from tests.fixtures.peer import Peer, chat_body, llm_router


@pytest.fixture(scope="module")
def python_without_engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment that has all of this one's packages but llama-cpp-python."""
    folder = tmp_path_factory.mktemp("plain") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    target = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("llama_cpp"):
            (target / entry.name).symlink_to(entry)
    return str(folder / "bin" / "python")


def test_without_the_engine_the_peer_starts_says_so_and_serves_the_rest(
    tmp_path: Path, python_without_engine: str
) -> None:
    with Peer.started(tmp_path / "data", python=python_without_engine) as peer:
        assert "none: no model can run here" in peer.stdout and "llm-router-mesh[llama]" in peer.stdout
        assert "llm-router run" not in peer.stdout
        (model,) = peer.get("/v1/models").json["data"]
        assert model["id"] == "hello" and model["ready"] is False
        assert peer.get("/health").status == peer.get("/ready").status == peer.get("/metrics").status == 200
        refused = peer.post("/v1/chat/completions", chat_body("hello", "Hello"))
        assert refused.status == 503 and "llm-router-mesh[llama]" in refused.json["error"]["message"]
        with openai.OpenAI(base_url=f"{peer.url}/v1", api_key="any", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as error:
                client.chat.completions.create(model="hello", messages=[{"role": "user", "content": "Hello"}])
            assert (error.value.status_code, error.value.code) == (503, "model_unavailable")
        failed = peer.command("run", "hello", "Hello")
        assert failed.returncode == 1 and "llm-router-mesh[llama]" in failed.stderr
    version = llm_router(tmp_path / "data", "version", python=python_without_engine)
    assert "no engine" in version.stdout
    doctor = llm_router(tmp_path / "data", "doctor", "--json", python=python_without_engine)
    (engine,) = [c for c in json.loads(doctor.stdout)["checks"] if c["name"] == "engine"]
    assert engine["state"] == "warn" and "llm-router-mesh[llama]" in engine["fix"]
