"""`llm-router history` against a peer that answers as the API does."""

from __future__ import annotations

import asyncio
import csv
import json
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import Result

from mesh.cli.client import connect
from mesh.cli.failure import Exit
from mesh.moments import moment
from tests.fixtures.answering_peer import AnsweringPeer, answering_peer, run_command
from tests.fixtures.zone import zone

RECORDS = "/api/dashboard/request-responses"
RECORD: dict[str, Any] = {
    "id": "0199-a",
    "timestamp": "2026-11-23T14:03:00.125Z",
    "request_type": "chat",
    "model": "hello",
    "node_id": "8f0c2f7e-0000-8000-8000-000000000000",
    "agent_machine_name": "attic",
    "agent_ip": "192.168.1.20",
    "client_ip": "127.0.0.1",
    "request_body": {"model": "hello", "messages": [{"role": "user", "content": "Hi\x1b[2J"}]},
    "response_body": {"choices": [{"message": {"content": "Hello"}}]},
    "duration_ms": 1500,
    "status": {"type": "success"},
    "completed_at": "2026-11-23T14:03:01.625Z",
    "prompt_tokens": 12,
    "completion_tokens": 34,
    "ttft_ms": 90,
    "ingress": "tower",
    "attempts": 2,
    "api_key": "laptop",
}
FAILED = RECORD | {
    "id": "0199-b",
    "model": "ev\x1bil",
    "agent_machine_name": None,
    "status": {"type": "error", "message": "no holder\x1b]0;"},
    "prompt_tokens": None,
    "completion_tokens": None,
    "ttft_ms": None,
    "api_key": None,
}


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[AnsweringPeer]:
    async with answering_peer(tmp_path) as found:
        found.answers[RECORDS] = page(RECORD, FAILED)
        yield found


@pytest.fixture(autouse=True)
def in_utc() -> Iterator[None]:
    with zone("UTC0"):
        yield


def page(*records: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"records": list(records), "total_count": len(records), "page": 1, "per_page": 50, "as_of": "7"} | fields


async def run(*arguments: str) -> Result:
    return await run_command({"history": "mesh.cli.history:history"}, "history", *arguments)


async def test_list_is_a_table_newest_first_with_what_a_person_reads(peer: AnsweringPeer) -> None:
    done = await run("list")
    assert done.exit_code == 0, done.output
    header, first, second = done.stdout.splitlines()
    assert header.split() == ["TIME", "MODEL", "MACHINE", "STATUS", "TOKENS", "TTFT", "TOOK", "WHO", "ID"]
    assert first.split() == [
        "2026-11-23", "14:03:00", "hello", "attic", "success", "12", "+", "34", "90", "ms", "2", "s", "laptop",
        "0199-a",
    ]  # fmt: skip
    assert second.split() == [
        "2026-11-23", "14:03:00", "ev\N{REPLACEMENT CHARACTER}il", "-", "error", "-", "-", "2", "s", "127.0.0.1",
        "0199-b",
    ]  # fmt: skip
    assert "Hi" not in done.stdout and "no holder" not in done.stdout
    assert done.stderr.splitlines() == ["2 requests"]
    assert peer.asked == [(RECORDS, {"page": "1", "per_page": "50"})]


