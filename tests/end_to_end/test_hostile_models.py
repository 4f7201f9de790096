"""Model files that mean harm, and models that compete for memory: the peer and everybody else go on."""

from __future__ import annotations

import random
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import SCRIPTED_ANSWER
from tests.drills.models import STORY
from tests.fixtures import make_gguf
from tests.fixtures.peer import Peer, Reply, chat_body, placed

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
BOMB = (
    "{% if messages[0].content == 'bomb' %}"
    + "{% for a in range(9999) %}" * 3
    + "x"
    + "{% endfor %}" * 3
    + "{% endif %}{{ '<|im_start|>assistant\n' }}"
)


def test_template_bomb_costs_its_sender_an_error_and_its_neighbours_nothing(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    make_gguf.scripted(models / "bomb.gguf", say=STORY, template=BOMB)
    with Peer.started(tmp_path / "data", "--models-dir", str(models)) as peer, ThreadPoolExecutor(4) as threads:
        assert peer.post(CHAT, chat_body("bomb", "Hello", max_tokens=1)).status == 200
        worker = peer.worker("bomb")
        armed = threads.submit(peer.post, CHAT, chat_body("bomb", "bomb"))
        neighbours = [threads.submit(_answers_until, armed, peer) for _ in range(3)]
        refused = armed.result(60)
        assert refused.status == 400 and refused.json["error"]["code"] == "invalid_model_template"
        assert all(neighbour.result(60) > 0 for neighbour in neighbours)
        assert not worker.is_running()
        assert "request goes on elsewhere" in peer.stderr  # who waited behind the bomb, or was answered
        for _ in range(2):
            assert peer.post(CHAT, chat_body("bomb", "bomb")).status == 400
        resting = peer.post(CHAT, chat_body("bomb", "Hello"))
        assert resting.status == 503 and int(resting.headers["Retry-After"]) > 60
        assert peer.post(CHAT, chat_body("hello", "Hello")).status == 200


def _answers_until(armed: Future[Reply], peer: Peer) -> int:
    """Asks again and again until the bomb is over; every answer must be whole. How many there were."""
    count = 0
    while not armed.done():
        stream = peer.stream(CHAT, chat_body("bomb", f"tell {count}")).read()
        assert stream.error is None and stream.is_done and stream.text == STORY
        count += 1
    return count


def test_damaged_files_in_the_models_folder_hurt_nobody(tmp_path: Path, tiny_gguf: Path, scripted_gguf: Path) -> None:
    models = tmp_path / "models"
    placed(models, good=scripted_gguf)
    original = tiny_gguf.read_bytes()
    rng = random.Random(3)
    for number in range(8):
        data = bytearray(original)
        for _ in range(8):
            data[rng.randrange(24_000)] = rng.randrange(256)
        (models / f"flipped-{number}.gguf").write_bytes(data)
    (models / "half.gguf").write_bytes(original[: len(original) // 2])
    (models / "empty.gguf").touch()
    with Peer.started(tmp_path / "data", "--models-dir", str(models)) as peer:
        listed = [m["id"] for m in peer.get("/v1/models").json["data"]]
        assert "good" in listed and not {"half", "empty"} & set(listed)
        for model in listed:
            reply = peer.post(CHAT, chat_body(model, "Hello", max_tokens=4))
            assert reply.status in (200, 400, 500, 503), reply
            assert reply.status == 200 or reply.json["error"]["message"]
        good = peer.post(CHAT, chat_body("good", "Hello"))
        assert good.json["choices"][0]["message"]["content"] == SCRIPTED_ANSWER
        assert "Traceback" not in peer.stderr


def test_two_models_that_fit_only_one_at_a_time_both_serve_everybody(
    tmp_path: Path, tiny_gguf: Path, scripted_gguf: Path
) -> None:
    models = tmp_path / "models"
    placed(models, one=scripted_gguf, two=tiny_gguf)

    def ask(number: int) -> int:
        return peer.post(CHAT, chat_body("two" if number % 2 else "one", f"question {number}", max_tokens=20)).status

    with (
        Peer.started(tmp_path / "data", "--models-dir", str(models), "--max-loaded-models", "1") as peer,
        ThreadPoolExecutor(12) as threads,
    ):
        assert list(threads.map(ask, range(24))) == [200] * 24
        states = {m["model"]: m["state"] for m in peer.ps()["models"]}
        assert list(states.values()) == ["loaded"]
