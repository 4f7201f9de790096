"""A peer's own log lines: which of them a query finds, in which order, and what it may cost."""

from __future__ import annotations

import asyncio
import datetime
import io
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InvalidRequest, ModelUnavailable, Overloaded
from mesh import log_lines
from mesh.log_lines import LINE_BYTES_MAX, LogLines, Wanted, backwards, found_lines
from mesh.logs import DailyFile, JsonLines, Redactor
from mesh.moments import rfc_3339

NOON = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC).timestamp()


class Writer:
    """Writes lines as the peer does, at moments of the test's choice."""

    def __init__(self, folder: Path) -> None:
        self._handler = DailyFile(folder, retention_days=7)
        self._handler.setFormatter(JsonLines(Redactor()))

    def write(self, message: str, at: float = NOON, level: str = "INFO", **fields: object) -> None:
        record = logging.makeLogRecord(
            {"name": "mesh.test", "msg": message, "levelname": level, "created": at} | fields
        )
        self._handler.emit(record)

    def close(self) -> None:
        self._handler.close()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path)
    yield writer
    writer.close()


def found(folder: Path, **query: str) -> list[dict[str, Any]]:
    return found_lines(folder, Wanted.of(query, now=NOON), threading.Event())


def messages(folder: Path, **query: str) -> list[str]:
    return [line["message"] for line in found(folder, **query)]


def test_lines_come_whole_and_the_oldest_first(tmp_path: Path, writer: Writer) -> None:
    writer.write("worker started", pid=812, model="qwen")
    writer.write("peer is dead", NOON + 0.5, "WARNING")
    assert found(tmp_path) == [
        {"time": "2026-11-23T12:00:00.000+00:00", "level": "info", "logger": "mesh.test", "message": "worker started",
         "pid": 812, "model": "qwen"},
        {"time": "2026-11-23T12:00:00.500+00:00", "level": "warning", "logger": "mesh.test", "message": "peer is dead"},
    ]  # fmt: skip


def test_the_newest_are_kept_over_the_files_of_several_days(tmp_path: Path, writer: Writer) -> None:
    for number in range(6):
        writer.write(f"line {number}", NOON + number * 43_200)
    assert messages(tmp_path, limit="3") == ["line 3", "line 4", "line 5"]
    assert messages(tmp_path) == [f"line {number}" for number in range(6)]


def test_a_level_stands_for_itself_and_what_is_worse(tmp_path: Path, writer: Writer) -> None:
    for level in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        writer.write(level.lower(), level=level)
    assert messages(tmp_path, level="debug") == ["debug", "info", "warning", "error", "critical"]
    assert messages(tmp_path, level="Warning") == ["warning", "error", "critical"]
    assert messages(tmp_path, level="error") == ["error", "critical"]


@pytest.mark.parametrize("since", ["10m", rfc_3339(NOON - 600), str(NOON - 600)])
def test_since_takes_a_time_ago_rfc_3339_and_unix_seconds(tmp_path: Path, writer: Writer, since: str) -> None:
    for minutes in (90_000, 1500, 11, 10, 9):
        writer.write(f"{minutes}", NOON - minutes * 60)
    assert messages(tmp_path, since=since) == ["10", "9"]


def test_since_reads_no_file_of_an_earlier_day(tmp_path: Path, writer: Writer) -> None:
    writer.write("today")
    earlier = tmp_path / "llm-router-2026-11-20.jsonl"
    earlier.mkdir()  # opening it would be an error
    assert messages(tmp_path, since="1h") == ["today"]
    with pytest.raises(OSError):
        found(tmp_path)


def test_a_clock_that_was_set_back_hides_no_line(tmp_path: Path, writer: Writer) -> None:
    writer.write("before", NOON)
    writer.write("set back by 20 s", NOON - 20)
    writer.write("after", NOON + 1)
    assert messages(tmp_path, since=str(NOON - 5)) == ["before", "after"]


def test_grep_is_a_plain_substring_of_the_line_however_it_is_escaped(tmp_path: Path, writer: Writer) -> None:
    writer.write('said "hé.*llo\n"', folder="C:\\models")
    writer.write("other", n=812)
    for text in ('said "hé.*', "hé.*llo\n", "C:\\models", 'mesh.test", "message', "\\\\models"):
        assert messages(tmp_path, grep=text)[:1] == ['said "hé.*llo\n"'], text
    assert messages(tmp_path, grep='"n": 812') == ["other"]
    assert messages(tmp_path, grep="h.*o") == []


@given(st.text(min_size=1, max_size=20))
def test_grep_finds_every_text_that_was_logged(text: str) -> None:
    line = JsonLines(Redactor()).format(logging.makeLogRecord({"msg": "m", "value": text})).encode()
    assert Wanted.of({"grep": text}, now=NOON).takes(line, b"", b"info")


