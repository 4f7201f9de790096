"""The commands about the mesh: the real command line against the real HTTP surface over a scripted mesh."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mesh import control
from mesh.cli.failure import Exit
from tests.fixtures.scripted_mesh import ATTIC, LINE, Refused, ScriptedMesh, services
from web.listener import Listener

if TYPE_CHECKING:
    from tests.mesh.cli.conftest import Run

ROOT = Path(__file__).parents[3]
ASKING: dict[str, Any] = {
    "state": "asking",
    "name": "loft",
    "members": 3,
    "digits": "111 222",
    "seconds_left": 600.0,
    "reason": None,
}


async def _listening(mesh: ScriptedMesh | None, folder: Path) -> AsyncIterator[None]:
    listener = Listener(services(mesh, "t0ken"), [("127.0.0.1", 0)])
    await listener.start()
    url = f"http://127.0.0.1:{listener.port}"
    control.publish(folder, port=listener.port, url=url, version="0.1.0", token="t0ken")
    yield
    await listener.close(0)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[ScriptedMesh]:
    """A mesh that control.json of the data folder points at."""
    mesh = ScriptedMesh()
    async for _ in _listening(mesh, tmp_path):
        yield mesh


@pytest.fixture
async def no_mesh(tmp_path: Path) -> AsyncIterator[None]:
    """A peer that has none."""
    async for _ in _listening(None, tmp_path):
        yield


def columns(line: str) -> list[str]:
    """The cells of a line of a table: two spaces or more stand between them."""
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


async def test_peers_shows_who_is_there_and_what_waits_for_a_person(mesh: ScriptedMesh, run: Run) -> None:
    result = await run("peers")
    assert [columns(line) for line in result.stdout.splitlines()] == [
        ["NAME", "STATE", "FOR", "MODELS", "ACTIVE", "QUEUED", "VERSION", "NOTE"],
        ["tower", "alive", "3 min", "2", "2", "1", "0.1.0", "this machine"],
        ["attic", "alive", "3 min", "1", "0", "0", "0.1.0", "coordinator"],
        ["kitchen", "suspect", "2 s", "0", "0", "0", "0.1.0", "guest"],
    ]
    assert result.stderr.splitlines() == [
        "1 machine to be let in: llm-router approve",
        "guests: kitchen; if yours: llm-router peers trust NAME",
    ]


async def test_a_mesh_of_one_says_how_to_add_a_machine(mesh: ScriptedMesh, run: Run) -> None:
    del mesh.peers[1:]
    mesh.waiting, mesh.coordinator, mesh.door_seconds = [], None, 420.0
    result = await run("peers")
    assert result.stderr.splitlines() == [
        "no other machine yet: start llm-router on others of this network, or invite one: llm-router invite",
        "to join a mesh that is there: llm-router join ADDRESS, of any of its machines",
        "the door is open for another 7 min: machines of this network join by themselves",
    ]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("peers", "--json"), {"peers"}),
        (("peers", "list", "--json"), {"peers"}),
        (("peers", "show", "attic", "--json"), {"id", "name", "agent_id", "addresses"}),
        (("door", "--json"), {"open", "seconds_left"}),
        (("door", "open", "--json"), {"open", "seconds_left"}),
        (("approve", "--json"), {"joins"}),
        (("approve", "481920", "--json"), {"id", "name"}),
        (("invite", "--json"), {"line", "command", "expires_at"}),
        (("join", LINE, "--json"), {"state", "name", "members"}),
        (("ps", "--all", "--json"), {"machines"}),
        (("status", "--json"), {"name", "mesh"}),
    ],
)
async def test_with_json_stdout_is_json_and_stderr_is_silent(
    mesh: ScriptedMesh, run: Run, arguments: tuple[str, ...], names: set[str]
) -> None:
    result = await run(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert names <= set(json.loads(result.stdout))


async def test_show_tells_everything_with_addresses(mesh: ScriptedMesh, run: Run) -> None:
    lines = (await run("peers", "show", ATTIC[:6])).stdout.splitlines()
    fields = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in lines}
    assert fields["name"] == "attic"
    assert fields["for"] == "3 min"
    assert fields["addresses"] == "192.168.1.20:8081"
    assert fields["is guest"] == "no"
    assert (fields["cpu used"], fields["memory"]) == ("12 %", "32.0 GB")
    assert fields["joined at"] == time.strftime("%Y-%m-%d %H:%M", time.localtime(1_764_000_000))
    assert "agent id" not in fields


@pytest.mark.parametrize(
    "arguments",
    [
        ("peers", "show", "atic"),
        ("peers", "rename", "atic", "loft"),
        ("peers", "trust", "atic"),
        ("peers", "revoke", "atic", "--yes"),
    ],
)
async def test_a_machine_nobody_knows_is_exit_code_five_and_names_the_nearest(
    mesh: ScriptedMesh, run: Run, arguments: tuple[str, ...]
) -> None:
    result = await run(*arguments)
    assert (result.exit_code, result.stdout) == (Exit.NOT_FOUND, "")
    assert result.stderr == "error: There is no machine 'atic'; nearest: attic.\n"


async def test_rename_and_trust_say_what_is_now(mesh: ScriptedMesh, run: Run) -> None:
    assert (await run("peers", "rename", "attic", "loft")).stdout == "attic is now called loft\n"
    assert (await run("peers", "trust", "kitchen")).stdout == "kitchen is a full member now\n"
    assert mesh.asked == [("rename", "attic", "loft"), ("trust", "kitchen")]


async def test_revoke_says_what_it_means_and_wants_a_yes(mesh: ScriptedMesh, run: Run) -> None:
    result = await run("peers", "revoke", "attic")
    assert result.exit_code == Exit.USAGE
    assert "out of the mesh for good" in result.stderr
    assert "comes back only with a new identity" in result.stderr and "--yes" in result.stderr
    assert mesh.asked == []
    result = await run("peers", "revoke", "attic", "--yes")
    assert (result.exit_code, result.stdout) == (0, "attic is out of the mesh\n")
    assert mesh.asked == [("revoke", ATTIC)]


async def test_the_door_is_shown_opened_and_shut(mesh: ScriptedMesh, run: Run) -> None:
    shut = "the door is shut: a new machine asks, and llm-router approve lets it in\n"
    assert (await run("door")).stdout == shut
    opened = await run("door", "open")
    assert opened.stdout == "the door is open for another 10 min: machines of this network join by themselves\n"
    assert "llm-router door close" in opened.stderr
    assert (await run("door", "open", "--minutes", "90")).exit_code == 0
    assert (await run("door", "close")).stdout == shut
    assert mesh.asked == [("door", 10.0), ("door", 90.0), ("door", 0.0)]


@pytest.mark.parametrize("minutes", ["0", "-1", "1441", "ten"])
async def test_a_door_cannot_be_open_for_no_time_or_for_ever(mesh: ScriptedMesh, run: Run, minutes: str) -> None:
    assert (await run("door", "open", "--minutes", minutes)).exit_code == Exit.USAGE
    assert mesh.asked == []


@pytest.mark.parametrize("typed", [("481", "920"), ("481920",), ("481 920",), ("481-920",)])
async def test_digits_are_taken_however_they_are_typed(mesh: ScriptedMesh, run: Run, typed: tuple[str, ...]) -> None:
    assert (await run("approve", *typed)).stdout == "cellar is in the mesh\n"
    assert (await run("deny", *typed)).stdout == "cellar is denied; it cannot ask again for an hour\n"
    assert mesh.asked == [("approve", "481 920"), ("deny", "481 920")]


async def test_digits_that_nobody_shows_are_not_found(mesh: ScriptedMesh, run: Run) -> None:
    result = await run("approve", "111", "222")
    assert result.exit_code == Exit.NOT_FOUND
    assert "those that ask show 481 920" in result.stderr


@pytest.mark.parametrize("command", ["approve", "deny"])
async def test_without_digits_those_that_ask_are_listed_and_nobody_is_let_in(
    mesh: ScriptedMesh, run: Run, command: str
) -> None:
    result = await run(command)
    assert [columns(line) for line in result.stdout.splitlines()] == [
        ["MACHINE", "DIGITS", "ADDRESS", "TIME LEFT"],
        ["cellar", "481 920", "192.168.1.23", "8 min"],
    ]
    assert "the same digits?" in result.stderr
    mesh.waiting = []
    result = await run(command)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no machine asks to join\n")
    assert mesh.asked == []


async def test_invite_prints_exactly_the_line_to_paste(mesh: ScriptedMesh, run: Run) -> None:
    result = await run("invite")
    assert result.stdout == f"llm-router join '{LINE}'\n"
    assert "for 1 machine within 24 h" in result.stderr
    await run("invite", "--uses", "3", "--hours", "0.5")
    assert mesh.asked == [("invite", 1, 24.0), ("invite", 3, 0.5)]


@pytest.mark.parametrize("flags", [("--uses", "0"), ("--uses", "1001"), ("--hours", "0"), ("--hours", "8761")])
async def test_an_invitation_has_bounds(mesh: ScriptedMesh, run: Run, flags: tuple[str, str]) -> None:
    assert (await run("invite", *flags)).exit_code == Exit.USAGE
    assert mesh.asked == []


async def test_join_with_a_line_says_what_was_joined(mesh: ScriptedMesh, run: Run) -> None:
    result = await run("join", LINE)
    assert (result.stdout, result.stderr) == ("joined mesh loft, 4 machines: llm-router peers\n", "")
    assert mesh.asked == [("join", LINE)]


async def test_join_by_address_shows_the_digits_and_waits_to_be_let_in(mesh: ScriptedMesh, run: Run) -> None:
    mesh.join_answer = dict(ASKING)
    mesh.after_join = [None, ASKING, {"state": "admitted"}]
    result = await run("join", "loft.local")
    assert result.stderr.splitlines() == [
        "Found mesh loft (3 machines). Asking to join: 111 222",
        "if one of them shows the same digits, say there: llm-router approve 111 222",
    ]
    assert (result.exit_code, result.stdout) == (0, "joined mesh tower, 3 machines: llm-router peers\n")


async def test_join_need_not_wait(mesh: ScriptedMesh, run: Run) -> None:
    mesh.join_answer = dict(ASKING)
    result = await run("join", "loft.local", "--no-wait")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "111 222" in result.stderr


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (ASKING | {"state": "denied"}, Exit.NOT_ALLOWED, ["mesh loft denied the request", "for an hour"]),
        (ASKING | {"state": "expired"}, Exit.FAILED, ["nobody of mesh loft approved in time", "llm-router join loft"]),
        (ASKING | {"state": "failed", "reason": "it went away"}, Exit.FAILED, ["did not join mesh loft", "went away"]),
        (None, Exit.FAILED, ["did not join mesh loft"]),
    ],
)
async def test_a_request_that_fails_says_why_and_what_to_do(
    mesh: ScriptedMesh, run: Run, end: dict[str, Any] | None, code: Exit, words: list[str]
) -> None:
    mesh.join_answer = dict(ASKING)
    mesh.after_join = [None, end]
    result = await run("join", "loft.local")
    assert (result.exit_code, result.stdout) == (code, "")
    assert all(word in result.stderr for word in words), result.stderr


async def test_a_join_that_is_refused_is_told_in_the_words_of_the_peer(mesh: ScriptedMesh, run: Run) -> None:
    mesh.refusal = Refused(409, "This machine is in mesh tower with 2 others; leave it first: llm-router leave.")
    result = await run("join", LINE)
    assert result.exit_code == Exit.FAILED
    assert result.stderr == f"error: {mesh.refusal.message}\n"


async def test_leave_wants_a_yes_and_needs_others(mesh: ScriptedMesh, run: Run) -> None:
    result = await run("leave")
    assert result.exit_code == Exit.USAGE
    assert "leaves mesh tower and its 2 other machines" in result.stderr and "--yes" in result.stderr
    assert mesh.asked == []
    assert (await run("leave", "--yes")).stdout == "left mesh tower\n"
    del mesh.peers[1:]
    assert "there is none to leave" in (await run("leave", "--yes")).stderr
    assert mesh.asked == [("leave",)]


async def test_status_tells_the_mesh_below_the_peer(mesh: ScriptedMesh, run: Run) -> None:
    lines = (await run("status")).stdout.splitlines()
    assert lines == [
        "name         tower",
        "uptime       90 s",
        "mesh         tower, 3 machines (2 alive, 1 suspect)",
        "coordinator  attic, term 7",
        "door         shut: a new machine asks, and llm-router approve lets it in",
        "waiting      1 machine to be let in: llm-router approve",
        "guests       kitchen; if yours: llm-router peers trust NAME",
    ]
    mesh.after_join = [ASKING]
    assert "joining      loft: 111 222; if it shows the same digits" in (await run("status")).stdout
    mesh.after_join = [ASKING | {"state": "failed", "reason": "it went away"}]
    assert "joining      loft, in vain: it went away" in (await run("status")).stdout


async def test_ps_of_all_machines_is_a_row_each(mesh: ScriptedMesh, run: Run) -> None:
    assert [columns(line) for line in (await run("ps", "--all")).stdout.splitlines()] == [
        ["MACHINE", "STATE", "MODELS IN MEMORY", "ACTIVE", "QUEUED"],
        ["tower", "alive", "qwen", "2", "1"],
        ["attic", "alive", "-", "0", "0"],
        ["kitchen", "suspect", "-", "0", "0"],
    ]


async def test_what_a_machine_calls_itself_cannot_steer_the_terminal(mesh: ScriptedMesh, run: Run) -> None:
    evil = "\x1b]0;owned\x07"
    for peer in mesh.peers[1:]:
        peer["name"] = evil
    mesh.waiting[0]["name"] = evil
    mesh.join_answer = ASKING | {"name": evil}
    for arguments in (
        ("peers",),
        ("peers", "show", ATTIC),
        ("peers", "trust", ATTIC),
        ("peers", "revoke", ATTIC),
        ("peers", "revoke", ATTIC, "--yes"),
        ("approve",),
        ("approve", "481920"),
        ("deny", "481920"),
        ("join", LINE, "--no-wait"),
        ("status",),
        ("ps", "--all"),
    ):
        result = await run(*arguments)
        assert "owned" in result.output, arguments
        assert "\x1b" not in result.output and "\x07" not in result.output, arguments


@pytest.mark.parametrize(
    "arguments", [("peers",), ("door", "open"), ("approve", "481920"), ("invite",), ("join", "x"), ("leave", "--yes")]
)
async def test_a_peer_without_mesh_says_so(no_mesh: None, run: Run, arguments: tuple[str, ...]) -> None:
    result = await run(*arguments)
    assert (result.exit_code, result.stdout) == (Exit.NOT_FOUND, "")
    assert result.stderr.splitlines()[-1] == "error: This peer has no mesh: it serves its own machine only."


async def test_status_of_a_peer_without_mesh_is_about_the_peer(no_mesh: None, run: Run) -> None:
    assert (await run("status")).stdout.splitlines() == ["name    tower", "uptime  90 s"]
    assert json.loads((await run("status", "--json")).stdout)["mesh"] is None


@pytest.mark.parametrize(
    "arguments", [("peers",), ("door",), ("approve", "481920"), ("invite",), ("join", "x"), ("leave", "--yes")]
)
async def test_without_a_peer_it_is_exit_code_three(run: Run, arguments: tuple[str, ...]) -> None:
    result = await run(*arguments)
    assert result.exit_code == Exit.UNREACHABLE
    assert "no peer is running here" in result.stderr


async def test_a_shell_completes_the_names_of_machines(mesh: ScriptedMesh) -> None:
    code = "import sys; sys.argv = ['llm-router']; from mesh.cli.entry import main; main()"
    words = {"_LLM_ROUTER_COMPLETE": "bash_complete", "COMP_WORDS": "llm-router peers show at", "COMP_CWORD": "3"}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        env=os.environ | words,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.stdout == "plain,attic\n", done.stderr
