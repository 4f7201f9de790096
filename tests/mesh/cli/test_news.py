"""What a running peer tells of its mesh: every line says what is, and what to do about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mesh.cli import news
from mesh.cli.greeting import Start, greeting

EVIL = "\x1b]0;owned\x07"
START = Start(
    name="tower",
    version="0.1.0",
    engine="0.3.36",
    cores=8,
    memory_bytes=32 * 1024**3,
    models=2,
    models_dir=Path("/m"),
    url="http://127.0.0.1:8080",
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (news.alone(600), ["no other machine yet", "open for another 10 min", "llm-router door close"]),
        (news.alone(0), ["no other machine yet", "the door is shut", "llm-router approve", "llm-router door open"]),
        (news.together("attic", 3), ["attic, 3 machines", "llm-router peers"]),
        (news.found("attic", 3, "481 920"), ["Found mesh attic (3 machines). Asking to join: 481 920", "approve 481"]),
        (news.found("attic", 1, "481 920"), ["(1 machine)"]),
        (news.joined("attic", 4), ["joined mesh attic, 4 machines", "llm-router peers"]),
        (news.not_joined("attic", "it was denied"), ["did not join mesh attic: it was denied"]),
        (
            news.asked("kitchen", "481 920", "192.168.1.9"),
            ["kitchen (192.168.1.9) asks to join: 481 920", "llm-router approve 481 920", "llm-router deny 481 920"],
        ),
        (
            news.admitted("kitchen", "k3f9q2", "door"),
            ["by the open door; to put it out", "peers revoke k3f9q2"],
        ),
        (news.admitted("kitchen", "k3f9q2", "token"), ["joined by invitation;"]),
        (news.admitted("kitchen", "k3f9q2", "trusted"), ["kitchen (k3f9q2) joined; to put it out"]),
        (news.guests(["a", "b"]), ["guests: a, b", "llm-router peers trust NAME"]),
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
        news.together(EVIL, 3),
        news.found(EVIL, 3, EVIL),
        news.joined(EVIL, 4),
        news.not_joined(EVIL, EVIL),
        news.asked(EVIL, EVIL, EVIL),
        news.admitted(EVIL, EVIL, "door"),
        news.guests([EVIL]),
        news.coordinator(EVIL, 3, is_this=False),
        news.lost(EVIL),
        news.left(EVIL),
        news.this_was_revoked(EVIL, EVIL),
        news.same_identity(EVIL),
        news.wrong_version(EVIL, EVIL, EVIL),
    ],
)
def test_what_other_machines_call_themselves_cannot_steer_the_terminal(text: str) -> None:
    assert "owned" in text
    assert "\x1b" not in text and "\x07" not in text


def test_the_greeting_has_a_line_of_the_mesh_when_there_is_one() -> None:
    assert "mesh" not in greeting(START)
    assert "\n  mesh       one line\n\n" in greeting(dataclasses.replace(START, mesh="one line"))


def test_what_does_not_fit_one_line_of_the_greeting_stands_below_its_beginning() -> None:
    lines = greeting(dataclasses.replace(START, mesh=news.alone(600))).splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("  mesh ")]
    assert lines[at].startswith("  mesh       no other machine yet") and lines[at + 1].startswith(" " * 13 + "start ")
    assert max(map(len, lines[at : at + 2])) <= 110
