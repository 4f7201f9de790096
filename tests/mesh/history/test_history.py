"""The history of a peer, whole, on real files: what is recorded is listed, here and at the coordinator."""

from __future__ import annotations

import asyncio
import datetime
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from inference.chat import Started, Usage
from inference.errors import PeerGone
from mesh.calls import Answer
from mesh.history.errors import HistoryUnavailable
from mesh.history.history import JUMPED_S, Around, History, Jumps, Policy
from mesh.history.replicas import Mate, View
from web.services import Asked, AuditNote, Caller, HistoryFacet, Outcome

ANN = Caller(ip="10.0.0.7", key_id="k1", key_name="laptop", username="ann")
DEADLINE_S = 20.0


async def eventually(is_so: Callable[[], bool]) -> None:
    """Waits until it is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.01)


class House:
    """Peers with histories on one folder each, and a network between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coordinator = "a"
        self.mesh = "first"
        self.off: dict[str, int] = {}
        self.meshes: dict[str, str] = {}
        self.up: dict[str, History] = {}
        self.run = 0

    @asynccontextmanager
    async def peer(self, name: str, policy: Policy | None = None, path: Path | None = None) -> AsyncIterator[History]:
        """A process."""
        self.run = max(self.run + 1, time.time_ns() // 1_000_000)
        around = Around(
            me=name,
            run=self.run,
            mesh_id=lambda: self.meshes.get(name, self.mesh),
            view=lambda: self.view(name),
            call=self.call(name),
            name_of=lambda peer: f"peer {peer}",
            ip_of=lambda peer: "10.0.0.1",
            nodes=lambda: [{"id": name}],
            redact=lambda text: text.replace("sk-secret", "***"),
            clouds=lambda: {"openai_key_present": True},
        )
        history = History(
            path or self.folder / name / "router.db", around=around, policy=policy or Policy(), rng=random.Random(1)
        )
        async with history.open():
            self.up[name] = history
            self.changed()
            try:
                yield history
            finally:
                del self.up[name]
                self.changed()

    def changed(self) -> None:
        for history in self.up.values():
            history.changed()

    def view(self, me: str) -> View:
        mesh = self.meshes.get(me, self.mesh)
        names = [n for n in sorted({*self.up, *self.off, me}) if self.meshes.get(n, self.mesh) == mesh]
        mates = {n: Mate(peer=n, is_alive=n not in self.off, since_ms=self.off.get(n)) for n in names if n != me}
        line = tuple(n for n in names if n not in self.off)
        return View(
            me=me, mates=mates, coordinator=self.coordinator if self.coordinator in line else me, succession=line
        )

    def call(self, me: str) -> Any:
        async def call(peer: str, method: str, path: str, *, body: bytes = b"", **_: Any) -> Answer:
            target = self.up.get(peer)
            if target is None or self.meshes.get(peer) != self.meshes.get(me):
                raise PeerGone("it is not there")
            asked = urlsplit(path)
            status, data = await target._replication.serving.answer(me, asked.path, dict(parse_qsl(asked.query)), body)
            return Answer(status=status, headers={}, body=data)

        return call


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def request(facet: HistoryFacet, number: int, outcome: Outcome | None = None, model: str = "tiny") -> None:
    record = facet.begin(
        Asked(
            request_id=f"r{number}",
            kind="chat",
            model=model,
            body={"model": model, "prompt": f"question {number} sk-secret"},
            is_stream=False,
            caller=ANN,
        )
    )
    record.started(Started(prompt_tokens=5, cached_tokens=1, peer="peer a", peer_id="a", attempts=1))
    record.first_token()
    usage = Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=1)
    await record.ended(
        outcome or Outcome(status="success", http_status=200, body={"answer": f"answer {number}"}, usage=usage)
    )


async def test_a_request_is_listed_and_shown_with_its_bodies(house: House) -> None:
    """F155, F156."""
    async with house.peer("a") as history:
        facet = history.facet()
        await request(facet, 1)
        await request(facet, 2)
        listed = await facet.records({})
        assert (listed["total_count"], listed["incomplete"]) == (2, [])
        newest = listed["records"][0]
        assert newest["agent_machine_name"] == "peer a"
        assert newest["api_key"] == "laptop"
        shown = await facet.record(newest["id"])
        assert shown is not None
        assert shown["request_body"] == {"model": "tiny", "prompt": "question 2 ***"}
        assert shown["response_body"] == {"answer": "answer 2"}
        assert shown["status"] == {"type": "success"}
        assert await facet.record("none of ours") is None
        assert (history.unacknowledged(), history.outbox_bytes(), history.lost(), history.lag()) == (0, 0, 0, {})


