"""The commands that talk to a running peer, against a fake one over real HTTP."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mesh import control
from mesh.cli.failure import Exit

if TYPE_CHECKING:
    from tests.mesh.cli.conftest import FakePeer, Run


async def test_run_prints_the_answer_as_it_comes(peer: FakePeer, run: Run) -> None:
    result = await run("run", "qwen", "What", "are you?", "--system", "Be short.", "--max-tokens", "9", "--seed", "1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello there!\n", "")
    assert peer.asked == [
        (
            "POST",
            "/v1/chat/completions",
            {
                "model": "qwen",
                "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What are you?"}],
                "max_tokens": 9,
                "seed": 1,
                "stream": True,
            },
        )
    ]


async def test_run_takes_its_prompt_from_a_pipe_and_adds_it_to_a_given_one(peer: FakePeer, run: Run) -> None:
    await run("run", "hello", stdin="from a pipe\n")
    await run("run", "hello", "Summarize:", stdin="a text\n")
    assert [asked[2]["messages"][-1]["content"] for asked in peer.asked] == ["from a pipe", "Summarize:\n\na text"]


async def test_run_without_any_prompt_is_a_mistake_of_usage(peer: FakePeer, run: Run) -> None:
    result = await run("run", "hello")
    assert result.exit_code == Exit.USAGE and "there is no prompt" in result.stderr
    assert peer.asked == []


async def test_run_as_json_prints_the_whole_object(peer: FakePeer, run: Run) -> None:
    result = await run("run", "hello", "Hi", "--json")
    assert json.loads(result.stdout)["choices"][0]["message"]["content"] == "Hello there!"
    assert "stream" not in peer.asked[0][2]


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (401, {"error": {"message": "Bad key.", "type": "x", "param": None, "code": None}}, 4, "Bad key."),
        (403, {"error": "only here"}, 4, "only here"),
        (404, {"error": {"message": "No model x; nearest: hello."}}, 5, "No model x; nearest: hello."),
        (503, {"error": {"message": "The queue is full."}}, 1, "The queue is full."),
        (500, ["strange"], 1, "the peer answered HTTP 500"),
    ],
)
async def test_a_refusal_is_told_in_the_peers_words_with_its_exit_code(
    peer: FakePeer, run: Run, status: int, body: object, code: int, message: str
) -> None:
    peer.refusal = (status, body)
    for arguments in (("run", "x", "Hi"), ("ps",), ("model", "load", "x")):
        result = await run(*arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert result.stderr.splitlines()[-1] == f"error: {message}"


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ('data: {"error": {"message": "The worker died."}}\n\n', "error: The worker died."),
        ("", "error: the answer was cut off"),
    ],
)
async def test_an_answer_that_breaks_off_keeps_what_came_and_fails(
    peer: FakePeer, run: Run, ending: str, message: str
) -> None:
    peer.ends_with = ending
    result = await run("run", "hello", "Hi")
    assert result.exit_code == Exit.FAILED
    assert result.stdout == "Hello there!\n"
    assert result.stderr.splitlines()[0] == message


async def test_chat_remembers_the_conversation_until_it_is_cleared(peer: FakePeer, run: Run) -> None:
    peer.words = ["Yes."]
    result = await run("chat", "hello", stdin="one\n\ntwo\n/clear\nthree\n/exit\nnever asked\n")
    assert (result.exit_code, result.stdout) == (0, "Yes.\n" * 3)
    assert [[message["content"] for message in body["messages"]] for _, _, body in peer.asked] == [
        ["one"],
        ["one", "Yes.", "two"],
        ["three"],
    ]


async def test_chat_without_a_model_takes_one_in_memory_and_the_built_in_one_last(peer: FakePeer, run: Run) -> None:
    await run("chat", stdin="hi\n")
    peer.models = [dict(model, loaded=False) for model in reversed(peer.models)]
    await run("chat", stdin="hi\n")
    del peer.models[1]
    await run("chat", stdin="hi\n")
    assert [body["model"] for _, _, body in peer.asked if body] == ["hf/qwen/q4.gguf", "hf/qwen/q4.gguf", "hello"]
    peer.models = [dict(peer.models[0], capabilities=["embedding"])]
    assert (await run("chat", stdin="hi\n")).exit_code == Exit.NOT_FOUND


async def test_a_chat_whose_first_question_fails_ends_with_the_code_of_the_failure(peer: FakePeer, run: Run) -> None:
    peer.refusal = (404, {"error": {"message": "No model x."}})
    result = await run("chat", "x", stdin="hi\nagain\n")
    assert result.exit_code == Exit.NOT_FOUND and len(peer.asked) == 1


async def test_ps_and_status_show_units_as_people_read_them(peer: FakePeer, run: Run) -> None:
    peer.loaded = [{"model": "hello", "memory_bytes": 2_400_000, "idle_s": 0.5, "pid": None}]
    peer.requests = [{"id": "a1", "model": "hello", "waited_s": 90}]
    ps = [line.split() for line in (await run("ps")).stdout.splitlines()]
    assert ps == [
        ["MODEL", "MEMORY", "IDLE"],
        ["hello", "2.4", "MB", "500", "ms"],
        [],
        ["ID", "MODEL", "WAITED"],
        ["a1", "hello", "90", "s"],
    ]
    peer.loaded = peer.requests = []
    nothing = await run("ps")
    assert nothing.stdout == "" and "no model is in memory" in nothing.stderr

    status = (await run("status")).stdout.splitlines()
    assert [line.split(maxsplit=1) for line in status] == [
        ["name", "tower"],
        ["uptime", "90 s"],
        ["memory", "total 8.0 GB"],
    ]


@pytest.mark.parametrize("arguments", [("ps",), ("status",), ("model", "list"), ("model", "show", "hello"), ("ls",)])
async def test_every_read_has_json_on_stdout_and_nothing_else(
    peer: FakePeer, run: Run, arguments: tuple[str, ...]
) -> None:
    result = await run(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)


async def test_model_list_is_a_table_that_is_not_cut_off_in_a_pipe(peer: FakePeer, run: Run) -> None:
    peer.models[0]["id"] = "hf/" + "x" * 200 + ".gguf"
    peer.models[1]["id"] = "evil\x1b[2J\n"
    lines = (await run("model", "list")).stdout.splitlines()
    assert lines[0].split() == ["MODEL", "SIZE", "QUANTIZATION", "CONTEXT", "STATE"]
    assert lines[1].split() == ["hf/" + "x" * 200 + ".gguf", "491", "MB", "Q8_0", "2048", "loaded"]
    assert "\x1b" not in "".join(lines)


async def test_model_list_says_which_machines_have_a_model_once_there_are_several(peer: FakePeer, run: Run) -> None:
    peer.models = [peer.models[0] | {"holders": ["tower", "attic"]}, peer.models[1] | {"holders": ["tower"]}]
    lines = (await run("model", "list")).stdout.splitlines()
    assert lines[0].split()[-1] == "MACHINES"
    assert lines[1].endswith("loaded  tower, attic") and lines[2].endswith("ready   tower")
    peer.models[0]["holders"] = ["tower"]
    assert "MACHINES" not in (await run("model", "list")).stdout


async def test_what_comes_later_says_so_and_what_to_do_instead(peer: FakePeer, run: Run) -> None:
    for arguments in (
        ("model", "list", "--search", "llama"),
        ("pull", "llama3.2", "--all"),
        ("model", "add", "a/b", "--file", "c"),
    ):
        result = await run(*arguments)
        assert result.exit_code == Exit.FAILED
        assert "comes in a later version" in result.stderr and "llm-router model import" in result.stderr
    assert peer.asked == []


async def test_model_show_finds_by_alias_and_names_the_nearest_otherwise(peer: FakePeer, run: Run) -> None:
    assert "hf/qwen/q4.gguf" in (await run("model", "show", "qwen")).stdout
    result = await run("model", "show", "helo")
    assert result.exit_code == Exit.NOT_FOUND
    assert "did you mean hello?" in result.stderr


async def test_model_import_sends_the_whole_path_and_the_name(peer: FakePeer, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    result = await run("model", "import", os.path.relpath(file), "--name", "mine")
    assert (result.exit_code, result.stdout) == (0, "imported as imported: llm-router run imported\n")
    assert peer.asked == [("POST", "/api/models/import", {"path": str(file), "name": "mine"})]
    assert (await run("model", "import", str(tmp_path / "none.gguf"))).exit_code == Exit.NOT_FOUND
    assert len(peer.asked) == 1


async def test_model_rm_asks_for_yes_without_a_terminal_naming_what_would_go(peer: FakePeer, run: Run) -> None:
    result = await run("model", "rm", "qwen")
    assert result.exit_code == Exit.USAGE
    assert "hf/qwen/q4.gguf (491 MB)" in result.stderr and "--yes" in result.stderr
    assert [method for method, _, _ in peer.asked] == ["GET"]
    assert (await run("rm", "qwen", "--yes")).exit_code == 0
    assert peer.asked[-1][:2] == ("DELETE", "/api/models/hf/qwen/q4.gguf")


async def test_load_and_unload_name_the_model(peer: FakePeer, run: Run) -> None:
    assert (await run("model", "load", "hello")).stdout == "hello is in memory\n"
    assert (await run("stop", "hello")).stdout == "hello is out of memory\n"
    assert peer.asked == [
        ("POST", "/api/models/load", {"model": "hello"}),
        ("POST", "/api/models/unload", {"model": "hello"}),
    ]


async def test_down_waits_until_the_peer_has_withdrawn(peer: FakePeer, run: Run, tmp_path: Path) -> None:
    peer.on_shutdown = (tmp_path / "control.json").unlink
    result = await run("down")
    assert (result.exit_code, result.stderr) == (0, "draining\nstopped\n")


async def test_down_waits_until_the_process_has_let_go_of_the_folder(peer: FakePeer, run: Run, tmp_path: Path) -> None:
    peer.on_shutdown = (tmp_path / "control.json").unlink
    with control.locked(tmp_path):
        assert (await run("down", "--timeout", "0.2")).exit_code == Exit.FAILED
    assert not control.is_owned(tmp_path)


async def test_down_says_when_the_peer_still_runs(peer: FakePeer, run: Run) -> None:
    result = await run("down", "--timeout", "0")
    assert result.exit_code == Exit.FAILED
    assert f"(process {os.getpid()}) still runs after 0 s" in result.stderr


async def test_a_control_file_without_its_peer_is_exit_code_three(run: Run, tmp_path: Path) -> None:
    control.publish(tmp_path, port=1, url="http://127.0.0.1:1", version="0.1.0", token="t")
    result = await run("status")
    assert result.exit_code == Exit.UNREACHABLE
    assert "no peer is running here" in result.stderr and "http://127.0.0.1:1 does not answer" in result.stderr


async def test_another_token_is_not_allowed(peer: FakePeer, run: Run) -> None:
    peer.token = "of the next start"
    assert (await run("ps")).exit_code == Exit.NOT_ALLOWED


async def test_the_data_folder_says_whose_peer_is_meant(peer: FakePeer, run: Run, tmp_path: Path) -> None:
    assert (await run("ps", "--data-dir", str(tmp_path / "other"))).exit_code == Exit.UNREACHABLE
    assert (await run("ps", "--data-dir", str(tmp_path))).exit_code == 0


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
async def test_a_control_file_that_others_may_read_is_refused(peer: FakePeer, run: Run, tmp_path: Path) -> None:
    (tmp_path / "control.json").chmod(0o644)
    result = await run("ps")
    assert result.exit_code == Exit.FAILED
    assert f"fix: chmod 600 {tmp_path / 'control.json'}" in result.stderr
    assert peer.asked == []
