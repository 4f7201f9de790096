"""`llm-router history ...`: the requests that the mesh answered."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import click

from mesh.cli.client import Peer, segment, with_query
from mesh.cli.completion import complete_model, complete_peer
from mesh.cli.failure import Failure
from mesh.cli.group import Entry, LazyGroup
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import duration, harmless, plain, print_json, print_table, size
from mesh.cli.paging import as_moment, fetched, footer, local_time, with_pages
from mesh.cli.state import print_fields

_RECORDS = "/api/dashboard/request-responses"
_HEADERS = ["TIME", "MODEL", "MACHINE", "STATUS", "TOKENS", "TTFT", "TOOK", "WHO", "ID"]
_BODIES = ("request_body", "response_body")
# Shown in another form, or under another name.
_SAID = (
    "timestamp", "request_type", "agent_machine_name", "ttft_ms", "duration_ms", "completed_at", "client_ip",
    "prompt_tokens", "completion_tokens", "api_key",
)  # fmt: skip
EXPORT_S = 300.0
"""Between two pieces of a file: a search in bodies may find nothing for long."""

history = LazyGroup(
    name="history",
    help="List, show and export the requests that the mesh answered.",
    default="list",
    entries={
        "list": Entry(f"{__name__}:list_records", "List requests, the newest first (also without a command)."),
        "show": Entry(f"{__name__}:show", "Show everything known of a request."),
        "export": Entry(f"{__name__}:export", "Write requests to a file, as JSON or CSV."),
        "ls": Entry(f"{__name__}:list_records"),
    },
)


def with_filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the filters; the command gets `query`, as the API has them."""

    @click.option("--model", metavar="TEXT", shell_complete=complete_model, help="Whose name has this in it.")
    @click.option(
        "--agent", "--node", "agent", metavar="MACHINE", shell_complete=complete_peer, help="Answered by this machine."
    )
    @click.option(
        "--status",
        type=click.Choice(["success", "error", "cancelled", "interrupted", "running"]),
        help="That ended so.",
    )
    @click.option("--key", metavar="KEY", help="Asked with this API key (its id or name).")
    @click.option("--since", metavar="TIME", callback=as_moment, help="Not before: 10m, 2026-11-23 14:00, ...")
    @click.option("--until", metavar="TIME", callback=as_moment, help="Before.")
    @click.option("--grep", metavar="TEXT", help="With this text in what was asked or answered.")
    @functools.wraps(command)
    def wrapped(
        model: str | None,
        agent: str | None,
        status: str | None,
        key: str | None,
        since: str | None,
        until: str | None,
        grep: str | None,
        **arguments: Any,
    ) -> Any:
        query = {"model": model, "agent": agent, "status": status, "key": key, "from": since, "to": until, "q": grep}
        return command(query=query, **arguments)

    return wrapped


@click.command(name="list", help="List requests, the newest first (also without a command).")
@with_filters
@with_pages
@json_option
@with_peer
def list_records(peer: Peer, query: dict[str, object], page: int, limit: int, as_json: bool) -> None:
    answer = fetched(peer, _RECORDS, query, field="records", page=page, limit=limit)
    if as_json:
        print_json(answer)
        return
    records = answer["records"]
    if records:
        print_table(_HEADERS, [_row(record) for record in records], right=["TOKENS", "TTFT", "TOOK"])
    click.echo(footer(answer, len(records), "request"), err=True)
    for line in _missing(answer):
        click.echo(harmless(line), err=True)


@click.command(help="Show everything known of a request. What was asked and answered is shown with --bodies only.")
@click.argument("record_id", metavar="ID")
@click.option("--bodies", is_flag=True, help="With what was asked and answered.")
@json_option
@with_peer
def show(peer: Peer, record_id: str, bodies: bool, as_json: bool) -> None:
    record = peer.get(f"{_RECORDS}/{segment(record_id)}")
    kept = {name: record.pop(name, None) for name in _BODIES}
    if as_json:
        print_json(record | kept if bodies else record)
        return
    print_fields(_details(record))
    if bodies:
        for name, body in kept.items():
            text = body if isinstance(body, str) else json.dumps(body, indent=2, ensure_ascii=False)
            click.echo(f"\n{name.replace('_', ' ')}\n{harmless('not kept' if body is None else text)}")


