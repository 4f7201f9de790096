"""Where log lines go: the console (stderr) and a file of JSON lines a day. Secrets are taken out of every line.

A line is a constant phrase plus fields: `logger.info("worker started", extra={"pid": pid})`. On a terminal it reads
`09:31:40 INFO engine.client worker started pid=812`, elsewhere it is one JSON object with time, level, logger, message
and the fields. A writer thread does the writing: a slow disk never holds up the event loop. Its queue is bounded; what
does not fit is dropped and counted.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import logging.handlers
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from mesh.config import Config
from mesh.secret import Secret

QUEUE_LENGTH_MAX = 10_000
"""A burst of a second or two; at a few hundred bytes a record some megabytes."""

CLOSE_S = 5.0

_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m"}
_KEY_SHAPES = re.compile(r"\b(?:sk|hf|agt)[-_][A-Za-z0-9_-]{16,}|(?<=Bearer )[^\s\"']+", re.ASCII)
# What steers a terminal or a page's layout: control characters, line ends of Unicode, bidi, halves of surrogate pairs.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNPRINTABLE_BUT_LINE_ENDS = re.compile(_UNPRINTABLE.pattern.replace(r"\x00-\x1f", r"\x00-\x09\x0b-\x1f"))
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_FILE_NAME = re.compile(r"llm-router-(\d{4}-\d{2}-\d{2})\.jsonl", re.ASCII)


class Logs:
    """The logging of the process, from `start` until `close`."""

    def __init__(self, redact: Redactor, handlers: list[logging.Handler], queue_length_max: int) -> None:
        self._records: queue.Queue[logging.LogRecord | None] = queue.Queue(queue_length_max)
        self._entry = _Entry(self._records, redact)
        self._handlers = handlers
        self._writer = threading.Thread(target=self._write, name="logs", daemon=True)

    @classmethod
    def start(cls, config: Config, *, stream: TextIO | None = None, queue_length_max: int = QUEUE_LENGTH_MAX) -> Logs:
        """Takes over the root logger. `stream` is the console, stderr when None."""
        redact = Redactor(config.secrets)
        console: logging.StreamHandler[TextIO] = logging.StreamHandler(stream or sys.stderr)
        console.setLevel(config.log_level.upper())
        console.setFormatter(console_formatter(config.log_format, console.stream, redact))
        file = DailyFile(config.log_dir, config.log_retention_days)
        file.setLevel(config.node_log_level.upper())
        file.setFormatter(JsonLines(redact))
        logs = cls(redact, [console, file], queue_length_max)
        root = logging.getLogger()
        root.setLevel(min(console.level, file.level))
        root.handlers[:] = [logs._entry]
        # aiosqlite would log every statement with its parameters: what people asked, and what was answered.
        for chatty in ("asyncio", "aiohttp.access", "aiosqlite"):
            logging.getLogger(chatty).setLevel(max(root.level, logging.WARNING))
        logging.captureWarnings(True)
        logs._writer.start()
        return logs

    @property
    def dropped(self) -> int:
        """Records that found the queue full."""
        return self._entry.dropped

    def close(self) -> None:
        """Writes what is queued, unless that takes longer than CLOSE_S, and lets go of the root logger."""
        logging.captureWarnings(False)
        root = logging.getLogger()
        if self._entry in root.handlers:
            root.removeHandler(self._entry)
        with contextlib.suppress(queue.Full):
            self._records.put(None, timeout=CLOSE_S)
        self._writer.join(CLOSE_S)
        if not self._writer.is_alive():  # a writer that hangs holds a handler's lock
            for handler in self._handlers:
                handler.close()

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            for handler in self._handlers:
                if record.levelno >= handler.level:
                    handler.handle(record)


def hide(secret: str) -> None:
    """Keeps a secret made after the start, such as the control token, out of all lines from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Entry):
            handler.redact.add(secret)


class Redactor:
    """Replaces known secrets, and what looks like a key, by `***`. `add` may be called at any time."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        self._lock = threading.Lock()
        self._values: tuple[str, ...] = ()
        for secret in secrets:
            self.add(secret.reveal())

    def add(self, value: str) -> None:
        """One more secret. Those under 4 characters would take ordinary words out of the logs and are left."""
        if len(value) >= 4:
            with self._lock:  # longest first: one secret may begin with another
                self._values = tuple(sorted({*self._values, value}, key=len, reverse=True))

    def __call__(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, "***")
        return _KEY_SHAPES.sub("***", text)


class JsonLines(logging.Formatter):
    """One JSON object a line. A field called like one of ours (time, level, logger, message) is left out."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._redact(record.getMessage()),
        }
        line |= {name: self._clean(value) for name, value in _fields(record).items() if name not in line}
        if record.exc_info:
            line["traceback"] = self._redact(self.formatException(record.exc_info))
        return as_written(line)

    def _clean(self, value: object) -> object:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, list | tuple):
            return [self._clean(part) for part in value]
        if isinstance(value, dict):
            return {str(name): self._clean(part) for name, part in value.items()}
        return self._redact(str(value))