async def test_totals_and_the_overview_have_what_the_reference_has(house: House) -> None:
    """The last of 60 minutes counts what just came; keys are never shown, only that they are there."""
    async with house.peer("a") as history:
        facet = history.facet()
        for number in range(3):
            await request(facet, number)
        await request(facet, 3, Outcome(status="error", http_status=500, message="no", code="x"))
        overview = await facet.overview({})
        assert set(overview) >= {"nodes", "stats", "history", "generated_at", "generation_time_ms"}
        assert overview["nodes"] == [{"id": "a"}]
        assert len(overview["history"]) == 60
        assert sum(point["success"] for point in overview["history"][-2:]) == 3
        assert sum(point["error"] for point in overview["history"][-2:]) == 1
        stats = await facet.stats({})
        assert stats["openai_key_present"] is True
        assert stats == overview["stats"]


async def test_what_people_did_is_listed(house: House) -> None:
    async with house.peer("a") as history:
        facet = history.facet()
        facet.audit(AuditNote(action="key.create", caller=ANN, target="k2"))
        await request(facet, 1)
        found = await facet.audits({})
        assert [(entry["actor"], entry["action"], entry["target"]) for entry in found["entries"]] == [
            ("ann", "key.create", "k2")
        ]


async def test_the_coordinator_lists_what_others_recorded(house: House) -> None:
    async with house.peer("a") as a, house.peer("b") as b, house.peer("c") as c:
        for number, history in enumerate((a, b, c)):
            await request(history.facet(), number)
        await eventually(lambda: len(a._store.vector() if a._store else ()) == 3)
        facet = a.facet()
        listed = await facet.records({})
        assert listed["total_count"] == 3
        assert {record["ingress_machine_name"] for record in listed["records"]} == {"peer a", "peer b", "peer c"}


async def test_the_coordinator_says_whose_records_may_be_missing(house: House) -> None:
    async with house.peer("a") as a, AsyncExitStack() as stack:
        b = await stack.enter_async_context(house.peer("b"))
        await request(b.facet(), 1)
        await eventually(lambda: not a.incomplete())
        await stack.aclose()
        house.off["b"] = time.time_ns() // 1_000_000 - 60_000
        house.changed()
        (missing,) = a.incomplete()
        assert (missing["peer"], missing["name"], missing["reason"]) == ("b", "peer b", "offline")
        assert missing["since"].endswith("Z")
        assert a.lag() == {"peer b": 0}
        house.off["b"] -= 8 * 86_400_000
        assert a.incomplete() == [], "after a week it has nothing left that would be kept"


async def test_a_request_that_ran_when_its_ingress_died_is_shown_as_interrupted(house: House) -> None:
    async with house.peer("a") as history:
        facet = history.facet()
        facet.begin(Asked(request_id="r", kind="chat", model="tiny", body={}, is_stream=True, caller=ANN))
        facet.audit(AuditNote(action="x", caller=ANN))
        await history._recorder.close()
        assert [record["state"] for record in (await facet.records({}))["records"]] == ["running"]
    async with house.peer("a") as history:
        await request(history.facet(), 1)
        records = (await history.facet().records({}))["records"]
        assert [record["state"] for record in records] == ["success", "interrupted"]


