"""What is asked of the history: filters, pages that stay the same, search, totals, and who did what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.identity import uuid_of
from inference.errors import InvalidRequest
from mesh.history import query as query_module
from mesh.history import schema, search, view
from mesh.history.conditions import Mesh
from mesh.history.entries import Audit, LogId, encode
from mesh.history.errors import HistoryUnavailable
from mesh.history.filters import Page, filters_of, page_of, span_of
from mesh.history.projection import band_of, duration_of
from mesh.history.query import HistoryQuery
from mesh.history.store import HistoryStore
from mesh.history.totals import percentile
from tests.fixtures.recorded import ATTIC, DEN, NOW_MS, TOWER, end, mesh_of, start

OLD = LogId(TOWER, 1000)
"""The log of a run of tower's that is over."""
LIVING = LogId(TOWER, 2000)
MINUTE = 60_000
HOUR = 3_600_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[HistoryStore]:
    opened = await HistoryStore.open(tmp_path / "router.db", ATTIC)
    yield opened
    await opened.close()


@pytest.fixture
def history(store: HistoryStore) -> HistoryQuery:
    return HistoryQuery(store, mesh_of(store, LIVING), now_ms=lambda: NOW_MS)


async def ids(history: HistoryQuery, **query: str) -> list[str]:
    return [record["id"] for record in (await history.records(query))["records"]]


async def count(history: HistoryQuery, **query: str) -> int:
    answer = await history.records(query)
    total = answer["total_count"]
    assert isinstance(total, int)
    return total


# One record.


async def test_a_record_has_the_fields_of_the_contract_in_their_order(
    store: HistoryStore, history: HistoryQuery
) -> None:
    """F155, F156: and ours after them."""
    at = NOW_MS - MINUTE
    await store.append(
        [
            start("1", at, "hi", client_ip="10.0.0.9", key_id="k1", key_name="phone", user="ann", stream=True),
            end(
                "1",
                at + 1234,
                answer="hello",
                node=TOWER,
                node_name="tower",
                node_ip="10.0.0.2",
                attempts=2,
                continued_on=("den", "the other one"),
                prompt_tokens=5,
                completion_tokens=7,
                cached_tokens=3,
                ttft_ms=90,
                duration_ms=1234,
            ),
        ]
    )
    record = await history.record("1")
    assert record == {
        "id": "1",
        "timestamp": "2026-01-04T12:33:56.000Z",
        "request_type": "chat",
        "model": "m",
        "node_id": str(uuid_of(TOWER)),
        "agent_machine_name": "tower",
        "agent_ip": "10.0.0.2",
        "client_ip": "10.0.0.9",
        "request_body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
        "response_body": {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}]
        },
        "duration_ms": 1234,
        "status": {"type": "success"},
        "completed_at": "2026-01-04T12:33:57.234Z",
        "state": "success",
        "code": None,
        "http_status": 200,
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "cached_tokens": 3,
        "ttft_ms": 90,
        "attempts": 2,
        "continued_on": ["den", "the other one"],
        "ingress_node_id": str(uuid_of(ATTIC)),
        "ingress_machine_name": "attic",
        "api_key": "phone",
        "api_key_id": "k1",
        "user": "ann",
        "stream": True,
        "recording": "full",
        "bodies_dropped": False,
    }
    assert list(record) == list(view.FIELDS)
    assert await history.record("2") is None


