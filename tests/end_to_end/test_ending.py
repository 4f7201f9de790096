"""How a peer ends: drained by a signal, hurried by a second one, killed. Not on Windows, which has no such signals."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from inference.chat import ChatPrompt, Message
from tests.fixtures.fake_worker import expected_text
from tests.fixtures.peer import Peer, chat_body, until

pytestmark = pytest.mark.engine


def test_ctrl_c_lets_a_running_answer_end_and_refuses_new_ones(tmp_path: Path, tiny_gguf: Path) -> None:
    with Peer.started(tmp_path / "data") as peer:
        assert peer.command("model", "import", str(tiny_gguf), "--name", "tiny").returncode == 0
        body = chat_body("tiny", "Hello", ignore_eos=True, max_tokens=1500, stream_options={"include_usage": True})
        stream = peer.stream("/v1/chat/completions", body)
        events = stream.events()
        while not stream.text:
            next(events)
        peer.signal(signal.SIGINT)
        until(lambda: "draining 1 request" in peer.stdout, "the peer says that it drains")
        refused = peer.post("/v1/chat/completions", chat_body("hello", "Hello"))
        assert refused.status == 503 and refused.headers["Retry-After"]
        stream.read()
        assert stream.is_done and stream.finish_reason == "length" and stream.error is None
        assert stream.usage is not None and stream.usage["completion_tokens"] == 1500
        assert peer.process.wait(30) == 0
    assert "Traceback" not in peer.stderr


def test_second_ctrl_c_ends_at_once_with_an_error_event(tmp_path: Path) -> None:
    slow = {"LLM_ROUTER_WORKER": "tests.fixtures.fake_worker --tokens 4000 --rate 20"}
    with Peer.started(tmp_path / "data", env=slow) as peer:
        stream = peer.stream("/v1/chat/completions", chat_body("hello", "Hello"))
        next(stream.events())
        peer.signal(signal.SIGINT)
        until(lambda: "Ctrl+C again to stop now" in peer.stdout, "the peer says how to hurry")
        peer.signal(signal.SIGINT)
        stream.read()
        assert stream.error is not None and stream.error["code"] == "stream_interrupted" and not stream.is_done
        assert peer.process.wait(30) == 0


def test_twenty_running_streams_all_end_well_after_sigterm(tmp_path: Path) -> None:
    """Drill 20: SIGTERM with 20 streams running: drained, no client sees an error."""
    steady = {"LLM_ROUTER_WORKER": "tests.fixtures.fake_worker --tokens 60 --rate 60"}
    texts = [f"stream {number}" for number in range(20)]
    with Peer.started(tmp_path / "data", env=steady) as peer, ThreadPoolExecutor(20) as threads:
        reading = [
            threads.submit(lambda t: peer.stream("/v1/chat/completions", chat_body("hello", t, seed=7)).read(), text)
            for text in texts
        ]
        until(lambda: len(peer.ps()["requests"]) == 20, "all twenty are there")
        peer.signal(signal.SIGTERM)
        streams = [future.result(60) for future in reading]
        assert peer.process.wait(30) == 0
    prompts = [ChatPrompt(messages=(Message(role="user", content=text),)) for text in texts]
    assert [s.text for s in streams] == [expected_text(prompt, 7, 60) for prompt in prompts]
    assert all(s.is_done and s.error is None and s.finish_reason == "stop" for s in streams)


def test_killed_peer_leaves_no_worker_and_starts_again_in_its_folder(tmp_path: Path) -> None:
    with Peer.started(tmp_path / "data") as peer:
        assert peer.post("/v1/chat/completions", chat_body("hello", "Hello")).status == 200
        worker = peer.worker("hello")
        peer.signal(signal.SIGKILL)
        peer.process.wait(30)
        until(lambda: not _runs(worker), "the worker ends with its peer")
        asked = peer.command("status")
        assert asked.returncode == 3 and "no peer is running" in asked.stderr
    with Peer.started(tmp_path / "data") as again:
        assert again.post("/v1/chat/completions", chat_body("hello", "Hello")).status == 200


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
