"""What a running peer tells of its mesh: every line says what is, and what to do about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mesh.cli import news
from mesh.cli.greeting import Start, greeting

EVIL = "\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (news.formed("tower", 600), ["mesh tower is formed", "open for another 10 min", "llm-router door close"]),
        (news.formed("tower", 0), ["mesh tower is formed", "the door is shut", "llm-router door open"]),
        (news.found("attic", 3, "481 920"), ["Found mesh attic (3 machines). Asking to join: 481 920", "approve 481"]),
        (news.found("attic", 1, "481 920"), ["(1 machine)"]),
        (news.joined("attic", 4), ["joined mesh attic, 4 machines", "llm-router peers"]),
        (news.not_joined("attic", "it was denied"), ["did not join mesh attic: it was denied"]),
        (
            news.asked("kitchen", "481 920", "192.168.1.9"),
            ["kitchen (192.168.1.9) asks to join: 481 920", "llm-router approve 481 920", "llm-router deny 481 920"],
        ),
        (news.admitted("kitchen", "k3f9q2", "door"), ["by the open door; to undo: llm-router peers revoke k3f9q2"]),
        (news.admitted("kitchen", "k3f9q2", "token"), ["joined by invitation;"]),
        (news.admitted("kitchen", "k3f9q2", "trusted"), ["kitchen (k3f9q2) joined; to undo"]),
        (news.guests(["a", "b"]), ["2 machines wait for confirmation (a, b)", "llm-router peers trust NAME"]),
        (news.guests(["a"]), ["1 machine waits for confirmation"]),
        (news.coordinator("attic", 3, is_this=False), ["attic coordinates the mesh (term 3)"]),
        (news.coordinator("attic", 3, is_this=True), ["this machine coordinates"]),
        (news.this_was_revoked("attic", "tower"), ["revoked from mesh attic by tower", "llm-router identity reset"]),
        (news.same_identity("192.168.1.9:8081"), ["192.168.1.9:8081", "is a copy", "llm-router identity reset"]),
        (news.wrong_version("attic", "0.9", "0.1"), ["attic runs 0.9 and this machine 0.1", "update the older"]),
    ],
)
def test_each_line_says_what_is_and_what_to_do(text: str, parts: list[str]) -> None:
    assert not [part for part in parts if part not in text], text


@pytest.mark.parametrize(
    "text",
    [
        news.formed(EVIL, 600),
        news.found(EVIL, 3, EVIL),
        news.joined(EVIL, 4),
        news.not_joined(EVIL, EVIL),
        news.asked(EVIL, EVIL, EVIL),
        news.admitted(EVIL, EVIL, "door"),
        news.guests([EVIL]),
        news.coordinator(EVIL, 3, is_this=False),
        news.lost(EVIL),
        news.left(EVIL),
        news.revoked(EVIL, EVIL),
        news.this_was_revoked(EVIL, EVIL),
        news.same_identity(EVIL),
        news.wrong_version(EVIL, EVIL, EVIL),
    ],
)
def test_what_other_machines_call_themselves_cannot_steer_the_terminal(text: str) -> None:
    assert "owned" in text
    assert "\x1b" not in text and "\x07" not in text


def test_the_greeting_has_a_line_of_the_mesh_when_there_is_one() -> None:
    start = Start(
        name="tower",
        version="0.1.0",
        engine="0.3.36",
        cores=8,
        memory_bytes=32 * 1024**3,
        models=2,
        models_dir=Path("/m"),
        url="http://127.0.0.1:8080",
    )
    assert "mesh" not in greeting(start)
    assert f"  mesh       {news.looking()}\n" in greeting(dataclasses.replace(start, mesh=news.looking()))
