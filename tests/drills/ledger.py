"""What clients saw, compared with what the mesh recorded: nothing lost, nothing twice, nothing that nobody asked.

No two questions of a drill are the same text, so a record is known by its request; and it has to hold the very answer,
under the very id, that its client got. `Ledger` asks any peer: the coordinator answers from the union of all logs.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.drills.clients import Answer, Question
from tests.drills.house import waited
from tests.fixtures.peer import Peer, Reply

SLACK_S = 2.0
"""A record is as old as its request; a window that begins this much earlier has it."""
SHOWN = 5
CONNECT_S = 0.5
"""Who was about to connect to a machine when it was killed has found out by then."""

Seen = tuple[Question, Answer]
Record = Mapping[str, Any]


class Unanswered(Exception):
    """The peer has no answer now: a coordinator is being chosen, or its history cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is the matter, in words. `lost`: acknowledged and not there; `doubled`: there more than once."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = {"lost": self.lost, "doubled": self.doubled, "wrong": self.wrong}
        return "; ".join(f"{len(found)} {kind}: {found[:SHOWN]}" for kind, found in kinds.items() if found)


def is_acknowledged(answer: Answer) -> bool:
    """The client got the whole answer, to its last byte."""
    is_whole = answer.is_done if answer.is_stream else answer.finishes == 1
    return answer.status == 200 and answer.error is None and not answer.trouble and is_whole


def compared(seen: Sequence[Seen], records: Sequence[Record], *, is_over: bool) -> Findings:
    """`is_over`: nothing runs any more and every peer is back, so each record has its end and somebody asked for it."""
    by_text: dict[str, list[Record]] = {}
    for record in records:
        by_text.setdefault(asked_text(record), []).append(record)
    lost, doubled, wrong = [], [], []
    for question, answer in seen:
        found = by_text.pop(question.text, [])
        if len(found) > 1:
            doubled.append(f"{question.text!r}: {[(r['id'], r['state']) for r in found]}")
        elif not found:
            if is_acknowledged(answer):
                lost.append(f"{question.text!r} by {answer.asked}")
        elif what := _wrong(answer, found[0], is_over=is_over):
            wrong.append(f"{question.text!r} by {answer.asked}: {what}")
    if is_over:
        wrong += [f"{text!r}: nobody asked that" for text in by_text]
    return Findings(lost=lost, doubled=doubled, wrong=wrong)


def _wrong(answer: Answer, record: Record, *, is_over: bool) -> str:
    state = record["state"]
    if not is_acknowledged(answer):
        if is_over and state == "running":
            return "it still runs"
        return "a success that its client was told is none" if state == "success" and answer.error else ""
    if state != "success":
        return f"{state}, and its client got all of it"
    if answer.asked and record["ingress_machine_name"] != answer.asked:
        return f"recorded at {record['ingress_machine_name']}"
    body = record["response_body"]
    if body is None or not str(body["id"]).endswith(answer.headers.get("x-request-id", "?")):
        return f"it has another answer: {body!r:.80}"
    if body["choices"][0]["message"]["content"] != answer.text or body["usage"] != answer.usage:
        return f"it has another text or usage: {body!r:.200}"
    return ""


def was_cut(answer: Answer, killed: Sequence[tuple[str, float]]) -> bool:
    """It came in by a machine that was killed before it ended: (name, when) for each kill."""
    return any(answer.asked == name and answer.began_at - CONNECT_S <= at <= answer.ended_at for name, at in killed)


def asked_text(record: Record) -> str:
    """The question of a chat of one turn; empty where bodies are not kept."""
    body = record["request_body"]
    return str(body["messages"][0]["content"]) if isinstance(body, dict) else ""


def control(peer: Peer, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
    """As the user of that machine, whose command line may do everything."""
    headers = {"Authorization": f"Bearer {peer.control['token']}"}
    return peer.request(method, path, None if body is None else json.dumps(body).encode(), headers=headers)


def recorded(peer: Peer, since: float = 0.0) -> list[Record]:
    """All records, with bodies, of requests since then (unix seconds), as `peer` exports them. Raises Unanswered."""
    query = {"format": "json", "bodies": "true"}
    if since:
        query["from"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))
    try:
        reply = control(peer, "GET", f"/api/dashboard/request-responses/export?{urllib.parse.urlencode(query)}")
        if reply.status == 503:
            raise Unanswered(reply.body.decode())
        assert reply.status == 200, (reply.status, reply.body)
        found: list[Record] = reply.json
    except (OSError, http.client.HTTPException, ValueError) as error:  # who made it was killed meanwhile
        raise Unanswered(f"{type(error).__name__}: {error}") from error
    return found


def unix(moment: float) -> float:
    """A moment of the monotonic clock, in unix seconds."""
    return time.time() - time.monotonic() + moment


class Ledger:
    """Compares what was seen since it last looked."""

    def __init__(self, seen: Callable[[], Sequence[Seen]]) -> None:
        self._seen = seen
        self._looked = 0

    def until_recorded(self, peer: Peer, timeout_s: float, *, of: Callable[[Answer], bool] = lambda a: True) -> float:
        """Waits until `peer` shows all that ended before now (those that `of` is true for), each once and right.

        The seconds that took. Raises AssertionError saying what is the matter with it.
        """
        seen = [one for one in self._seen()[self._looked :] if of(one[1])]
        if not seen:
            return 0.0
        since = unix(min(answer.began_at for _, answer in seen)) - SLACK_S
        findings = Findings()

        def all_there() -> bool:
            nonlocal findings
            try:
                findings = compared(seen, recorded(peer, since), is_over=False)
            except Unanswered as error:
                findings = Findings(wrong=[f"no answer: {error}"])
            return not str(findings)

        try:
            return waited(all_there, f"all of {len(seen)} requests are on record", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {findings}") from None

    def turn_over(self) -> None:
        """What was seen so far is not looked at again, until the end."""
        self._looked = len(self._seen())

    def until_closed(self, peer: Peer, timeout_s: float) -> list[Record]:
        """Once nothing runs any more: everything that was ever seen, and every record there is. The records."""
        seen = list(self._seen())
        findings, records = Findings(), list[Record]()

        def all_right() -> bool:
            nonlocal findings, records
            try:
                records = recorded(peer)
                findings = compared(seen, records, is_over=True)
            except Unanswered as error:
                findings = Findings(wrong=[f"no answer: {error}"])
            return not str(findings)

        try:
            waited(all_right, f"the history has all of {len(seen)} requests, each once", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {findings}") from None
        return records
