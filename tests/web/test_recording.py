"""Each request that could be parsed is told to history once, with how it ended, before its last byte is sent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest

from inference.chat import Started, Usage
from inference.errors import Overloaded, WorkerDied
from tests.web.conftest import Script, services_of
from web.listener import Listener
from web.services import Access, Asked, AuditNote, Export, HistoryFacet, Limits, Outcome, Query

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "once"}
USAGE = Usage(prompt_tokens=1, completion_tokens=3, cached_tokens=1)


class Entry:
    """What history was told of one request."""

    def __init__(self, history: History, asked: Asked) -> None:
        self._history = history
        self.asked = asked
        self.starts: list[Started] = []
        self.first_tokens = 0
        self.outcomes: list[Outcome] = []

    def started(self, started: Started) -> None:
        self.starts.append(started)

    def first_token(self) -> None:
        self.first_tokens += 1

    async def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._history.ending.set()
        await self._history.disk.wait()


class History:
    """Remembers; a test may hold the disk."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.ending = asyncio.Event()
        self.disk = asyncio.Event()
        self.disk.set()

    def begin(self, asked: Asked) -> Entry:
        self.entries.append(Entry(self, asked))
        return self.entries[-1]

    @property
    def only(self) -> tuple[Entry, Outcome]:
        (entry,) = self.entries
        (outcome,) = entry.outcomes
        return entry, outcome

    def facet(self) -> HistoryFacet:
        async def answer(query: Query) -> dict[str, Any]:
            return {}

        async def one(record_id: str) -> dict[str, Any] | None:
            return None

        async def export(query: Query) -> Export:
            raise NotImplementedError

        def audit(note: AuditNote) -> None:
            raise NotImplementedError

        return HistoryFacet(
            begin=self.begin,
            audit=audit,
            records=answer,
            record=one,
            export=export,
            stats=answer,
            overview=answer,
            audits=answer,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """A surface that records, and a client."""

    script: Script
    history: History
    listener: Listener
    session: aiohttp.ClientSession

    async def ask(self, path: str, body: Mapping[str, Any], **headers: str) -> tuple[int, bytes]:
        url = f"http://127.0.0.1:{self.listener.port}{path}"
        async with self.session.post(url, json=body, headers=headers) as answer:
            return answer.status, await answer.read()

    async def until_ended(self) -> None:
        async with asyncio.timeout(10):
            await self.history.ending.wait()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    script, history = Script(), History()
    services = services_of(script, Access(hosts=frozenset()), Limits())
    listener = Listener(dataclasses.replace(services, history=history.facet()), [("127.0.0.1", 0)])
    await listener.start()
    async with aiohttp.ClientSession() as session:
        yield House(script=script, history=history, listener=listener, session=session)
    await listener.close(0)


async def test_a_whole_answer_is_recorded_as_it_was_sent(house: House) -> None:
    _, body = await house.ask("/v1/chat/completions", CHAT)
    entry, outcome = house.history.only
    assert (entry.asked.kind, entry.asked.model, entry.asked.body) == ("chat", "tiny", CHAT)
    assert (entry.asked.is_stream, entry.asked.is_kept, entry.asked.caller.ip) == (False, True, "127.0.0.1")
    assert (outcome.status, outcome.http_status, outcome.usage) == ("success", 200, USAGE)
    assert outcome.body == json.loads(body)
    assert [start.peer for start in entry.starts] == ["attic"]
    assert entry.first_tokens == 1


@pytest.mark.parametrize(("path", "asked", "kind"), [("/api/chat", CHAT, "chat"), ("/api/generate", TEXT, "generate")])
async def test_a_stream_is_recorded_whole(house: House, path: str, asked: dict[str, Any], kind: str) -> None:
    """F6: what was sent in pieces is kept as the answer that would have come in one."""
    await house.ask(path, asked)
    await house.ask(path, {**asked, "stream": True})
    whole, streamed = (entry.outcomes[0].body for entry in house.history.entries)
    assert whole is not None
    assert streamed is not None
    same = {name for name in whole if whole[name] == streamed[name]}
    assert set(whole) - same <= {"id", "created"}
    assert house.history.entries[1].asked.is_stream
    assert house.history.entries[1].asked.kind == kind
    assert house.history.entries[1].outcomes[0].usage is not None


async def test_a_stream_does_not_end_before_its_record_is_kept(house: House) -> None:
    house.history.disk.clear()
    url = f"http://127.0.0.1:{house.listener.port}/v1/chat/completions"
    async with house.session.post(url, json={**CHAT, "stream": True}) as answer:
        await answer.content.readuntil(b'"finish_reason":"stop"}]}\n\n')
        await house.until_ended()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await answer.content.readuntil(b"[DONE]\n\n")
        house.history.disk.set()
        assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")


async def test_a_whole_answer_is_not_sent_before_its_record_is_kept(house: House) -> None:
    house.history.disk.clear()
    asking = asyncio.create_task(house.ask("/v1/chat/completions", CHAT))
    await house.until_ended()
    done, _ = await asyncio.wait({asking}, timeout=0.05)
    assert not done
    house.history.disk.set()
    assert (await asking)[0] == 200


async def test_embeddings_are_recorded_without_vectors(house: House) -> None:
    await house.ask("/v1/embeddings", {"model": "embed", "input": "hi"})
    entry, outcome = house.history.only
    assert (entry.asked.kind, entry.asked.body) == ("embeddings", {"model": "embed", "input": "hi"})
    assert (outcome.status, outcome.body) == ("success", None)
    assert outcome.usage == Usage(prompt_tokens=4, completion_tokens=0)
    assert len(entry.starts) == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
async def test_a_request_for_a_model_that_nobody_has_is_recorded(house: House, path: str) -> None:
    await house.ask(path, {"model": "nope", "messages": CHAT["messages"], "prompt": "p", "input": "i"})
    entry, outcome = house.history.only
    assert (entry.asked.model, entry.starts) == ("nope", [])
    assert (outcome.status, outcome.http_status, outcome.code) == ("error", 404, "model_not_found")
    assert outcome.body is None
    assert "nope" in (outcome.message or "")


@pytest.mark.parametrize("body", [{"messages": []}, {"model": "tiny"}, {**CHAT, "n": "x"}, {**CHAT, "store": "no"}])
async def test_a_request_that_cannot_be_parsed_leaves_no_record(house: House, body: dict[str, Any]) -> None:
    status, _ = await house.ask("/v1/chat/completions", body)
    assert status == 400
    assert house.history.entries == []


@pytest.mark.parametrize("is_stream", [True, False])
async def test_an_error_before_the_first_token_is_recorded_with_its_status(house: House, is_stream: bool) -> None:
    house.script.error_before = Overloaded("the queue is full")
    await house.ask("/v1/chat/completions", {**CHAT, "stream": is_stream})
    _, outcome = house.history.only
    assert (outcome.status, outcome.http_status, outcome.code) == ("error", 503, "overloaded")
    assert (outcome.message, outcome.usage) == ("the queue is full", None)


async def test_a_fault_of_ours_is_recorded_as_an_error(house: House) -> None:
    house.script.error_before = RuntimeError("a secret that nobody may see")
    await house.ask("/v1/chat/completions", CHAT)
    _, outcome = house.history.only
    assert (outcome.status, outcome.http_status, outcome.code) == ("error", 500, "internal_error")
    assert "secret" not in (outcome.message or "")


async def test_an_error_inside_a_stream_is_recorded_before_it_is_told(house: House) -> None:
    """The client got 200, and an error event: the record holds both, and the tokens that were made."""
    house.script.error_after = WorkerDied("the worker ended")
    _, data = await house.ask("/v1/chat/completions", {**CHAT, "stream": True})
    assert b"worker_died" in data
    _, outcome = house.history.only
    assert (outcome.status, outcome.http_status, outcome.code) == ("error", 200, "worker_died")
    assert (outcome.body, outcome.usage) == (None, USAGE)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_is_recorded_as_such(house: House, is_stream: bool) -> None:
    house.script.before_piece.clear()
    asking = asyncio.create_task(house.ask("/v1/chat/completions", {**CHAT, "stream": is_stream}))
    await house.script.started.wait()
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    await house.until_ended()
    _, outcome = house.history.only
    assert (outcome.status, outcome.http_status, outcome.body) == ("cancelled", 499, None)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_peer_that_stops_is_no_client_that_left(house: House, is_stream: bool) -> None:
    house.script.before_piece.clear()
    asking = asyncio.create_task(house.ask("/v1/chat/completions", {**CHAT, "stream": is_stream}))
    async with asyncio.timeout(10):
        while not (house.history.entries and house.history.entries[0].starts):
            await asyncio.sleep(0.01)
    await house.listener.close(0)
    await asking
    _, outcome = house.history.only
    expected = (200, "stream_interrupted") if is_stream else (503, "model_unavailable")
    assert (outcome.status, outcome.http_status, outcome.code) == ("error", *expected)


@pytest.mark.parametrize(("store", "is_kept"), [(True, True), (None, True), (False, False)])
async def test_a_request_may_say_that_it_is_not_to_be_kept(house: House, store: bool | None, is_kept: bool) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/embeddings", {"model": "embed", "input": "hi"})):
        status, _ = await house.ask(path, {**body, "store": store})
        assert status == 200
    assert [entry.asked.is_kept for entry in house.history.entries] == [is_kept, is_kept]
