"""`llm-router audit` against a peer that answers as the API does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.fixtures.answering_peer import AnsweringPeer, answering_peer, run_command
from tests.fixtures.zone import zone

ENTRY: dict[str, Any] = {
    "at": "2026-11-23T14:03:00Z",
    "actor": "anna",
    "actor_kind": "user",
    "ip": "192.168.1.7",
    "action": "key.create",
    "target": "laptop",
    "detail": "scopes inference\x1b[2J",
}


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[AnsweringPeer]:
    async with answering_peer(tmp_path) as found:
        found.answers["/api/audit"] = answer(ENTRY)
        yield found


@pytest.fixture(autouse=True)
def in_utc() -> Iterator[None]:
    with zone("UTC0"):
        yield


def answer(*entries: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"entries": list(entries), "total_count": len(entries), "page": 1, "per_page": 50} | fields


async def run(*arguments: str) -> Result:
    return await run_command({"audit": "mesh.cli.audit:audit"}, "audit", *arguments)


async def test_entries_are_a_table(peer: AnsweringPeer) -> None:
    control = ENTRY | {"actor": "control", "actor_kind": "control", "at": 1_795_442_580.5, "ip": "", "detail": ""}
    peer.answers["/api/audit"] = answer(ENTRY, control, total_count=1000)
    done = await run()
    assert done.exit_code == 0, done.output
    header, first, second = (line.split() for line in done.stdout.splitlines())
    assert header == ["TIME", "WHO", "FROM", "ACTION", "TARGET", "DETAIL"]
    assert first[:7] == ["2026-11-23", "14:03:00", "anna", "(user)", "192.168.1.7", "key.create", "laptop"]
    assert first[7:] == ["scopes", "inference\N{REPLACEMENT CHARACTER}[2J"]
    assert second == ["2026-11-23", "14:03:00", "control", "-", "key.create", "laptop", "-"]
    assert done.stderr.strip() == "1-2 of 1,000 entries; more: --page 2"


async def test_filters_go_to_the_api(peer: AnsweringPeer) -> None:
    await run("list", "--action", "key.", "--actor", "anna", "--since", "2026-11-23", "--limit", "10")
    assert peer.asked == [
        (
            "/api/audit",
            {"action": "key.", "actor": "anna", "from": "2026-11-23T00:00:00.000Z", "page": "1", "per_page": "10"},
        )
    ]


async def test_json_is_the_answer_as_it_is_and_nothing_found_is_said(peer: AnsweringPeer) -> None:
    assert json.loads((await run("list", "--json")).stdout) == answer(ENTRY)
    peer.answers["/api/audit"] = answer()
    assert (await run("list")).stderr.strip() == "no entry found"
    peer.answers["/api/audit"] = answer(ENTRY)
    assert (await run("list")).stderr.strip() == "1 entry"
