"""One endpoint, several machines: what a client of any peer gets from all. Real peers, the worker of the tests."""

from __future__ import annotations

import contextlib
import json
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inference.chat import ChatPrompt, Message
from tests.fixtures.fake_worker import expected_text
from tests.fixtures.house import House, mesh, states
from tests.fixtures.make_gguf import embed, tiny
from tests.fixtures.peer import Peer, chat_body, until

CHAT = "/v1/chat/completions"
WORKER = {"LLM_ROUTER_WORKER": "tests.fixtures.fake_worker --tokens 60 --rate 60"}


@contextlib.contextmanager
def three(folder: Path, **env: str) -> Iterator[tuple[House, Peer, Peer, Peer]]:
    """`door` has no model but hello; `attic` and `tower` have the same file."""
    with House(folder) as house:
        for name in ("attic", "tower"):
            (folder / name / "models").mkdir(parents=True)
            tiny(folder / name / "models" / "tiny.gguf")
        embed(folder / "tower" / "models" / "embed.gguf")
        door = house.start("door", env=WORKER | env)
        attic = house.start("attic", "--models-dir", str(folder / "attic" / "models"), seed=door, env=WORKER)
        tower = house.start("tower", "--models-dir", str(folder / "tower" / "models"), seed=door, env=WORKER)
        house.see_each_other(door, attic, tower)
        until(lambda: holders(door, "tiny") == {"attic", "tower"}, "both are known as holders")
        until(lambda: holders(door, "embed") == {"tower"}, "and of the other model")
        until(lambda: hashed(door, "tiny"), "the files are known to be the same")
        yield house, door, attic, tower


def holders(peer: Peer, model: str) -> set[str]:
    """Who has it, as `peer` knows."""
    found = [m for m in peer.get("/v1/models").json["data"] if m["id"] == model]
    return set(found[0]["holders"]) if found else set()


def hashed(peer: Peer, model: str) -> bool:
    """Does `peer` know that all holders have the same file?"""
    return any(m["id"] == model and m["sha256"] for m in peer.get("/api/models").json)


def said(text: str, seed: int) -> str:
    """What the worker of the tests answers."""
    return expected_text(ChatPrompt(messages=(Message(role="user", content=text),)), seed, 60)


def test_requests_are_spread_over_the_machines_that_have_the_model(tmp_path: Path) -> None:
    """F1-F3, C3-C4: every peer is the endpoint of all, and chooses who runs a request."""
    with three(tmp_path) as (_, door, attic, tower), ThreadPoolExecutor(12) as threads:
        bodies = [chat_body("tiny", f"question {n}", seed=n) for n in range(12)]
        for ingress in (door, attic):
            answers = list(threads.map(lambda body, at=ingress: at.post(CHAT, body), bodies))
            for n, answer in enumerate(answers):
                assert answer.status == 200
                assert answer.json["choices"][0]["message"]["content"] == said(f"question {n}", n)
            served = Counter(answer.headers["x-llm-router-peer"] for answer in answers)
            assert set(served) == {"attic", "tower"} and min(served.values()) >= 2, served
        assert door.ps()["models"] == []
        vectors = attic.post("/v1/embeddings", {"model": "embed", "input": ["one", "two"]})
        assert vectors.headers["x-llm-router-peer"] == "tower" and len(vectors.json["data"]) == 2
        unknown = door.post(CHAT, chat_body("nobody-has-this", "Hello"))
        assert unknown.status == 404 and unknown.json["error"]["code"] == "model_not_found"
        assert {m["id"] for m in tower.get("/v1/models").json["data"]} == {"tiny", "embed", "hello"}


def test_a_machine_that_died_gets_no_request_and_its_streams_go_on(tmp_path: Path) -> None:
    """F4, F74: a failed peer is left at once, and nobody notices."""
    with three(tmp_path) as (_, door, attic, tower):
        stream = door.stream(CHAT, chat_body("tiny", "a long story", seed=5))
        events = stream.events()
        for _ in range(10):
            next(events)
        (busy,) = [peer for peer in (attic, tower) if peer.ps()["requests"]]
        name, other = ("attic", "tower") if busy is attic else ("tower", "attic")
        busy.signal(signal.SIGKILL)
        for _ in events:
            pass
        stream.close()
        assert stream.text == said("a long story", 5) and stream.is_done and stream.finish_reason == "stop"
        assert stream.comments[-1] == f"served-by {name}, continued-on {other}"
        for n in range(6):
            answer = door.post(CHAT, chat_body("tiny", f"question {n}", seed=n))
            assert answer.status == 200 and answer.headers["x-llm-router-peer"] == other
            assert answer.headers["x-llm-router-attempts"] == "1"
        until(lambda: states(door)[name] == "dead", "it is dead", 30.0)
        assert holders(door, "tiny") == {other}