async def test_each_end_of_a_request_is_told_apart(store: HistoryStore, history: HistoryQuery) -> None:
    await store.append([start("running", NOW_MS), start("ok", NOW_MS), end("ok", NOW_MS)])
    await store.append([start("bad", NOW_MS), end("bad", NOW_MS, "error", None, message="no room", code="full")])
    await store.append([start("left", NOW_MS), end("left", NOW_MS, "cancelled", message="whatever")])
    await store.append([start("cut", NOW_MS), end("cut", NOW_MS, "interrupted")])
    await store.take(OLD, 1, [start("dead", NOW_MS)], 0)
    await store.take(LIVING, 1, [start("alive", NOW_MS)], 0)
    interrupted = "the machine that took the request stopped before it ended"
    expected: dict[str, tuple[str, dict[str, str]]] = {
        "running": ("running", {"type": "running"}),
        "alive": ("running", {"type": "running"}),
        "ok": ("success", {"type": "success"}),
        "bad": ("error", {"type": "error", "message": "no room"}),
        "left": ("cancelled", {"type": "error", "message": "the client left"}),
        "cut": ("interrupted", {"type": "error", "message": interrupted}),
        "dead": ("interrupted", {"type": "error", "message": interrupted}),
    }
    records = {record["id"]: record for record in (await history.records({}))["records"]}
    assert {id_: (record["state"], record["status"]) for id_, record in records.items()} == expected
    assert records["bad"]["code"] == "full"
    assert records["dead"]["completed_at"] is None
    for state in ("running", "success", "cancelled", "interrupted"):
        assert set(await ids(history, status=state)) == {id_ for id_, (own, _) in expected.items() if own == state}
    # A filter for errors finds what is shown as an error.
    assert set(await ids(history, status="error")) == {
        id_ for id_, (_, status) in expected.items() if status["type"] == "error"
    }


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b'{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        ("日本".encode(), "日本"),
        (b"plain text", "plain text"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"NaN", "NaN"),
        (b"1e999", "1e999"),
        (b'"\\ud800"', '"\\ud800"'),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b"[" * 100_000, "[" * 100_000),
        (b"1" * 5000, "1" * 5000),
    ],
)
def test_a_body_is_json_where_it_can_be_said_again_and_text_else(data: bytes, shown: Any) -> None:
    found = view.body(data)
    assert found == shown
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


