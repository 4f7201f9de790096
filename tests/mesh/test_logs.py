"""Log lines: their forms, their files, and what never stands in them."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import logging
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config import Config, load
from mesh.logs import DailyFile, JsonLines, Logs, Redactor, TextLines, console_formatter, expired, hide

logger = logging.getLogger("mesh.test")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load({"data_dir": str(tmp_path)}, {"LLM_ROUTER_JWT_SECRET": "hunter22-and-more"}).config


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def lines(config: Config) -> list[dict[str, Any]]:
    (path,) = config.log_dir.iterdir()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def record(message: str = "worker started", level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "mesh.test", "msg": message, "levelno": level, "levelname": "INFO"} | fields)


def test_a_line_of_the_file_is_json_with_the_phrase_and_the_fields(config: Config) -> None:
    """F44-46: JSON lines, a file a day."""
    logs = Logs.start(config, stream=io.StringIO())
    logger.info("worker started", extra={"pid": 812, "model": "qwen", "folder": Path("/m")})
    logs.close()
    (line,) = lines(config)
    assert datetime.datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "info",
        "logger": "mesh.test",
        "message": "worker started",
        "pid": 812,
        "model": "qwen",
        "folder": "/m",
    }


def test_console_and_file_have_levels_of_their_own(config: Config) -> None:
    """F19, F44: LLM_ROUTER_LOG_LEVEL is the console's, LLM_NODE_LOG_LEVEL the file's."""
    console = io.StringIO()
    logs = Logs.start(dataclasses.replace(config, log_level="warning", node_log_level="debug"), stream=console)
    logger.debug("fine")
    logger.warning("degraded")
    logs.close()
    assert [line["message"] for line in lines(config)] == ["fine", "degraded"]
    assert [json.loads(line)["message"] for line in console.getvalue().splitlines()] == ["degraded"]


def test_the_console_is_text_on_a_terminal_and_json_elsewhere_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    redact = Redactor()
    assert isinstance(console_formatter("auto", Terminal(), redact), TextLines)
    assert isinstance(console_formatter("auto", io.StringIO(), redact), JsonLines)
    assert isinstance(console_formatter("text", io.StringIO(), redact), TextLines)
    assert isinstance(console_formatter("json", Terminal(), redact), JsonLines)

    warning = record(levelname="WARNING")
    assert "\x1b[" in console_formatter("auto", Terminal(), redact).format(warning)
    assert "\x1b[" not in console_formatter("text", io.StringIO(), redact).format(warning)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in console_formatter("auto", Terminal(), redact).format(warning)


def test_a_text_line_is_one_line_with_quoted_fields() -> None:
    line = TextLines(Redactor()).format(record("model\nloaded", file="a b", n=1.5, empty=""))
    assert line[8:] == ' INFO    mesh.test model\\nloaded file="a b" n=1.5 empty=""'


_STEERING = "a\x1b[2J\x9b1m\r\n\u202e\u2028\udcffz"


def test_nothing_that_is_logged_steers_a_terminal_or_makes_a_second_line() -> None:
    """File names, header values and model names come from elsewhere."""
    try:
        raise ValueError(_STEERING)
    except ValueError as error:
        found = record(f"file {_STEERING}", name_of_file=_STEERING, exc_info=(type(error), error, error.__traceback__))
    text = TextLines(Redactor()).format(found)
    assert all(c.isprintable() for c in text.replace("\n", "", text.count("\n")))
    assert r"a\x1b[2J\x9b1m\r\n\u202e\u2028\udcffz" in text.splitlines()[0]
    line = JsonLines(Redactor()).format(found)
    assert line.isprintable()
    assert json.loads(line)["message"] == f"file {_STEERING}"
    assert json.loads(line)["name_of_file"] == _STEERING


def test_secrets_are_in_no_line_wherever_they_stand(config: Config) -> None:
    console = io.StringIO()
    logs = Logs.start(dataclasses.replace(config, log_format="text"), stream=console)
    hide("control-token-1")
    try:
        raise RuntimeError("said hunter22-and-more")
    except RuntimeError:
        logger.exception(
            "failed with hunter22-and-more", extra={"who": ["control-token-1"], "map": {"k": "hunter22-and-more"}}
        )
    logger.info("header %s", "Bearer abcdef", extra={"key": "sk-mesh-1-abcdefghijklmnopqrstuvwxyz"})
    logs.close()
    (path,) = config.log_dir.iterdir()
    for text in (console.getvalue(), path.read_text(encoding="utf-8")):
        assert "***" in text
        for secret in ("hunter22", "control-token-1", "abcdef"):
            assert secret not in text


@given(st.lists(st.text(min_size=4, max_size=8), max_size=4), st.text(max_size=40))
def test_a_known_secret_never_survives_redaction(secrets: list[str], text: str) -> None:
    redact = Redactor()
    for secret in secrets:
        redact.add(secret)
    shown = redact(text + "".join(secrets))
    assert all(secret not in shown for secret in secrets if "*" not in secret)


def test_a_day_has_its_file_and_old_files_go(tmp_path: Path) -> None:
    """F46: a file a day, older files deleted."""
    handler = DailyFile(tmp_path, retention_days=7)
    handler.setFormatter(logging.Formatter("%(message)s"))
    (tmp_path / "llm-router-2026-01-01.jsonl").write_text("old")
    (tmp_path / "notes.txt").write_text("somebody's")
    midnight = datetime.datetime(2026, 1, 9, tzinfo=datetime.UTC).timestamp()
    handler.emit(record("eighth", created=midnight - 1))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "llm-router-2026-01-01.jsonl",
        "llm-router-2026-01-08.jsonl",
        "notes.txt",
    ]
    handler.emit(record("ninth", created=midnight))
    handler.close()
    assert (tmp_path / "llm-router-2026-01-08.jsonl").read_text() == "eighth\n"
    assert (tmp_path / "llm-router-2026-01-09.jsonl").read_text() == "ninth\n"
    assert not (tmp_path / "llm-router-2026-01-01.jsonl").exists()
    assert (tmp_path / "notes.txt").exists()
    assert stat.S_IMODE((tmp_path / "llm-router-2026-01-09.jsonl").stat().st_mode) == 0o600


@given(st.dates(datetime.date(2020, 1, 1), datetime.date(2030, 1, 1)), st.integers(1, 400), st.integers(0, 800))
def test_a_file_expires_when_it_is_older_than_the_retention(today: datetime.date, days: int, age: int) -> None:
    path = Path(f"llm-router-{today - datetime.timedelta(days=age)}.jsonl")
    assert (expired([path], today=today, retention_days=days) == [path]) is (age > days)


def test_a_folder_that_cannot_be_written_is_said_once_and_costs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file, not a folder")
    handler = DailyFile(tmp_path / "logs", retention_days=7)
    handler.emit(record())
    handler.emit(record())
    handler.close()
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_a_writer_that_hangs_never_holds_up_the_caller(config: Config) -> None:
    gate = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            gate.wait(30)
            return super().write(text)

    logs = Logs.start(config, stream=Stuck(), queue_length_max=10)
    for number in range(100):
        logger.info("line", extra={"number": number})
    assert logs.dropped >= 100 - 10 - 1  # one is being written
    gate.set()
    logs.close()
    assert len(lines(config)) == 100 - logs.dropped


def test_arguments_are_put_into_the_phrase_when_the_line_is_made(config: Config) -> None:
    logs = Logs.start(config, stream=io.StringIO())
    value = ["before"]
    logger.info("value %s", value)
    value[0] = "after"
    logs.close()
    assert lines(config)[0]["message"] == "value ['before']"


def test_after_the_end_the_root_logger_is_free(config: Config) -> None:
    logs = Logs.start(config, stream=io.StringIO())
    (entry,) = logging.getLogger().handlers
    logs.close()
    assert entry not in logging.getLogger().handlers


async def test_what_is_stored_is_not_logged_at_any_level(tmp_path: Path) -> None:
    """Statements hold what people asked; the library that executes them would log them for debugging."""
    config = load({"data_dir": str(tmp_path)}, {"LLM_NODE_LOG_LEVEL": "debug"}).config
    logs = Logs.start(config, stream=io.StringIO())
    async with aiosqlite.connect(":memory:") as connection:
        await connection.execute("SELECT ?", ("a question",))
    logger.debug("done")
    logs.close()
    assert [line["message"] for line in lines(config) if line["logger"] != "asyncio"] == ["done"]
