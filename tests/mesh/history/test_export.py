"""Exports: the records of the filters, in JSON and CSV that spreadsheets and scripts read alike."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InvalidRequest
from mesh.history import export as module
from mesh.history.entries import Start, encode
from mesh.history.export import cell, columns, export
from mesh.history.query import HistoryQuery
from mesh.history.store import HistoryStore
from mesh.history.view import FIELDS
from tests.fixtures.recorded import ATTIC, NOW_MS, TOWER, end, mesh_of, start


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[HistoryStore]:
    opened = await HistoryStore.open(tmp_path / "router.db", ATTIC)
    yield opened
    await opened.close()


@pytest.fixture
def history(store: HistoryStore) -> HistoryQuery:
    return HistoryQuery(store, mesh_of(store), now_ms=lambda: NOW_MS)


async def filled(store: HistoryStore, records: int = 5) -> None:
    for number in range(records):
        model = "llama" if number % 2 else "qwen"
        await store.append(
            [
                start(f"{number:03}", NOW_MS - number * 1000, f"質問 {number}", model=model),
                end(f"{number:03}", NOW_MS, answer='答え, "quoted"\nline', node=TOWER, node_name="tower"),
            ]
        )


async def written(history: HistoryQuery, **query: str) -> bytes:
    return b"".join([chunk async for chunk in export(history, query, NOW_MS).chunks])


def table(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


async def test_json_is_an_array_of_what_the_api_answers(store: HistoryStore, history: HistoryQuery) -> None:
    """F157."""
    await filled(store)
    records = json.loads(await written(history))
    listed = (await history.records({}))["records"]
    for record in listed:
        del record["request_body"], record["response_body"]
    assert records == listed
    full = json.loads(await written(history, bodies="true"))
    assert full == (await history.records({"bodies": "true"}))["records"]
    assert full[0]["request_body"]["messages"][0]["content"] == "質問 0"


async def test_csv_has_the_columns_in_the_order_of_the_record(store: HistoryStore, history: HistoryQuery) -> None:
    """F157."""
    await filled(store)
    data = await written(history, format="csv")
    assert data.split(b"\r\n")[0].decode().split(",") == columns(False)
    assert [name for name in columns(True) if name != "error"] == list(FIELDS)
    rows = table(data)
    assert [row["id"] for row in rows] == ["000", "001", "002", "003", "004"]
    assert (rows[0]["status"], rows[0]["error"], rows[0]["stream"]) == ("success", "", "false")
    assert "request_body" not in rows[0]
    full = table(await written(history, format="csv", bodies="true"))
    assert json.loads(full[0]["response_body"])["choices"][0]["message"]["content"] == '答え, "quoted"\nline'


@pytest.mark.parametrize("form", ["json", "csv"])
async def test_an_export_honours_the_filters(store: HistoryStore, history: HistoryQuery, form: str) -> None:
    """F157."""
    await filled(store, 9)
    for query, found in (
        ({"model": "llama"}, ["001", "003", "005", "007"]),
        ({"q": "質問 4"}, ["004"]),
        ({"status": "error"}, []),
        ({"agent": "tower", "to": "2026-01-04T12:34:51Z"}, ["006", "007", "008"]),
    ):
        data = await written(history, format=form, **query)
        records = json.loads(data) if form == "json" else table(data)
        assert [record["id"] for record in records] == found


@pytest.mark.parametrize("has_bodies", [False, True])
async def test_records_of_many_pieces_come_each_once(
    store: HistoryStore, history: HistoryQuery, monkeypatch: pytest.MonkeyPatch, has_bodies: bool
) -> None:
    monkeypatch.setattr(module, "RECORDS", 7)
    monkeypatch.setattr(module, "RECORDS_WITH_BODIES", 3)
    await store.append([start(f"{number:03}", NOW_MS - number // 4) for number in range(50)])
    for form in ("json", "csv"):
        data = await written(history, format=form, bodies=str(has_bodies).lower())
        records = json.loads(data) if form == "json" else table(data)
        assert sorted(record["id"] for record in records) == [f"{number:03}" for number in range(50)]


async def test_what_arrives_while_a_file_is_made_is_not_in_it(
    store: HistoryStore, history: HistoryQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECORDS", 2)
    await filled(store, 6)
    chunks = export(history, {}, NOW_MS).chunks
    data = await anext(chunks)
    await store.append([start("new", NOW_MS - 3500), start("newer", NOW_MS + 1)])
    data += b"".join([chunk async for chunk in chunks])
    assert [record["id"] for record in json.loads(data)] == ["000", "001", "002", "003", "004", "005"]


async def test_a_file_of_nothing_is_valid(history: HistoryQuery) -> None:
    assert json.loads(await written(history)) == []
    assert table(await written(history, format="csv")) == []


async def test_files_are_named_and_typed(history: HistoryQuery) -> None:
    """F157: and a byte order mark for Excel, where it is asked for."""
    made = export(history, {"format": "csv", "bom": "true"}, NOW_MS)
    assert made.filename == "llm-router-history-2026-01-04T123456Z.csv"
    assert made.content_type == "text/csv; charset=utf-8"
    assert (await anext(made.chunks)).startswith("\ufeffid,timestamp".encode())
    assert export(history, {}, NOW_MS).content_type == "application/json"


@pytest.mark.parametrize(("query", "param"), [({"format": "xml"}, "format"), ({"from": "never"}, "from")])
async def test_what_cannot_be_meant_is_refused_before_the_file_begins(
    history: HistoryQuery, query: dict[str, str], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        export(history, query, NOW_MS)
    assert refused.value.param == param


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "=cmd|' /C calc'!A0"])
async def test_no_cell_is_a_formula(store: HistoryStore, history: HistoryQuery, text: str) -> None:
    model = text.strip() if text[0] in "\t\r\n" else text
    await store.append([encode(Start(id="1", at_ms=NOW_MS, kind="chat", model=model, user=text, key_name=text))])
    (row,) = table(await written(history, format="csv"))
    assert row["model"] == f"'{model}"
    assert row["user"] == row["api_key"] == cell(text)
    assert row["user"][0] == "'" and row["user"].replace("'", "") == text.replace("'", "")


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.text())))
def test_a_cell_never_begins_like_a_formula_unless_it_is_a_number(value: Any) -> None:
    text = cell(value)
    assert not text.startswith(("=", "+", "@", "\t", "\r")) and (isinstance(value, int) or not text.startswith("-"))


async def test_an_export_that_nobody_reads_to_its_end_frees_what_it_holds(
    store: HistoryStore, history: HistoryQuery
) -> None:
    await filled(store, 40)
    for _ in range(6):
        chunks = export(history, {"q": "質問", "bodies": "true"}, NOW_MS).chunks
        await anext(chunks)
        await chunks.aclose()  # type: ignore[attr-defined]
    assert len(json.loads(await written(history, q="質問"))) == 40
