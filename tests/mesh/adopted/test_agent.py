"""A registered server as the admin map has it, and what a hostile row of it is worth."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.adopted.agent import MODELS_MAX, Agent, AgentModel, Device, agent_in, agent_out, models_of

AGENT = Agent(
    id="0b5d9f3e-6a51-4e0c-9f41-1d2c3b4a5e6f",
    machine_name="attic",
    ip_address="192.168.1.20",
    runtime_port=11434,
    scheme="http",
    host="192.168.1.20",
    port=11435,
    address="192.168.1.20",
    registered_at=1_700_000_000.5,
    token_hash="0" * 64,
    runtime_version="0.5.1",
    gpu_available=True,
    gpu_devices=(Device(model="RTX 4090", count=2, memory=24 << 30), Device(model="T4", count=1)),
    gpu_count=3,
    gpu_model="RTX 4090",
    models=(
        AgentModel(id="llama3.2:3b", name="llama3.2:3b"),
        AgentModel(id="bge-m3", name="bge-m3", is_embedding=True),
    ),
    custom_name="Upstairs",
    tags=("fast", "loud"),
    notes="Behind the door.",
    is_cordoned=True,
)


def stored(agent: Agent = AGENT, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(json.dumps(agent_out(agent)))
    return fields | changes


def test_an_agent_is_read_as_it_was_written() -> None:
    assert agent_in(AGENT.key, stored()) == AGENT
    bare = Agent(
        id=AGENT.id,
        machine_name="a",
        ip_address="gpu.lan",
        runtime_port=1,
        scheme="https",
        host="gpu.lan",
        port=1,
        address="fd00::5",
        registered_at=0.0,
        token_hash="x",
    )
    assert agent_in(bare.key, stored(bare)) == bare
    here = replace(bare, host="127.0.0.1", address="127.0.0.1", via="peer-1")
    assert agent_in(here.key, stored(here)) == here


@pytest.mark.parametrize(
    "changes",
    [
        {"address": "169.254.169.254"},
        {"address": "127.0.0.1"},
        {"address": "0.0.0.0"},
        {"address": "::ffff:127.0.0.1"},
        {"address": "localhost"},
        {"address": ""},
        {"via": "peer-1"},
        {"via": "peer-1", "address": "169.254.169.254"},
        {"host": "evil\r\nX-Header: 1"},
        {"host": "a b"},
        {"host": "127.1"},
        {"host": "metadata.google.internal"},
        {"port": 0},
        {"port": 70_000},
        {"port": "80"},
        {"runtime_port": True},
        {"machine_name": ""},
        {"machine_name": "x" * 1000},
        {"machine_name": "\x1b[31m"},
        {"machine_name": 7},
        {"registered_at": float("nan")},
        {"registered_at": "now"},
        {"registered_at": 10**400},
        {"token_hash": None},
        {"models": 7},
        {"models": [["a", "b"]]},
        {"gpu_devices": [{"model": "x"}]},
        {"gpu_devices": "x"},
        {"tags": [7]},
        {"notes": "x" * 5000},
        {"custom_name": 7},
    ],
)
def test_a_row_that_no_peer_of_ours_writes_is_no_agent(changes: dict[str, Any]) -> None:
    assert agent_in(AGENT.key, stored(**changes)) is None


@pytest.mark.parametrize("key", ["agent/", "agent/x", "agent/" + AGENT.id.upper(), "agent/../" + AGENT.id, AGENT.id])
def test_an_agent_has_a_uuid(key: str) -> None:
    found = agent_in(key, stored())
    assert found is None or found.id == key  # a bare id is the same without its space


@pytest.mark.parametrize("missing", ["machine_name", "address", "port", "token_hash", "scheme", "registered_at"])
def test_a_row_that_is_not_all_there_is_no_agent(missing: str) -> None:
    fields = stored()
    del fields[missing]
    assert agent_in(AGENT.key, fields) is None


@given(
    st.dictionaries(
        st.sampled_from(list(stored())),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=4,
        ),
    )
)
def test_garbage_in_a_row_never_raises(changes: dict[str, Any]) -> None:
    agent_in(AGENT.key, stored(**changes))


@pytest.mark.parametrize(
    ("told", "model_id"),
    [
        ("llama3.2:3b", "llama3.2:3b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("/models/Qwen2.5-7B Q4.gguf", "Qwen2.5-7B-Q4"),
        ("C:\\models\\phi.GGUF", "phi"),
        ("my model", "my-model"),
        ("openai:gpt-4o", "openai-gpt-4o"),
    ],
)
def test_a_model_is_called_as_the_server_calls_it_or_by_its_file(told: str, model_id: str) -> None:
    assert models_of([told]) == (AgentModel(id=model_id, name=told),)


@pytest.mark.parametrize("told", ["hello", "", "///", "\x00", "..", "名前"])
def test_a_name_that_is_somebody_elses_or_none_is_left_out(told: str) -> None:
    assert models_of([told, "good"]) == (AgentModel(id="good", name="good"),)


def test_models_of_a_server_are_bounded_and_unique() -> None:
    assert len(models_of(f"model-{n}" for n in range(10_000))) == MODELS_MAX
    assert models_of(["a", "a", "/x/a.gguf"]) == (AgentModel(id="a", name="a"),)
    long = models_of(f"{n}-" + "x" * 190 for n in range(MODELS_MAX))
    assert len(json.dumps([[m.id, m.name, m.is_embedding] for m in long])) < 64 * 1024


@pytest.mark.parametrize(
    ("name", "is_embedding"),
    [
        ("nomic-embed-text:latest", True),
        ("mxbai-embed-large", True),
        ("all-minilm:l6-v2", True),
        ("BAAI/bge-m3", True),
        ("intfloat/multilingual-e5-large", True),
        ("thenlper/gte-large", True),
        ("text-embedding-3-small", True),
        ("llama3.2:3b", False),
        ("gemma2:2b", False),
        ("deepseek-r1", False),
        ("google/gemma-3n-e5b", False),
    ],
)
def test_embedding_models_are_told_by_their_names(name: str, is_embedding: bool) -> None:
    assert models_of([name])[0].is_embedding is is_embedding


@pytest.mark.parametrize("name", ["192.168.1.20", "192.168.1.20:11434", "[fd00::5]:80", "fd00::5"])
def test_answers_never_show_an_address_as_the_name_of_a_server(name: str) -> None:
    """F75."""
    assert replace(AGENT, machine_name=name, custom_name=None).name == "server-0b5d9f"
    assert replace(AGENT, machine_name="attic", custom_name=name).name == "server-0b5d9f"
    assert replace(AGENT, custom_name=None).server.name == "attic"