async def test_a_folder_that_cannot_be_used_keeps_nobody_from_serving(house: House, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder has to be")
    async with house.peer("a", path=blocked / "router.db") as history:
        facet = history.facet()
        await request(facet, 1)
        assert history.unacknowledged() == 1
        assert history.outbox_bytes() > 0
        with pytest.raises(HistoryUnavailable):
            await facet.records({})
        blocked.unlink()
        await eventually(lambda: history.outbox_bytes() == 0)
        await request(facet, 2)
        assert (await facet.records({}))["total_count"] == 2


async def test_who_moves_to_another_mesh_leaves_the_past_at_home_and_what_is_the_others_behind(house: House) -> None:
    async with house.peer("a") as a, AsyncExitStack() as stack:
        b = await stack.enter_async_context(house.peer("b"))
        await request(a.facet(), 1)
        await request(b.facet(), 2)
        await eventually(lambda: all(len(h._store.vector() if h._store else ()) == 2 for h in (a, b)))
        house.meshes["b"] = "second"
        b.moved(takes_along=False)
        await eventually(lambda: not b._moves)
        assert [record["model"] for record in (await b.facet().records({}))["records"]] == ["tiny"]
        async with house.peer("c") as c:
            house.meshes["c"], house.coordinator = "second", "c"
            house.changed()
            await request(b.facet(), 3, model="new")
            await eventually(lambda: any(log.peer == "b" for log in (c._store.vector() if c._store else ())))
            assert [record["model"] for record in (await c.facet().records({}))["records"]] == ["new"]
            await stack.aclose()
            async with house.peer("b") as again:
                await request(again.facet(), 4, model="newer")
                await eventually(lambda: sum(log.peer == "b" for log in (c._store.vector() if c._store else ())) == 2)
                assert (await c.facet().records({}))["total_count"] == 2
                assert (await again.facet().records({}))["total_count"] == 3


async def test_who_takes_its_past_along_brings_it_to_the_other_mesh(house: House) -> None:
    house.meshes["b"] = "second"
    async with house.peer("b") as b:
        await request(b.facet(), 1)
        async with house.peer("a") as a:
            del house.meshes["b"]
            b.moved(takes_along=True)
            await eventually(lambda: not b._moves)
            await eventually(lambda: any(log.peer == "b" for log in (a._store.vector() if a._store else ())))
            assert (await a.facet().records({}))["total_count"] == 1


async def test_a_stop_hands_over_what_was_recorded_last(house: House) -> None:
    async with house.peer("a") as a, house.peer("b") as b:
        await eventually(lambda: b._shared() is not None and a._shared() is not None)
        house.changed()
        for number in range(20):
            await request(b.facet(), number)
        await b.handed_over()
        assert (await a.facet().records({}))["total_count"] == 20


async def test_all_of_it_can_be_had_as_a_file(house: House) -> None:
    """F157."""
    async with house.peer("a") as history:
        for number in range(3):
            await request(history.facet(), number)
        exported = await history.facet().export({"format": "csv"})
        data = b"".join([chunk async for chunk in exported.chunks])
        assert exported.filename.endswith(".csv")
        assert len(data.splitlines()) == 4


async def test_what_is_older_than_the_setting_goes_by_itself_here_and_at_the_coordinator(house: House) -> None:
    days = [7]
    policy = Policy(days=lambda: days[0])
    async with house.peer("a", policy) as a, house.peer("b", policy) as b:
        await request(b.facet(), 1)
        await eventually(lambda: len(a._store.vector() if a._store else ()) == 1)
        ahead = 8 * 86_400_000
        b._now_ms = lambda: time.time_ns() // 1_000_000 + ahead
        b._jumps = Jumps()
        b._retention_at = 0.0
        b._wake.set()
        await eventually(lambda: [low for low, _ in (a._store.vector() if a._store else {}).values()] == [2])
        assert a._store is not None
        await a._store.settled()
        assert (await a.facet().records({}))["total_count"] == 0


def test_a_clock_that_was_set_is_noticed_and_a_machine_that_slept_is_not() -> None:
    jumps = Jumps()
    assert not jumps.seen(1_000_000, 0.0)
    assert not jumps.seen(1_060_500, 60.0)
    assert not jumps.seen(29_000_000, 28_000.0), "eight hours asleep: both clocks counted them"
    assert jumps.seen(30_000_000, 28_060.0)
    assert jumps.seen(30_060_000, 28_120.0)
    assert not jumps.seen(33_600_000, 28_060.0 + JUMPED_S)
    assert jumps.seen(20_000_000, 28_120.0 + JUMPED_S), "backwards too"


async def test_what_the_reference_recorded_is_taken_over(house: House) -> None:
    """C7."""
    row = {
        "id": "5d0c",
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
        "request_type": "chat",
        "model": "older",
        "client_ip": "10.0.0.1",
        "request_body": {"model": "older"},
        "response_body": None,
        "duration_ms": 5,
        "status": {"type": "error", "message": "no"},
    }
    (house.folder / "a").mkdir()
    (house.folder / "a" / "request_history.json").write_text(json.dumps([row]))
    async with house.peer("a") as history:
        await eventually(lambda: (house.folder / "a" / "request_history.json.imported").exists())
        assert [record["model"] for record in (await history.facet().records({}))["records"]] == ["older"]


async def test_nothing_is_kept_where_the_setting_says_so(house: House) -> None:
    async with house.peer("a", Policy(bodies=lambda: "off")) as history:
        await request(history.facet(), 1)
        await history._recorder.close()
        await eventually(lambda: history._query is not None)
        assert (await history.facet().records({}))["total_count"] == 0
