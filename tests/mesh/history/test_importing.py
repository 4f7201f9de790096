"""The file of the reference: taken over once, whatever is in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.history import importing as module
from mesh.history.importing import BadRow, Imported, entries_of, import_once
from mesh.history.query import HistoryQuery
from mesh.history.redaction import redactor
from mesh.history.store import HistoryStore
from tests.fixtures.recorded import ATTIC, NOW_MS, mesh_of

NODE = "0b5a3c1e-1111-4222-8333-444455556666"
REDACT = redactor(["a-known-secret"])


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[HistoryStore]:
    opened = await HistoryStore.open(tmp_path / "router.db", ATTIC)
    yield opened
    await opened.close()


def row(id_: str = "1", **fields: Any) -> dict[str, Any]:
    """A record as the reference writes it."""
    return {
        "id": id_,
        "timestamp": "2026-01-04T10:00:00.123456789Z",
        "request_type": "chat",
        "model": "gpt-oss:20b",
        "node_id": NODE,
        "agent_machine_name": "attic",
        "agent_ip": "192.168.1.10",
        "client_ip": "192.168.1.20",
        "request_body": {"model": "gpt-oss:20b", "messages": [{"role": "user", "content": "a-known-secret"}]},
        "response_body": {"choices": []},
        "duration_ms": 1500,
        "status": {"type": "success"},
        "completed_at": "2026-01-04T10:00:01.623Z",
    } | fields


def history(store: HistoryStore) -> HistoryQuery:
    return HistoryQuery(store, mesh_of(store), now_ms=lambda: NOW_MS)


async def test_each_record_comes_over_with_all_it_had(store: HistoryStore, tmp_path: Path) -> None:
    """C7: an existing request_history.json is imported once."""
    path = tmp_path / "request_history.json"
    failed = row("2", status={"type": "error", "message": "no node"}, response_body=None, client_ip=None)
    path.write_text(json.dumps([row(), failed]))
    assert await import_once(store, path, REDACT) == Imported(taken=2)
    record = await history(store).record("1")
    assert record is not None
    expected = row(timestamp="2026-01-04T10:00:00.123Z")
    expected["request_body"]["messages"][0]["content"] = "***"
    assert {name: record[name] for name in expected} == expected
    error = await history(store).record("2")
    assert error is not None
    assert error["status"] == {"type": "error", "message": "no node"}
    assert (error["response_body"], error["client_ip"]) == (None, None)


async def test_the_file_is_kept_under_another_name_and_not_read_again(store: HistoryStore, tmp_path: Path) -> None:
    path = tmp_path / "request_history.json"
    path.write_text(json.dumps([row()]))
    content = path.read_bytes()
    await import_once(store, path, REDACT)
    assert not path.exists()
    assert (tmp_path / "request_history.json.imported").read_bytes() == content
    assert await import_once(store, path, REDACT) is None
    # Another one may come; what is known is not taken twice, and no file is overwritten.
    path.write_text(json.dumps([row(), row("2")]))
    assert await import_once(store, path, REDACT) == Imported(taken=1, known=1)
    assert (tmp_path / "request_history.json.imported").read_bytes() == content
    assert (tmp_path / "request_history.json.imported-2").exists()
    assert (await history(store).records({}))["total_count"] == 2


async def test_an_import_that_was_cut_off_goes_on_where_it_was(
    store: HistoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECORDS_AT_ONCE", 2)
    path = tmp_path / "request_history.json"
    path.write_text(json.dumps([row(str(number)) for number in range(7)]))
    append, calls = store.append, []

    async def fails_at_the_third(items: list[bytes]) -> int:
        calls.append(len(items))
        if len(calls) == 3:
            raise OSError("cut off")
        return await append(items)

    with monkeypatch.context() as patched:
        patched.setattr(store, "append", fails_at_the_third)
        with pytest.raises(OSError, match="cut off"):
            await import_once(store, path, REDACT)
    assert path.exists()
    assert await import_once(store, path, REDACT) == Imported(taken=3, known=4)
    assert (await history(store).records({}))["total_count"] == 7


async def test_one_that_was_stopped_before_it_renamed_the_file_does_only_that(
    store: HistoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "request_history.json"
    path.write_text(json.dumps([row()]))
    with monkeypatch.context() as patched:
        patched.setattr(module, "_rename", lambda path: None)
        await import_once(store, path, REDACT)
    own = store.vector()
    assert await import_once(store, path, REDACT) is None
    assert not path.exists()
    assert store.vector() == own


async def test_rows_that_are_no_records_are_counted_and_left_out(
    store: HistoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad: list[Any] = [
        None,
        7,
        "text",
        {},
        row(request_type="film"),
        row(timestamp="yesterday"),
        row(timestamp="1960-01-01T00:00:00Z"),
        row(status="success"),
        row(status={"type": "fine"}),
        row(model=None),
        row(""),
    ]
    path = tmp_path / "request_history.json"
    path.write_text(json.dumps([row("1"), *bad, row("2")]))
    assert await import_once(store, path, REDACT) == Imported(taken=2, bad=len(bad))
    assert "no records" in caplog.text


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("", Imported()),
        ("[]", Imported()),
        (" [ ] ", Imported()),
        ("\ufeff[" + json.dumps(row()) + "]", Imported(taken=1)),
        ("[" + json.dumps(row()) + ", {broken", Imported(taken=1, bad=1)),
        ("[" + json.dumps(row()), Imported(taken=1)),
        ("nonsense", Imported(bad=1)),
        ("[" + "[" * 100_000, Imported(bad=1)),
        ('{"records": []}', Imported(bad=1)),
        ("[1", Imported(bad=1)),
    ],
)
async def test_a_damaged_file_gives_what_can_be_read(
    store: HistoryStore, tmp_path: Path, text: str, done: Imported
) -> None:
    path = tmp_path / "request_history.json"
    path.write_text(text, encoding="utf-8")
    assert await import_once(store, path, REDACT) == done


async def test_bytes_that_are_no_text_are_no_reason_to_stop(store: HistoryStore, tmp_path: Path) -> None:
    path = tmp_path / "request_history.json"
    path.write_bytes(json.dumps([row(model="m\u00e9")], ensure_ascii=False).encode("latin-1"))
    assert await import_once(store, path, REDACT) == Imported(taken=1)


@pytest.mark.parametrize("piece", [1, 7, 100, 1000])
async def test_records_are_found_wherever_the_file_is_cut(
    store: HistoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(module, "PIECE_CHARACTERS", piece)
    path = tmp_path / "request_history.json"
    path.write_text(
        json.dumps([row(str(number), model='日本 [{\\"') for number in range(30)], indent=3, ensure_ascii=False)
    )
    assert await import_once(store, path, REDACT) == Imported(taken=30)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)),
       st.sampled_from([*row(), "agent_id", "none"]))  # fmt: skip
def test_a_row_with_anything_in_a_field_is_a_record_or_none(value: Any, name: str) -> None:
    try:
        start, end = entries_of(row() | {name: value}, REDACT)
    except BadRow:
        return
    assert start.id == end.id