async def test_filters_go_to_the_api_under_its_names(peer: AnsweringPeer) -> None:
    """F155: the filters of the list."""
    done = await run(
        "list", "--model", "qw", "--node", "attic", "--status", "error", "--key", "k1", "--grep", "a&b=c",
        "--since", "2026-11-23T14:00:00+01:00", "--until", "2026-11-23 14:00", "--page", "3", "--limit", "25",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert peer.asked[0][1] == {
        "model": "qw", "agent": "attic", "status": "error", "key": "k1", "q": "a&b=c",
        "from": "2026-11-23T13:00:00.000Z", "to": "2026-11-23T14:00:00.000Z", "page": "3", "per_page": "25",
    }  # fmt: skip


async def test_a_time_ago_is_counted_from_now(peer: AnsweringPeer) -> None:
    before = time.time()
    await run("list", "--since", "1h")
    asked = moment(peer.asked[0][1]["from"], now=0)
    assert before - 3600.001 <= asked <= time.time() - 3600


@pytest.mark.parametrize("arguments", [["--since", "soon"], ["--status", "odd"], ["--limit", "0"], ["--page", "0"]])
async def test_a_wrong_option_is_told_before_anybody_is_asked(peer: AnsweringPeer, arguments: list[str]) -> None:
    done = await run("list", *arguments)
    assert done.exit_code == Exit.USAGE and arguments[0] in done.stderr and not peer.asked


async def test_a_page_of_any_length_is_of_one_moment_and_has_what_belongs_on_it(peer: AnsweringPeer) -> None:
    """The API has pages of 10, 25, 50 and 100."""
    everything = [RECORD | {"id": f"{number}"} for number in range(330)]

    async def paged(request: web.Request) -> web.StreamResponse:
        number, size = int(request.query["page"]), int(request.query["per_page"])
        found = everything[(number - 1) * size : number * size]
        return web.json_response(page(*found, total_count=len(everything), page=number, per_page=size))

    peer.answers[RECORDS] = paged
    for first, arguments in (
        (0, ["--limit", "150"]),
        (150, ["--limit", "150", "--page", "2"]),
        (14, ["--limit", "7", "--page", "3"]),
    ):
        limit = int(arguments[1])
        done = await run("list", "--json", *arguments)
        answer = json.loads(done.stdout)
        assert [record["id"] for record in answer["records"]] == [f"{n}" for n in range(first, first + limit)]
        assert (answer["page"], answer["per_page"], answer["total_count"]) == (first // limit + 1, limit, 330)
    queries = [query for _, query in peer.asked]
    assert [query["page"] for query in queries] == ["1", "2", "2", "3", "1"]
    assert [query.get("as_of") for query in queries] == [None, "7", None, "7", None]
    done = await run("list", "--limit", "150", "--page", "3")
    assert done.stderr.strip() == "301-330 of 330 requests" and len(done.stdout.splitlines()) == 31
    done = await run("list", "--limit", "100", "--page", "2")
    assert done.stderr.strip() == "101-200 of 330 requests; more: --page 3"
    done = await run("list", "--limit", "150", "--page", "9")
    assert done.stderr.strip() == "no request on this page; there are 330" and done.stdout == ""


async def test_what_is_missing_is_said(peer: AnsweringPeer) -> None:
    missing = [{"peer": "abc", "name": "to\x1bwer", "since": "2026-11-23T14:03:00Z"}, {"peer": "def", "name": None}]
    peer.answers[RECORDS] = page(incomplete=missing)
    done = await run()
    assert done.stderr.splitlines() == [
        "no request found",
        "incomplete: to\N{REPLACEMENT CHARACTER}wer offline since 2026-11-23 14:03:00",
        "incomplete: def offline",
    ]


async def test_json_is_the_answer_as_it_is(peer: AnsweringPeer) -> None:
    done = await run("list", "--json")
    assert json.loads(done.stdout) == page(RECORD, FAILED) and done.stderr == ""


async def test_show_leaves_bodies_out_unless_asked_for(peer: AnsweringPeer) -> None:
    """F156: one record."""
    peer.answers[f"{RECORDS}/0199-a"] = RECORD
    done = await run("show", "0199-a")
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    shown = {label.strip(): text.strip() for label, text in lines.items()}
    assert shown["status"] == "success" and shown["tokens"] == "12 + 34" and shown["machine"] == "attic"
    assert shown["first token after"] == "90 ms" and shown["attempts"] == "2" and shown["ingress"] == "tower"
    assert "Hello" not in done.stdout
    assert json.loads((await run("show", "0199-a", "--json")).stdout) == {
        name: value for name, value in RECORD.items() if not name.endswith("_body")
    }
    done = await run("show", "0199-a", "--bodies")
    assert '"content": "Hello"' in done.stdout and "\x1b" not in done.stdout
    assert json.loads((await run("show", "0199-a", "--bodies", "--json")).stdout) == RECORD


async def test_show_says_what_went_wrong_and_what_was_not_kept(peer: AnsweringPeer) -> None:
    peer.answers[f"{RECORDS}/a%2Fb"] = FAILED | {"response_body": None, "request_body": "as text\x1b"}
    done = await run("show", "a/b", "--bodies")
    assert "error: no holder\N{REPLACEMENT CHARACTER}" in done.stdout
    assert "response body\nnot kept" in done.stdout
    assert "request body\nas text\N{REPLACEMENT CHARACTER}" in done.stdout


async def test_an_unknown_request_is_exit_code_5(peer: AnsweringPeer) -> None:
    done = await run("show", "nothing")
    assert done.exit_code == Exit.NOT_FOUND and "there is nothing" in done.stderr


async def test_an_answer_that_is_none_is_said(peer: AnsweringPeer) -> None:
    strange: Any
    for strange in ([], {"records": {}}, {"records": []}):
        peer.answers[RECORDS] = strange
        assert "not understood" in (await run("list")).stderr


# Files


def sending(
    *pieces: bytes, ends: bool = True, length: int | None = None
) -> Callable[..., Awaitable[web.StreamResponse]]:
    """An answer in pieces that is cut off unless `ends`."""

    async def send(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = length
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        if not ends:
            assert request.transport is not None
            request.transport.close()
        return response

    return send


async def test_export_writes_a_file_that_only_its_owner_reads(peer: AnsweringPeer, tmp_path: Path) -> None:
    """F157: the export, with its filters."""
    file = tmp_path / "out" / "history.csv"
    file.parent.mkdir()
    file.write_text("of before")
    peer.answers[f"{RECORDS}/export"] = sending(b"id,model\r\n", b'1,"a,b"\r\n')
    done = await run("export", "--format", "csv", "--output", str(file), "--model", "qw", "--bodies")
    assert done.exit_code == 0 and done.stdout == "", done.output
    assert list(csv.reader(file.read_text().splitlines())) == [["id", "model"], ["1", "a,b"]]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and [p.name for p in file.parent.iterdir()] == ["history.csv"]
    assert peer.asked == [(f"{RECORDS}/export", {"model": "qw", "format": "csv", "bodies": "true"})]


async def test_export_goes_to_stdout_as_it_comes_byte_for_byte(peer: AnsweringPeer) -> None:
    data = b'[{"id": "\xc3\xa4\\u001b"}]\r\n\n'
    peer.answers[f"{RECORDS}/export"] = sending(data)
    done = await run("export")
    assert done.stdout_bytes == data and done.stderr == ""
    assert peer.asked[0][1] == {"format": "json"}


async def test_an_export_that_is_cut_off_leaves_no_file_and_the_old_one(peer: AnsweringPeer, tmp_path: Path) -> None:
    file = tmp_path / "out" / "history.json"
    file.parent.mkdir()
    file.write_text("of before")
    for broken in (sending(b"[{", ends=False), sending(b"[{", ends=False, length=100)):
        peer.answers[f"{RECORDS}/export"] = broken
        done = await run("export", "-o", str(file))
        assert done.exit_code == Exit.FAILED and "cut off" in done.stderr
        assert file.read_text() == "of before" and len(list(file.parent.iterdir())) == 1


async def test_a_large_export_is_not_held_in_memory(peer: AnsweringPeer, tmp_path: Path) -> None:
    """Pieces are written as they come: none is larger than what a network gives at once."""
    peer.answers[f"{RECORDS}/export"] = sending(*[b"x" * 100_000] * 50)
    sizes: list[int] = []
    written = await asyncio.to_thread(
        connect(tmp_path).download, f"{RECORDS}/export", lambda piece: sizes.append(len(piece))
    )
    assert written == sum(sizes) == 5_000_000 and max(sizes) <= 65_536


async def test_a_place_that_cannot_be_written_is_named(peer: AnsweringPeer, tmp_path: Path) -> None:
    peer.answers[f"{RECORDS}/export"] = sending(b"[]")
    done = await run("export", "-o", str(tmp_path / "nowhere" / "x.json"))
    assert done.exit_code == Exit.FAILED and "cannot be written: No such file" in done.stderr


async def test_a_refused_export_writes_no_file(peer: AnsweringPeer, tmp_path: Path) -> None:
    async def refused(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": "an election runs"}, status=503)

    peer.answers[f"{RECORDS}/export"] = refused
    done = await run("export", "-o", str(tmp_path / "x.json"))
    assert done.exit_code == Exit.FAILED and "an election runs" in done.stderr
    assert not (tmp_path / "x.json").exists()