async def test_lists_come_without_bodies_unless_they_are_asked_for(
    store: HistoryStore, history: HistoryQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await store.append([start(str(number), NOW_MS + number, "x" * 100), end(str(number), NOW_MS, answer="y" * 100)])
    plain = (await history.records({}))["records"]
    assert [record["request_body"] for record in plain] == [None] * 3
    full = (await history.records({"bodies": "true"}))["records"]
    assert all(record["request_body"]["model"] == "m" and record["response_body"] for record in full)
    # However long they are, an answer is bounded.
    monkeypatch.setattr(HistoryQuery.shown, "__kwdefaults__", {"bytes_max": 400})
    some = (await history.records({"bodies": "true"}))["records"]
    assert [record["request_body"] is not None for record in some] == [True, False, False]


async def test_a_registered_server_is_named_by_its_own_uuid(store: HistoryStore, history: HistoryQuery) -> None:
    server = "0b5a3c1e-1111-4222-8333-444455556666"
    await store.append([start("1", NOW_MS), end("1", NOW_MS, node=server, node_name="ollama")])
    assert (await history.records({"agent": server}))["records"][0]["node_id"] == server


# Filters.


async def filled(store: HistoryStore) -> None:
    rows: list[tuple[str, str, str, str, str]] = [
        ("1", "Llama-3.2-3B", TOWER, "tower", "k1"),
        ("2", "llama_guard", DEN, "den", "k2"),
        ("3", "qwen2.5-7b", TOWER, "tower", "k1"),
        ("4", "100%-sure", ATTIC, "attic", ""),
    ]
    for number, (id_, model, node, name, key) in enumerate(rows):
        at = NOW_MS - 5 * MINUTE + number * MINUTE
        key_name = {"k1": "Phone", "k2": "laptop"}.get(key, "")
        source = LIVING if id_ == "2" else None
        items = [
            start(id_, at, f"question {id_}", model=model, key_id=key, key_name=key_name),
            end(id_, at + 10, node=node, node_name=name, duration_ms=10),
        ]
        if source is None:
            await store.append(items)
        else:
            await store.take(source, 1, items, 0)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, "4321"),
        ({"model": "LLAMA"}, "21"),
        ({"model": "a_g"}, "2"),  # no wildcard
        ({"model": "0%"}, "4"),
        ({"model": "nothing"}, ""),
        ({"agent": TOWER}, "31"),
        ({"agent": TOWER[:6]}, "31"),
        ({"agent": TOWER[:5]}, ""),
        ({"agent": str(uuid_of(TOWER)).upper()}, "31"),
        ({"agent": "Tower"}, "31"),
        ({"agent": "den"}, "2"),  # a name that only the records know
        ({"agent": "nobody"}, ""),
        ({"ingress": "tower"}, "2"),
        ({"ingress": ATTIC[:8]}, "431"),
        ({"ingress": "nobody"}, ""),
        ({"key": "k1"}, "31"),
        ({"key": "phone"}, "31"),
        ({"key": "K1"}, ""),
        ({"status": "success"}, "4321"),
        ({"status": "error"}, ""),
        ({"from": "2026-01-04T12:31:56Z"}, "43"),
        ({"to": "2026-01-04T12:31:56Z"}, "21"),
        ({"from": "2026-01-04T13:31:56 01:00"}, "43"),  # a plus sign that a URL lost
        ({"from": str(NOW_MS // 1000 - 180)}, "43"),
        ({"from": "2026-01-04"}, "4321"),
        ({"to": "2026-01-04"}, "4321"),  # up to its end
        ({"to": "2026-01-03"}, ""),
        ({"from": "2026-01-05"}, ""),
        ({"model": "llama", "agent": "tower", "key": "phone", "q": "question"}, "1"),
    ],
)
async def test_filters(store: HistoryStore, history: HistoryQuery, query: dict[str, str], found: str) -> None:
    """F155: model, agent, ingress, key, status, from, to; together they narrow."""
    await filled(store)
    assert await ids(history, **query) == list(found)
    assert await count(history, **query) == len(found)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-13-01"}, "to"),
        ({"to": "2026-01-04T12:00:00"}, "to"),
        ({"from": "999999999999"}, "from"),
        ({"from": "1969-12-31"}, "from"),
        ({"status": "fine"}, "status"),
        ({"as_of": "now"}, "as_of"),
        ({"as_of": "fffffffffffffffff.a.1"}, "as_of"),
        ({"q": "x" * 1001}, "q"),
        ({"model": "a\0b"}, "model"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_its_name(
    history: HistoryQuery, query: dict[str, str], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await history.records(query)
    assert refused.value.param == param


@given(st.dictionaries(st.sampled_from(["from", "to", "status", "as_of", "q", "page", "per_page"]), st.text()))
def test_no_query_raises_anything_but_invalid_request(query: dict[str, str]) -> None:
    try:
        filters_of(query, NOW_MS)
        page = page_of(query)
    except InvalidRequest:
        return
    assert page.number >= 1
    assert page.size in (10, 25, 50, 100)


@pytest.mark.parametrize(
    ("asked", "page"),
    [
        ({}, Page(number=1, size=10)),
        ({"page": "3", "per_page": "50"}, Page(number=3, size=50)),
        ({"page": "0", "per_page": "11"}, Page(number=1, size=10)),
        ({"page": "-5", "per_page": "-10"}, Page(number=1, size=10)),
        ({"page": "abc", "per_page": "abc"}, Page(number=1, size=10)),
        ({"page": "9" * 18, "per_page": "100"}, Page(number=10**9, size=100)),
    ],
)
def test_pages_that_are_none_count_as_the_first_of_ten(asked: dict[str, str], page: Page) -> None:
    """F155: per_page 10/25/50/100, else 10."""
    assert page_of(asked) == page


def test_a_date_is_a_whole_day() -> None:
    span = span_of({"from": "2026-01-04", "to": "2026-01-04"}, NOW_MS)
    assert span.from_ms is not None
    assert span.to_ms == span.from_ms + 24 * HOUR


# Pages.


async def test_every_record_is_on_one_page_newest_first(store: HistoryStore, history: HistoryQuery) -> None:
    """Requests of the same millisecond too."""
    await store.append([start(f"{number:02}", NOW_MS - number // 4) for number in range(37)])
    pages = [await history.records({"page": str(page)}) for page in range(1, 6)]
    assert [len(page["records"]) for page in pages] == [10, 10, 10, 7, 0]
    assert {page["total_count"] for page in pages} == {37}
    records = [record for page in pages for record in page["records"]]
    assert len({record["id"] for record in records}) == 37
    times = [record["timestamp"] for record in records]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    "query", [{}, {"status": "success"}, {"q": "question"}, {"agent": "tower"}, {"status": "running"}]
)
async def test_turning_pages_shows_one_list_whatever_arrives_meanwhile(
    store: HistoryStore, history: HistoryQuery, query: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """New requests, late ones of other peers with older times, and requests that end between two pages."""
    monkeypatch.setattr(query_module, "REMEMBERED_MAX", 0)  # searches are made again for every page
    for number in range(30):
        await store.append([start(f"a{number}", NOW_MS - number * MINUTE, "question")])
        if number % 2:
            await store.append([end(f"a{number}", NOW_MS, node=TOWER, node_name="tower")])
    whole = [record["id"] for page in "1234" for record in (await history.records(query | {"page": page}))["records"]]
    first = await history.records(query)
    seen = [record["id"] for record in first["records"]]
    for page in range(2, 5):
        late = [start(f"late{page}{number}", NOW_MS - number * MINUTE, "question") for number in range(10)]
        ends = [end(f"late{page}{number}", NOW_MS, node=TOWER, node_name="tower") for number in range(10)]
        await store.take(LogId(DEN, page), 1, late + ends, 0)
        await store.append([end(f"a{2 * page}", NOW_MS, node=TOWER, node_name="tower")])
        await store.append([start(f"new{page}", NOW_MS + 5, "question"), end(f"new{page}", NOW_MS, node=TOWER)])
        answer = await history.records(query | {"page": str(page), "as_of": first["as_of"]})
        assert answer["total_count"] == first["total_count"]
        assert answer["as_of"] == first["as_of"]
        seen += [record["id"] for record in answer["records"]]
    assert seen == whole
    assert await count(history, **query) != first["total_count"] or query == {"status": "running"}


async def test_as_of_of_another_coordinator_is_told_by_its_time(
    store: HistoryStore, history: HistoryQuery, tmp_path: Path
) -> None:
    other = await HistoryStore.open(tmp_path / "other.db", TOWER)
    await other.append([start("1", NOW_MS - 2000), start("2", NOW_MS - 1000)])
    theirs = await HistoryQuery(other, mesh_of(other), now_ms=lambda: NOW_MS).records({})
    await other.close()
    await store.append([start("1", NOW_MS - 2000), start("2", NOW_MS - 1000), start("3", NOW_MS + 1000)])
    ours = await history.records({"as_of": theirs["as_of"]})
    assert [record["id"] for record in ours["records"]] == ["2", "1"]
    await store.append([start("4", NOW_MS - 500)])
    assert await ids(history, as_of=ours["as_of"]) == ["2", "1"]


async def test_requests_of_a_peer_whose_clock_is_ahead_are_shown(store: HistoryStore, history: HistoryQuery) -> None:
    await store.append([start("1", NOW_MS + 86_400_000), start("2", (1 << 63) - 1)])
    assert await ids(history) == ["2", "1"]


# Search.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("kyoto", "1"),
        ("KYOTO", "1"),
        ("天気", "2"),
        ("気", "2"),
        ("東京タワー", "3"),
        ('say "hi"', "4"),
        ("line\nbreak", "4"),
        ("100%", "5"),
        ("a_b", "5"),
        ("back\\slash", "5"),
        ("😀", "6"),
        ("ＫＹＯＴＯ", "1"),  # full-width letters
        ("か\u3099く", "7"),  # decomposed kana, as macOS types them
        ("nowhere", ""),
    ],
)
async def test_search_finds_text_in_questions_and_answers(
    store: HistoryStore, history: HistoryQuery, text: str, found: str
) -> None:
    texts = [
        ("Going to Kyoto", "!"),
        ("?", "今日の天気は晴れ"),
        ("東京タワーの高さ", "!"),
        ("?", 'they say "hi"\nline\nbreak'),
        ("100% of a_b, back\\slash", "!"),
        ("😀", "!"),
        ("がくせい", "!"),
        ("1000 axb back/slash 100", "!"),
    ]
    for number, (question, answer) in enumerate(texts, 1):
        await store.append([start(str(number), NOW_MS, question), end(str(number), NOW_MS, answer=answer)])
    assert await ids(history, q=text) == list(found)


async def test_records_without_bodies_are_searched_without_an_error(store: HistoryStore, history: HistoryQuery) -> None:
    await store.append([start("1", NOW_MS, None, recording="metadata"), end("1", NOW_MS, answer=None)])
    await store.append([start("2", NOW_MS, "word")])
    assert await ids(history, q="word") == ["2"]


async def test_a_search_in_many_pieces_finds_the_same(
    store: HistoryStore, history: HistoryQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PIECE_RECORDS", 7)
    await store.append(
        [start(f"{number:03}", NOW_MS - number // 3, "word" if number % 5 == 0 else "none") for number in range(100)]
    )
    records = (await history.records({"q": "word", "per_page": "100"}))["records"]
    assert sorted(record["id"] for record in records) == [f"{number:03}" for number in range(0, 100, 5)]
    times = [record["timestamp"] for record in records]
    assert times == sorted(times, reverse=True)


async def test_a_search_that_takes_too_long_says_how_far_it_got(
    store: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PIECE_RECORDS", 10)
    ticks = iter(range(0, 10_000, 8))
    history = HistoryQuery(store, mesh_of(store), now_ms=lambda: NOW_MS, clock=lambda: float(next(ticks)))
    await store.append([start(f"{number:02}", NOW_MS - number * MINUTE, "word") for number in range(100)])
    answer = await history.records({"q": "word", "per_page": "100"})
    shown = len(answer["records"])
    assert 0 < shown < 100
    assert answer["total_count"] == shown
    assert answer["searched_back_to"] == answer["records"][-1]["timestamp"]
    rest = await history.records({"q": "word", "per_page": "100", "to": answer["searched_back_to"]})
    assert rest["records"][0]["id"] == f"{shown:02}"


async def test_the_pages_of_a_search_are_turned_without_searching_again(
    store: HistoryStore, history: HistoryQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.append([start(f"{number:02}", NOW_MS - number, "word") for number in range(30)])
    first = await history.records({"q": "word"})
    monkeypatch.setattr(search, "pieces", None)
    again = await history.records({"q": "word", "page": "2", "as_of": first["as_of"]})
    assert [record["id"] for record in again["records"]] == [f"{number:02}" for number in range(10, 20)]


async def test_too_many_searches_at_once_are_told_to_come_again(
    store: HistoryStore, history: HistoryQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_module, "SEARCH_WAIT_S", 0.01)
    await store.append([start("1", NOW_MS, "word")])
    async with history._searching(), history._searching():
        with pytest.raises(HistoryUnavailable, match="ask again"):
            await history.records({"q": "word"})
    assert await ids(history, q="word") == ["1"]


async def test_a_search_whose_caller_leaves_frees_its_place(store: HistoryStore, history: HistoryQuery) -> None:
    await store.append([start(str(number), NOW_MS, "word") for number in range(500)])
    for _ in range(10):
        asking = asyncio.create_task(history.records({"q": "nowhere"}))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
    assert await count(history, q="word") == 500


# Totals.


async def test_totals_tell_apart_how_requests_ended(store: HistoryStore, history: HistoryQuery) -> None:
    await filled(store)
    await store.append([start("5", NOW_MS), start("6", NOW_MS), end("6", NOW_MS, "cancelled", duration_ms=30)])
    await store.append([start("7", NOW_MS), end("7", NOW_MS, "error", prompt_tokens=3, completion_tokens=4)])
    await store.take(OLD, 1, [start("8", NOW_MS)], 0)
    stats = await history.stats({})
    assert {name: stats[name] for name in stats if name.endswith(("requests", "tokens"))} == {
        "total_requests": 8,
        "successful_requests": 4,
        "failed_requests": 3,
        "cancelled_requests": 1,
        "interrupted_requests": 1,
        "running_requests": 1,
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
    }
    assert stats["average_response_time_ms"] == round((4 * 10 + 30) / 6, 1)
    peers = {row["agent_machine_name"]: row["total_requests"] for row in stats["peers"]}
    assert peers == {"tower": 2, "den": 1, "attic": 1, None: 2}
    keys = {(row["api_key_id"], row["api_key"]): row["total_requests"] for row in stats["api_keys"]}
    assert keys == {("k1", "Phone"): 2, ("k2", "laptop"): 1, (None, None): 5}
    assert stats["models"][0]["model"] == "m"


async def test_totals_of_any_time_range_are_those_of_its_records(store: HistoryStore, history: HistoryQuery) -> None:
    base = NOW_MS // HOUR * HOUR - 5 * HOUR
    times = [base + number * 17 * MINUTE for number in range(20)]
    for number, at in enumerate(times):
        await store.append([start(str(number), at), end(str(number), at, prompt_tokens=number, duration_ms=100)])
    for low in range(-10, 320, 35):
        for high in range(low, 330, 35):
            span = {"from": str((base + low * MINUTE) // 1000), "to": str((base + high * MINUTE) // 1000)}
            meant = [number for number, at in enumerate(times) if base + low * MINUTE <= at < base + high * MINUTE]
            stats = await history.stats(span)
            assert stats["total_requests"] == len(meant)
            assert stats["prompt_tokens"] == sum(meant)
            if meant:
                assert stats["duration_ms_p50"] == pytest.approx(100, rel=0.05)
                assert stats["average_response_time_ms"] == 100


async def test_percentiles_are_within_five_percent(store: HistoryStore, history: HistoryQuery) -> None:
    durations = [number * number for number in range(1, 101)]
    for number, duration in enumerate(durations):
        await store.append([start(str(number), NOW_MS), end(str(number), NOW_MS, duration_ms=duration)])
    stats = await history.stats({})
    assert stats["duration_ms_p50"] == pytest.approx(2500, rel=0.07)
    assert stats["duration_ms_p95"] == pytest.approx(9025, rel=0.07)


@given(st.integers(0, 10**9))
def test_the_band_of_a_duration_is_close_to_it(duration_ms: int) -> None:
    assert duration_of(band_of(duration_ms)) == pytest.approx(duration_ms, rel=0.05, abs=0.5)


def test_nothing_has_no_percentile() -> None:
    assert percentile([], 0.5) is None


async def test_the_last_hour_has_sixty_points_oldest_first(store: HistoryStore, history: HistoryQuery) -> None:
    """87: always 60; the running minute is the last."""
    empty = (await history.overview({}))["history"]
    assert len(empty) == 60
    assert (empty[0]["minute"], empty[-1]["minute"]) == ("2026-01-04T11:35:00.000Z", "2026-01-04T12:34:00.000Z")
    await store.append([start("old", NOW_MS - 2 * HOUR), end("old", NOW_MS)])
    for number in range(4):
        await store.append([start(str(number), NOW_MS), end(str(number), NOW_MS, "success" if number else "error")])
    await store.append([start("before", NOW_MS - 3 * MINUTE, model="x"), end("before", NOW_MS, prompt_tokens=9)])
    points = (await history.overview({}))["history"]
    assert len(points) == 60
    assert (points[-1]["success"], points[-1]["error"], points[-1]["requests"]) == (3, 1, 4)
    assert (points[-4]["success"], points[-4]["prompt_tokens"]) == (1, 9)
    assert sum(point["requests"] for point in points) == 5


async def test_an_empty_history_answers_everything(history: HistoryQuery) -> None:
    """84: a list of nothing, not an error."""
    answer = await history.records({})
    assert (answer["records"], answer["total_count"], answer["page"], answer["per_page"]) == ([], 0, 1, 10)
    assert await count(history, q="word") == 0
    assert (await history.stats({}))["total_requests"] == 0
    assert (await history.audits({}))["entries"] == []


async def test_lists_and_totals_do_not_read_entries(store: HistoryStore, history: HistoryQuery) -> None:
    """They answer although the entries are gone."""
    await filled(store)
    await store.change(lambda connection: connection.execute("DELETE FROM entries"))
    assert await ids(history) == ["4", "3", "2", "1"]
    assert (await history.stats({}))["total_requests"] == 4
    assert (await history.overview({}))["stats"]["total_requests"] == 4


@pytest.mark.parametrize("query", [{}, {"model": "m"}, {"agent": "tower"}, {"status": "error"}, {"from": "2026-01-04"}])
async def test_lists_are_counted_and_paged_on_the_index_alone(
    store: HistoryStore, history: HistoryQuery, query: dict[str, str]
) -> None:
    meant = (await history._meant(filters_of(query, NOW_MS), await history._as_of(None))).all()
    async with store.reading() as connection:
        for columns, order in (("count(*)", ""), ("place", "ORDER BY at DESC, place DESC LIMIT 10")):
            plan = await connection.execute_fetchall(
                f"EXPLAIN QUERY PLAN SELECT {columns} FROM records INDEXED BY records_at WHERE {meant.sql} {order}",
                meant.parameters,
            )
            steps = " / ".join(str(row[3]) for row in plan)
            assert "USING COVERING INDEX records_at" in steps
            assert "TEMP B-TREE" not in steps


# Who did what.


async def test_what_was_done_is_listed_newest_first_and_filtered(store: HistoryStore, history: HistoryQuery) -> None:
    for number, (actor, action) in enumerate([("ann", "key.create"), ("bob", "key.revoke"), ("ann", "history.export")]):
        audit = Audit(
            at_ms=NOW_MS + number, actor=actor, actor_kind="user", ip="10.0.0.1", action=action, target=f"t{number}"
        )
        await store.append([encode(audit)])
    answer = await history.audits({})
    assert [entry["action"] for entry in answer["entries"]] == ["history.export", "key.revoke", "key.create"]
    assert answer["entries"][2] == {
        "timestamp": "2026-01-04T12:34:56.000Z",
        "actor": "ann",
        "actor_kind": "user",
        "ip": "10.0.0.1",
        "action": "key.create",
        "target": "t0",
        "detail": None,
        "ingress_node_id": str(uuid_of(ATTIC)),
        "ingress_machine_name": "attic",
    }
    for query, found in (
        ({"actor": "ANN"}, 2),
        ({"action": "key."}, 2),
        ({"action": "key", "actor": "bob"}, 1),
        ({"q": "t2"}, 1),
        ({"q": "%"}, 0),
        ({"from": "2026-01-05"}, 0),
        ({"to": "2026-01-04"}, 3),
    ):
        assert (await history.audits(query))["total_count"] == found
    await store.append([encode(Audit(at_ms=NOW_MS, actor="eve", actor_kind="key", action="x"))])
    assert (await history.audits({"as_of": answer["as_of"]}))["total_count"] == 3


# A file that cannot be used, or is newer.


async def test_a_history_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = await HistoryStore.open(tmp_path / "file" / "router.db", ATTIC)
    history = HistoryQuery(store, Mesh(is_living=lambda log: False, name_of=lambda peer: ""))
    with pytest.raises(HistoryUnavailable):
        await history.records({})
    await store.close()


async def test_a_newer_file_is_asked_as_far_as_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "router.db"
    with monkeypatch.context() as newer:
        newer.setattr(schema, "STEPS", (*schema.STEPS, "ALTER TABLE records ADD COLUMN colour TEXT;"))
        store = await HistoryStore.open(path, ATTIC)
        await filled(store)
        await store.close()
    store = await HistoryStore.open(path, ATTIC)
    history = HistoryQuery(store, mesh_of(store), now_ms=lambda: NOW_MS)
    assert await ids(history, model="llama", q="question") == ["2", "1"]
    assert (await history.stats({}))["total_requests"] == 4
    assert (await history.record("1") or {})["request_body"] is not None
    await store.close()