@click.command(
    help="Write requests to a file, as JSON or CSV, or to stdout.\n\n"
    "The file appears under its name when it is whole; only you can read it."
)
@with_filters
@click.option("--format", "form", type=click.Choice(["json", "csv"]), default="json", show_default=True)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="The file; stdout without it.")
@click.option("--bodies", is_flag=True, help="With what was asked and answered.")
@with_peer
def export(peer: Peer, query: dict[str, object], form: str, output: Path | None, bodies: bool) -> None:
    path = with_query(f"{_RECORDS}/export", query | {"format": form, "bodies": "true" if bodies else None})
    if output is None:
        peer.download(path, sys.stdout.buffer.write, timeout_s=EXPORT_S)
        sys.stdout.buffer.flush()
        return
    with _new_file(output.expanduser()) as file:
        written = peer.download(path, file.write, timeout_s=EXPORT_S)
    click.echo(f"{output} ({size(written)})", err=True)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of what is there when the block ends well. Raises Failure when the disk refuses."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def _row(record: dict[str, Any]) -> list[str]:
    return [
        local_time(record.get("timestamp")),
        plain(record.get("model")),
        plain(record.get("agent_machine_name")),
        _status(record, with_message=False),
        _tokens(record),
        _took(record.get("ttft_ms")),
        _took(record.get("duration_ms")),
        _who(record),
        plain(record.get("id")),
    ]


def _details(record: dict[str, Any]) -> dict[str, Any]:
    """What a person reads of it, in that order; the rest after it."""
    first: dict[str, Any] = {
        "id": record.get("id"),
        "time": local_time(record.get("timestamp")),
        "kind": record.get("request_type"),
        "model": record.get("model"),
        "status": _status(record, with_message=True),
        "machine": record.get("agent_machine_name"),
        "tokens": _tokens(record),
        "first_token_after": _took(record.get("ttft_ms")),
        "took": _took(record.get("duration_ms")),
        "who": _who(record),
        "ended": local_time(record.get("completed_at")),
    }
    return first | {name: value for name, value in record.items() if name not in (*_SAID, *first)}


def _status(record: dict[str, Any], *, with_message: bool) -> str:
    status = record.get("status")
    if not isinstance(status, dict):
        return plain(status)
    message = status.get("message") if with_message else None
    return plain(status.get("type")) + (f": {message}" if message else "")


def _tokens(record: dict[str, Any]) -> str:
    """Of the prompt and of the answer."""
    counts = [record.get("prompt_tokens"), record.get("completion_tokens")]
    return " + ".join(plain(number) for number in counts) if any(n is not None for n in counts) else "-"


def _took(milliseconds: object) -> str:
    is_number = isinstance(milliseconds, int | float) and not isinstance(milliseconds, bool)
    return duration(milliseconds / 1000) if is_number else "-"  # type: ignore[operator]


def _who(record: dict[str, Any]) -> str:
    """The key that was used, else the address."""
    key = record.get("api_key")
    name = key.get("name") or key.get("id") if isinstance(key, dict) else key
    return plain(name or record.get("client_ip"))


def _missing(answer: dict[str, Any]) -> list[str]:
    """Whose newest requests are not in it."""
    lines = []
    for log in answer.get("incomplete") or ():
        name, since = (log.get("name") or log.get("peer"), log.get("since")) if isinstance(log, dict) else (log, None)
        lines.append(f"incomplete: {plain(name)} offline" + (f" since {local_time(since)}" if since else ""))
    return lines