def test_inference_goes_on_without_a_coordinator_and_there_is_a_new_one(tmp_path: Path) -> None:
    """C3-C4, C31: the coordinator is not on the path of a request, and two machines survive the loss of one."""
    with three(tmp_path) as (_, door, attic, tower):
        peers = {"door": door, "attic": attic, "tower": tower}
        until(lambda: all(mesh(p)["coordinator"] for p in peers.values()), "a coordinator")
        before = mesh(door)
        first = before["coordinator"]["name"]
        peers.pop(first).signal(signal.SIGKILL)
        left = list(peers.values())
        holder = next(p for name, p in peers.items() if name != "door")
        assert holder.post(CHAT, chat_body("tiny", "still there?", seed=1)).status == 200

        def coordinators() -> set[tuple[str, int]]:
            seen = [(mesh(p)["coordinator"], mesh(p)["term"]) for p in left]
            return {(c["name"] if c else "", term) for c, term in seen}

        until(lambda: len(coordinators()) == 1 and first not in {c for c, _ in coordinators()}, "a new one")
        ((_, term),) = coordinators()
        assert term > before["term"]


def test_every_candidate_is_shown_with_its_score_to_who_asks(tmp_path: Path) -> None:
    """F26, F56-F61: in `metrics` mode the score is CPU, memory and ten for each request."""
    with three(tmp_path, LLM_ROUTER_LOAD_BALANCER_MODE="metrics") as (_, door, _, _):
        request = door.request("POST", CHAT, json.dumps(chat_body("tiny", "why there?")).encode())
        assert "x-llm-router-candidates" not in request.headers
        explained = door.request(
            "POST", CHAT, json.dumps(chat_body("tiny", "why there?")).encode(), headers={"x-llm-router-explain": "1"}
        )
        shown = json.loads(explained.headers["x-llm-router-candidates"])
        assert {c["peer"] for c in shown} == {"attic", "tower"}
        for candidate in shown:
            parts = {name: candidate.get(name, 0.0) for name in ("cpu", "memory", "active")}
            assert abs(candidate["score"] - sum(parts.values())) < 0.01
            assert 0 < parts["memory"] <= 100 and parts["active"] % 10 == 0
        assert shown[0]["peer"] == explained.headers["x-llm-router-peer"]


def test_a_machine_that_may_not_serve_only_routes(tmp_path: Path) -> None:
    """C11, F43: LLM_NODE_ALLOW_NO_GPU=false on a machine without GPU."""
    with three(tmp_path, LLM_NODE_ALLOW_NO_GPU="false") as (_, door, attic, _):
        assert holders(door, "hello") == holders(attic, "hello") == {"attic", "tower"}
        answer = door.post(CHAT, chat_body("hello", "Hello", seed=3))
        assert answer.status == 200 and answer.headers["x-llm-router-peer"] in ("attic", "tower")
        assert door.ps()["models"] == []


def test_what_a_stranger_sends_as_the_meshs_own_headers_is_ignored(tmp_path: Path) -> None:
    with three(tmp_path) as (_, door, _, _):
        body = json.dumps(chat_body("tiny", "Hello", seed=4) | {"mesh": {"produced": [1, 2, 3], "draws": 0}}).encode()
        forged = {"x-mesh-hop": "1", "x-mesh-context": "eyJtYXlfcmVmdXNlIjp0cnVlfQ"}
        answer = door.request("POST", CHAT, body, headers=forged)
        assert answer.status == 200 and answer.json["choices"][0]["message"]["content"] == said("Hello", 4)
        assert "mesh" not in answer.json and not any(name.startswith("x-mesh") for name in answer.headers)
        assert door.get("/mesh/channel").status == 404 and door.post("/join/hello", {}).status == 404


def test_a_stopping_machine_finishes_or_hands_over_and_no_client_sees_an_error(tmp_path: Path) -> None:
    """Rows 19 and 20 of the drills, in small."""
    with three(tmp_path) as (_, door, attic, tower):
        stream = door.stream(CHAT, chat_body("tiny", "a story to be handed over", seed=8))
        events = stream.events()
        next(events)
        (busy,) = [peer for peer in (attic, tower) if peer.ps()["requests"]]
        busy.signal(signal.SIGTERM)
        for _ in events:
            pass
        stream.close()
        assert stream.error is None and stream.text == said("a story to be handed over", 8) and stream.is_done
        assert busy.process.wait(60) == 0
        assert door.post(CHAT, chat_body("tiny", "next", seed=1)).status == 200