class TextLines(logging.Formatter):
    """For people: time of day, level, logger, phrase, fields."""

    def __init__(self, redact: Redactor, *, has_colour: bool = False) -> None:
        super().__init__()
        self._redact = redact
        self._has_colour = has_colour

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {name}={_quoted(value)}" for name, value in _fields(record).items())
        level = f"{record.levelname:<7}"
        if self._has_colour and (colour := _COLOURS.get(record.levelname)):
            level = f"{colour}{level}\x1b[0m"
        text = _UNPRINTABLE.sub(_as_escape, self._redact(f"{record.name} {record.getMessage()}{fields}"))
        if record.exc_info:
            traceback = self._redact(self.formatException(record.exc_info))
            text += "\n" + _UNPRINTABLE_BUT_LINE_ENDS.sub(_as_escape, traceback)
        return f"{clock} {level} {text}"


def console_formatter(form: str, stream: TextIO, redact: Redactor) -> logging.Formatter:
    """`auto`: text on a terminal, JSON elsewhere. Colour only on a terminal and without NO_COLOR."""
    is_terminal = stream.isatty()
    if form == "json" or (form == "auto" and not is_terminal):
        return JsonLines(redact)
    return TextLines(redact, has_colour=is_terminal and not os.environ.get("NO_COLOR"))


def as_text(line: Mapping[str, Any]) -> str:
    """A line of a file, parsed, for people: with its day, on this machine's clock; a traceback below it."""
    try:
        written_at = datetime.datetime.fromisoformat(str(line.get("time"))).timestamp()
        clock = time.strftime("%m-%d %H:%M:%S", time.localtime(written_at))
    except (ValueError, OverflowError, OSError):
        clock = str(line.get("time"))
    ours = ("time", "level", "logger", "message", "traceback")
    fields = "".join(f" {name}={_quoted(value)}" for name, value in line.items() if name not in ours)
    text = f"{clock} {str(line.get('level')).upper():<7} {line.get('logger')} {line.get('message')}{fields}"
    traceback = line.get("traceback")
    below = "" if traceback is None else "\n" + _UNPRINTABLE_BUT_LINE_ENDS.sub(_as_escape, str(traceback))
    return _UNPRINTABLE.sub(_as_escape, text) + below


class DailyFile(logging.Handler):
    """`llm-router-2026-11-23.jsonl`, days in UTC. Files of more than `retention_days` days ago are deleted.

    A disk that refuses costs lines, never the peer: the first failure is said on stderr, later ones are silent until
    a write succeeds again.
    """

    def __init__(self, folder: Path, retention_days: int) -> None:
        super().__init__()
        self._folder = folder
        self._retention_days = retention_days
        self._day: datetime.date | None = None
        self._file: io.TextIOWrapper | None = None
        self._is_failing = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            day = datetime.datetime.fromtimestamp(record.created, datetime.UTC).date()
            if self._file is None or (self._day is not None and day > self._day):
                self._open(day)
            assert self._file is not None
            self._file.write(self.format(record) + "\n")
            self._file.flush()
            self._is_failing = False
        except OSError as error:
            self._shut()
            if not self._is_failing:
                print(f"log files in {self._folder} cannot be written: {error.strerror}", file=sys.stderr)
            self._is_failing = True
        except Exception:  # noqa: BLE001 - the border of a handler: a field that cannot be shown costs its line
            self.handleError(record)

    def close(self) -> None:
        self._shut()
        super().close()

    def _open(self, day: datetime.date) -> None:
        self._shut()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"llm-router-{day}.jsonl"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
        self._day = day
        for old in expired(self._folder.iterdir(), today=day, retention_days=self._retention_days):
            old.unlink(missing_ok=True)

    def _shut(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass  # the rest of a line on a full disk
            self._file = None


def expired(files: Iterable[Path], *, today: datetime.date, retention_days: int) -> list[Path]:
    """The log files, by their names, that are older than the retention."""
    first = today - datetime.timedelta(days=retention_days)
    return [path for path in files if (day := day_of(path)) is not None and day < first.isoformat()]


def day_of(path: Path) -> str | None:
    """The day (UTC, as 2026-11-23) whose lines this file holds, by its name; None for other files."""
    match = _FILE_NAME.fullmatch(path.name)
    return match[1] if match else None


def as_written(value: object) -> str:
    """JSON as it stands in a file: letters as they are, what steers a terminal as `\\uXXXX`."""
    return _UNPRINTABLE.sub(_as_json_escape, json.dumps(value, ensure_ascii=False, default=str))


class _Entry(logging.handlers.QueueHandler):
    """Puts records into the queue as they are; the formatters run in the writer thread."""

    def __init__(self, records: queue.Queue[logging.LogRecord | None], redact: Redactor) -> None:
        super().__init__(records)
        self.redact = redact
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record.msg, record.args = record.getMessage(), None  # arguments may change before they are written
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}


def _as_escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _as_json_escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _quoted(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r'[\s"=]', text) else text
