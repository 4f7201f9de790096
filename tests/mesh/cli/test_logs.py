"""`llm-router logs` against a peer that answers as the API does, and which lines are new."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from mesh.cli import logs
from mesh.cli.failure import Exit
from mesh.cli.logs import LINES_MAX, Following
from mesh.moments import moment, rfc_3339
from tests.fixtures.answering_peer import AnsweringPeer, answering_peer, run_command
from tests.fixtures.zone import zone

NOON = 1_795_435_200.0


def line(message: str, at: float = NOON, **fields: Any) -> dict[str, Any]:
    stamp = rfc_3339(at).replace("Z", "+00:00")
    return {"time": stamp, "level": "info", "logger": "mesh.node", "message": message} | fields


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[AnsweringPeer]:
    async with answering_peer(tmp_path) as found:
        found.answers["/api/logs"] = {"lines": [line("ready", url="http://x y"), line("peer is dead", level="warning")]}
        yield found


@pytest.fixture(autouse=True)
def in_utc() -> Iterator[None]:
    with zone("UTC0"):
        yield


async def run(*arguments: str) -> Result:
    return await run_command({"logs": "mesh.cli.logs:logs"}, "logs", *arguments)


async def test_lines_read_as_on_the_console_with_their_day(peer: AnsweringPeer) -> None:
    done = await run()
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        '11-23 12:00:00 INFO    mesh.node ready url="http://x y"',
        "11-23 12:00:00 WARNING mesh.node peer is dead",
    ]
    assert peer.asked == [("/api/logs", {"limit": "200"})]


async def test_filters_go_to_the_machine_that_is_meant(peer: AnsweringPeer) -> None:
    peer.answers["/api/agents/the%20attic/logs"] = [line("from the attic")]  # a bare list is understood as well
    done = await run(
        "--node", "the attic", "--level", "warning", "--since", "10m", "--grep", 'a "b"', "--limit", "7"
    )  # fmt: skip
    assert "from the attic" in done.stdout
    query = {"level": "warning", "since": "10m", "grep": 'a "b"', "limit": "7"}
    assert peer.asked == [("/api/agents/the%20attic/logs", query)]
    await run("--since", "2026-11-23 12:00")
    assert peer.asked[1][1]["since"] == "2026-11-23T12:00:00.000Z"


async def test_json_is_an_object_a_line(peer: AnsweringPeer) -> None:
    peer.answers["/api/logs"] = {"lines": [line("a\nb\x9b1m"), line("c")]}
    done = await run("--json")
    assert [json.loads(text)["message"] for text in done.stdout.splitlines()] == ["a\nb\x9b1m", "c"]
    assert "\x9b" not in done.stdout


async def test_what_is_in_a_line_steers_no_terminal_and_makes_no_second_line(peer: AnsweringPeer) -> None:
    nasty = "a\x1b[2J\n\x9b1m\u202e"
    peer.answers["/api/logs"] = {"lines": [line(nasty, field=nasty, traceback=f"Traceback\n  {nasty}")]}
    done = await run()
    first, *below = done.stdout.splitlines()
    assert r"a\x1b[2J\n\x9b1m\u202e" in first and below[0] == "Traceback"
    assert all(c.isprintable() for c in done.stdout.replace("\n", ""))


async def test_errors_of_the_peer_are_its_own_words(peer: AnsweringPeer) -> None:
    done = await run("--node", "nobody")
    assert done.exit_code == Exit.NOT_FOUND and "there is nothing at" in done.stderr
    for strange in ({"lines": "x"}, {"lines": ["x"]}, {}):
        peer.answers["/api/logs"] = strange
        assert "not understood" in (await run()).stderr
    assert (await run("--since", "soon")).exit_code == Exit.USAGE
    assert (await run("--limit", "1001")).exit_code == Exit.USAGE


async def test_following_shows_the_last_lines_then_each_new_one_once(
    peer: AnsweringPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0)
    written = [line(f"line {number}", NOON + number / 10) for number in range(20)]
    last = {"asked": 0}

    async def growing(request: web.Request) -> web.StreamResponse:
        last["asked"] += 1
        if last["asked"] == 6:  # the peer ends, and with it the command
            return web.json_response({"error": "This peer is stopping."}, status=503)
        if last["asked"] > 1:
            written.append(line(f"line {len(written)}", NOON + len(written) / 10))
        since = moment(request.query.get("since", "0" * 9), now=0)
        assert request.query["limit"] == str(LINES_MAX)
        found = [one for one in written if moment(one["time"], now=0) >= since]
        return web.json_response({"lines": found})

    peer.answers["/api/logs"] = growing
    done = await run("-f", "--limit", "3")
    assert done.exit_code == Exit.FAILED and "stopping" in done.stderr
    shown = [text.split("mesh.node ")[1] for text in done.stdout.splitlines()]
    assert shown == [f"line {number}" for number in range(17, 24)]
    assert len(peer.asked[-1][1]) == 2  # only what is near the end is asked for again


def after(lines: list[dict[str, Any]], since: str | None) -> list[dict[str, Any]]:
    """What a peer answers."""
    return [one for one in lines if since is None or moment(one["time"], now=0) >= moment(since, now=0)][-LINES_MAX:]


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1900, 3000)), max_size=6), min_size=1, max_size=8)
)
def test_every_line_is_shown_once_though_clocks_and_threads_mix_them(batches: list[list[tuple[str, int]]]) -> None:
    """A line comes at most 2 s out of order; many are equal in every letter."""
    following = Following()
    written: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    newest = NOON
    for batch in batches:
        for message, milliseconds in batch:
            at = newest + milliseconds / 1000
            written.append(line(message, at))
            newest = max(newest, at)
        shown += following.fresh(after(written, following.since))
    assert shown == written


def test_more_than_an_answer_holds_is_a_gap_and_is_said() -> None:
    following = Following()
    written = [line("old")]
    following.fresh(after(written, following.since))
    assert not following.has_gap
    written += [line(f"{number}", NOON + 1) for number in range(LINES_MAX + 5)]
    assert len(following.fresh(after(written, following.since))) == LINES_MAX and following.has_gap
    assert following.fresh(after(written, following.since)) == [] and not following.has_gap


def test_lines_without_a_time_are_shown_all_the_same() -> None:
    assert Following().fresh([{"message": "x"}, {"time": "never"}]) == [{"message": "x"}, {"time": "never"}]