def test_what_is_no_line_is_left_out(tmp_path: Path, writer: Writer) -> None:
    writer.write("good")
    path = tmp_path / "llm-router-2026-11-23.jsonl"
    good = path.read_bytes()
    nan = good.replace(b"good", b"number").replace(b"}", b', "rate": NaN}')
    garbage = [b"\x00" * 100, b"not json", b"[]", b'{"time": 3}', good[:40], b"\xff\xfe" + good, b"[" * 100_000, b""]
    path.write_bytes(b"\n".join(garbage) + b"\n" + good + nan + good[:-10])
    (tmp_path / "llm-router-2026-11-24.jsonl.bak").write_bytes(good)
    (tmp_path / "notes.txt").write_bytes(good)
    assert messages(tmp_path) == ["good", "number"]
    assert json.dumps(found(tmp_path), allow_nan=False)


def test_there_are_no_lines_before_anything_was_logged(tmp_path: Path) -> None:
    assert found(tmp_path / "logs") == []


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=20),
    st.integers(1, 9),
    st.integers(1, 8),
    st.booleans(),
)
def test_lines_read_backwards_are_those_of_the_file_but_the_long_ones(
    lines: list[bytes], block: int, longest: int, ends: bool
) -> None:
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_lines, "_BLOCK_BYTES", block)
        patch.setattr(log_lines, "LINE_BYTES_MAX", longest)
        read = list(backwards(io.BytesIO(data)))
    kept = [line for line in reversed(data.split(b"\n")) if line]
    # a line somewhat above the limit may be read whole, if it fits the last block
    assert [line for line in read if len(line) <= longest] == [line for line in kept if len(line) <= longest]
    assert all(line in kept and len(line) <= longest + block for line in read)


def test_a_giant_line_costs_no_memory_and_hides_no_other(tmp_path: Path, writer: Writer) -> None:
    writer.write("before")
    with (tmp_path / "llm-router-2026-11-23.jsonl").open("ab") as file:
        file.write(b'{"time": "' + b"x" * (8 * LINE_BYTES_MAX) + b'"}\n')
    writer.write("after")
    assert messages(tmp_path) == ["before", "after"]


def test_the_answer_is_bounded_in_bytes(tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        writer.write(f"{number}", padding="x" * 900)
    monkeypatch.setattr(log_lines, "ANSWER_BYTES_MAX", 5000)
    assert messages(tmp_path) == ["16", "17", "18", "19"]


def test_a_search_for_what_is_not_there_ends(tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        writer.write(f"line {number}")
    monkeypatch.setattr(log_lines, "SCAN_BYTES_MAX", 2000)
    assert messages(tmp_path, grep="line 99") == ["line 99"]
    assert messages(tmp_path, grep="line 1") == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"level": "loud"}, "level"),
        ({"since": "soon"}, "since"),
        ({"since": "2026-11-23T12:00:00"}, "since"),
        ({"since": "9" * 500}, "since"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "1e3"}, "limit"),
        ({"limit": "٣"}, "limit"),
        ({"grep": "x" * 501}, "grep"),
        ({"lvl": "info"}, "lvl"),
    ],
)
def test_a_bad_query_names_its_parameter(query: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequest, match=f"Invalid '{param}'") as refused:
        Wanted.of(query, now=NOON)
    assert refused.value.param == param


@given(st.dictionaries(st.sampled_from(["level", "since", "grep", "limit"]), st.text(max_size=20)))
def test_any_query_is_understood_or_refused(query: dict[str, str]) -> None:
    try:
        Wanted.of(query, now=NOON)
    except InvalidRequest:
        pass


async def test_the_facet_answers_and_says_what_is_wrong(tmp_path: Path, writer: Writer) -> None:
    writer.write("here")
    lines = LogLines(tmp_path, now=lambda: NOON)
    assert [line["message"] for line in await lines.lines({"since": "1m"})] == ["here"]
    with pytest.raises(InvalidRequest):
        await lines.lines({"limit": "many"})
    (tmp_path / "llm-router-2026-11-22.jsonl").mkdir()
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        await lines.lines({})


async def test_one_reads_at_a_time_and_who_comes_when_many_wait_is_refused(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write("here")
    may_go = threading.Event()
    reading: list[int] = []

    def slow(folder: Path, wanted: Wanted, is_over: threading.Event) -> list[dict[str, Any]]:
        reading.append(len(reading))
        assert may_go.wait(30)
        return found_lines(folder, wanted, is_over)

    monkeypatch.setattr(log_lines, "found_lines", slow)
    lines = LogLines(tmp_path, now=lambda: NOON)
    asked = [asyncio.create_task(lines.lines({})) for _ in range(log_lines.WAITING_MAX)]
    while not reading:
        await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await lines.lines({})
    assert len(reading) == 1
    may_go.set()
    assert [len(answer) for answer in await asyncio.gather(*asked)] == [1] * log_lines.WAITING_MAX
    assert len(await lines.lines({})) == 1


async def test_the_thread_of_a_caller_that_left_stops(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        writer.write(f"line {number}")
    ended = threading.Event()
    counts: list[int] = []

    def observed(folder: Path, wanted: Wanted, is_over: threading.Event) -> list[dict[str, Any]]:
        assert is_over.wait(30)
        counts.append(len(found_lines(folder, wanted, is_over)))
        ended.set()
        return []

    monkeypatch.setattr(log_lines, "found_lines", observed)
    asked = asyncio.create_task(LogLines(tmp_path).lines({}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await asyncio.to_thread(ended.wait, 30) and counts == [0]
