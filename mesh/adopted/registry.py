"""Registers servers that are no peers, hears how they are, looks after them, and tells every peer.

    register, settings, disconnect, enable, delete -> the admin map (signed, on every peer, through the coordinator)
    heartbeat, metrics, sweep of probes            -> Standing, in the watcher's memory -> the gossip fact `agents`

What the HTTP surface calls (bodies are JSON objects, answers JSON-ready; everything raises inference.errors):

    register(body, allow_loopback=)  -> (201 or 200, {agent_id, node_id, status, agent_token, ...})
    heartbeat(token, body)           POST /api/health
    metrics(who, body)               POST /api/agents/{id}/metrics
    agents()                         F164's rows
    settings(who, body)              -> the row after the change
    disconnect(who), enable(who), delete(who)
    points(who)                      the last reports

All of them run on the coordinator but one: a server on loopback is registered by the very peer that is asked
(`allow_loopback`), since no other can look at it; that row merges like any other.

`run` belongs to every peer: the coordinator sweeps what everybody can reach, each peer what only it can reach and what
failed a request of its own clients. Decisions are mesh.adopted.standing's and mesh.adopted.breakers'.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import random
import secrets
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from inference.errors import InferenceError
from inference.openai.fields import bad_value, missing
from mesh.adopted.address import Rules, is_loopback, parsed, peer_ports_of
from mesh.adopted.agent import AGENTS_MAX, Agent, AgentModel, agent_out, models_out
from mesh.adopted.agents import AdminMap, Agents
from mesh.adopted.bodies import Registration, Report, agent_id_in, registration_of, report_of, settings_of
from mesh.adopted.breakers import Breakers
from mesh.adopted.errors import BadToken, TokenOfAnother, TooManyAgents
from mesh.adopted.probe import Found, Prober
from mesh.adopted.standing import AGENTS, Sight, Standing, news_out

log = logging.getLogger(__name__)

TICK_S = 1.0
TELL_S = 2.0
"""A fact of all servers may have 25 kB, which every peer fetches: reports of several servers go together."""
REFRESH_S = 30.0
PROBES_AT_ONCE = 8
JITTER = 0.1
TOKEN_PREFIX = "agt_"  # noqa: S105 - how tokens begin
KEPT = frozenset({"registered_at", "custom_name", "tags", "notes", "is_cordoned"})
"""What a server that registers again does not change."""


class Registry:
    """`peer_addresses` are those that members listen on for each other, `own_ports` this peer's. `interval_s` is
    LLM_ROUTER_HEALTH_CHECK_INTERVAL and `timeout_s` LLM_ROUTER_NODE_TIMEOUT, as they count now: the mesh may give them.
    `tell` is gossip.agent.Agent.set_fact."""

    def __init__(
        self,
        *,
        me: str,
        admin: AdminMap,
        agents: Agents,
        breakers: Breakers,
        prober: Prober,
        tell: Callable[[str, bytes], None],
        clock: Callable[[], float],
        allow_no_gpu: bool = False,
        interval_s: Callable[[], float] = lambda: 30.0,
        timeout_s: Callable[[], float] = lambda: 60.0,
        peer_addresses: Callable[[], Iterable[str]] = tuple,
        own_ports: Callable[[], Collection[int]] = frozenset,
        now_s: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._me = me
        self._admin = admin
        self._agents = agents
        self._breakers = breakers
        self._prober = prober
        self._tell = tell
        self._clock = clock
        self._allow_no_gpu = allow_no_gpu
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._peer_addresses = peer_addresses
        self._own_ports = own_ports
        self._now_s = now_s
        self._rng = rng or random.Random()
        self._lock = asyncio.Lock()
        self._probing = asyncio.Semaphore(PROBES_AT_ONCE)
        self._due: dict[str, float] = {}
        self._is_news = self._has_told = False
        self._told_at = -TELL_S
        self._refreshed_at = clock()
        self._wake = asyncio.Event()
        agents.watch(self._changed)
        breakers.opened = self._wake.set

    # -- who is registered

    async def register(self, body: Mapping[str, Any], *, allow_loopback: bool = False) -> tuple[int, dict[str, Any]]:
        """A server is asked what it is, and taken in: 201, or 200 when its name and port were known; its token is new.

        `allow_loopback`: a person at the command line of this very machine. Raises InvalidRequest and AgentRefused.
        """
        wanted = registration_of(body, allow_no_gpu=self._allow_no_gpu, is_operator=allow_loopback)
        rules = Rules(
            allow_loopback=allow_loopback,
            peer_ports=peer_ports_of(self._peer_addresses()),
            own_ports=frozenset(self._own_ports()),
        )
        found = await self._prober.found(wanted.machine_name, wanted.origin, rules)
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        async with self._lock:
            known = self._known_as(wanted, found)
            if known is None and len(self._agents) >= AGENTS_MAX:
                raise TooManyAgents(f"{AGENTS_MAX} servers are registered already; delete one first.")
            agent = self._agent(wanted, found, known, token)
            fields = agent_out(agent)
            if known is not None:  # what people said of it stays, also what they say at this moment elsewhere
                fields = {name: value for name, value in fields.items() if name not in KEPT}
            await self._admin.put(agent.key, fields)
        self._take_in(agent)
        status = "registered" if known is None else "updated"
        log.info("server %s", status, extra={"agent": agent.id, "agent_name": agent.name, "models": len(agent.models)})
        return 201 if known is None else 200, {
            "agent_id": agent.id,
            "node_id": agent.id,
            "status": status,
            "agent_token": token,
            "runtime_port": agent.port,
            "models": [model.id for model in agent.models],
        }

    def agents(self) -> list[dict[str, Any]]:
        """F164-F165: the registered servers, by name, beside the peers (mesh.overview)."""
        return [self._row(agent) for agent in sorted(self._agents, key=lambda a: (a.machine_name.casefold(), a.id))]

    async def settings(self, who: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Changes what people call it; the row as it is then. Raises UnknownAgent, InvalidRequest."""
        agent = self._agents.found(who)
        settings = settings_of(body)
        if settings.changes:
            await self._admin.put(agent.key, settings.changes)
        return self._row(self._agents.found(agent.id))

    async def disconnect(self, who: str) -> None:
        """It gets no requests until it is enabled again. Raises UnknownAgent."""
        await self._admin.put(self._agents.found(who).key, {"is_cordoned": True})

    async def enable(self, who: str) -> None:
        """It gets requests again. Raises UnknownAgent."""
        agent = self._agents.found(who)
        await self._admin.put(agent.key, {"is_cordoned": False})
        self._look_soon(agent.id)

    async def delete(self, who: str) -> None:
        """It is registered no more, and its token is dead. Raises UnknownAgent."""
        agent = self._agents.found(who)
        await self._admin.end(agent.key, "deleted")
        log.info("server deleted", extra={"agent": agent.id, "agent_name": agent.name})

    # -- how they are

    async def heartbeat(self, token: str | None, body: Mapping[str, Any]) -> None:
        """The server says that it lives. Raises BadToken, TokenOfAnother, InvalidRequest."""
        agent = self._owner_of(token)
        report, told = report_of(body, is_complete=False), agent_id_in(body)
        if told is None:
            raise missing("agent_id")
        if told not in _names(agent):
            raise TokenOfAnother("This token belongs to another agent than the one in 'agent_id'.", param="agent_id")
        self._heard(agent, report)

    async def metrics(self, who: str, body: Mapping[str, Any]) -> None:
        """How loaded it is. Raises UnknownAgent, InvalidRequest."""
        agent = self._agents.found(who)
        told = agent_id_in(body)
        report = report_of(body, is_complete=True)
        if told is not None and told != who and told not in _names(agent):
            raise bad_value("agent_id", "it is not the agent of this address")
        self._heard(agent, report)

    def points(self, who: str) -> list[dict[str, Any]]:
        """Its last reports, the newest last; here is where its heartbeats come. Raises UnknownAgent."""
        standing = self._agents.own.get(self._agents.found(who).id)
        return [
            {
                "timestamp": _timestamp(point.at),
                "cpu_usage": point.report.cpu_percent,
                "memory_usage": point.report.memory_percent,
                "gpu_usage": point.report.gpu_percent,
                "active_requests": point.report.active_requests,
                "avg_response_time_ms": point.report.response_ms,
            }
            for point in (standing.points if standing is not None else ())
        ]

    # -- looking after them

    async def run(self) -> None:
        """Until cancelled: probes what is due, and tells what is new."""
        async with asyncio.TaskGroup() as probes:
            while True:
                self._wake.clear()
                for agent in self._due_now():
                    probes.create_task(self._probe(agent), name="probe of a registered server")
                self._tell_news()
                try:
                    async with asyncio.timeout(min(TICK_S, self._interval_s())):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    def _due_now(self) -> list[Agent]:
        now = self._clock()
        if now - self._refreshed_at >= REFRESH_S:
            self._refreshed_at = now
            self._agents.refresh()
        self._keep_watch()
        due = {agent_id for agent_id, at in self._due.items() if now >= at}
        for agent_id in due:
            self._due[agent_id] = float("inf")  # until that probe has ended
        due.update(self._breakers.due(now))
        return [agent for agent_id in sorted(due) if (agent := self._agents.get(agent_id)) is not None]

    def _keep_watch(self) -> None:
        """Who watches a server has a standing of it: at first what the watcher before said."""
        own, now = self._agents.own, self._clock()
        watched = {agent.id: agent for agent in self._agents if self._agents.is_watched_here(agent)}
        for agent_id in (own.keys() | self._due.keys()) - watched.keys():
            own.pop(agent_id, None)
            self._due.pop(agent_id, None)
            self._is_news = True
        for agent_id in watched.keys() - own.keys():
            own[agent_id] = self._standing(watched[agent_id])
            self._is_news = True
        for agent_id in watched.keys() - self._due.keys():
            self._due[agent_id] = now + self._interval_s() * self._rng.random()

    async def _probe(self, agent: Agent) -> None:
        is_reached, models, reason = True, agent.models, ""
        async with self._probing:
            if self._agents.is_reached_here(agent):
                try:
                    models = await self._prober.models(agent)
                except InferenceError as error:
                    is_reached, reason = False, error.message
                is_there = is_reached
            else:  # only its heartbeats are heard here, and what the peer beside it says
                is_reached, is_there = False, self._agents.is_online(agent)
        now = self._clock()
        self._breakers.probed(agent.id, is_there, now)
        if agent.id in self._due:
            self._due[agent.id] = now + self._interval_s() * (1 - JITTER + 2 * JITTER * self._rng.random())
        standing = self._agents.own.get(agent.id)
        if standing is None:
            return
        self._is_news = True
        if standing.probed(is_reached, now, self._timeout_s()) and self._agents.is_reached_here(agent):
            extra = {"agent": agent.id, "agent_name": agent.name, "reason": reason}
            log.log(logging.INFO if is_reached else logging.WARNING, "server is %s", _state(is_reached), extra=extra)
        if is_reached and models != agent.models:
            await self._has_models(agent, models)

    async def _has_models(self, agent: Agent, models: tuple[AgentModel, ...]) -> None:
        try:
            if self._agents.get(agent.id) is not None:
                await self._admin.put(agent.key, {"models": models_out(models)})
        except InferenceError as error:
            log.warning("the models of a server cannot be written", extra={"agent": agent.id, "reason": error.message})

    def _tell_news(self) -> None:
        """What this peer knows as a watcher, and once that it is none any more."""
        now, own = self._clock(), self._agents.own
        if self._is_news and now - self._told_at >= TELL_S and (own or self._has_told):
            self._is_news, self._told_at, self._has_told = False, now, bool(own)
            self._tell(AGENTS, news_out(own, now))

    # -- inside

    def _changed(self, agent_id: str) -> None:
        """The admin map says something new of it."""
        if self._agents.get(agent_id) is None:
            self._agents.own.pop(agent_id, None)
            self._due.pop(agent_id, None)
            self._breakers.forget(agent_id)
        self._is_news = True
        self._wake.set()

    def _take_in(self, agent: Agent) -> None:
        """It was asked a moment ago, and answered."""
        now = self._clock()
        self._breakers.forget(agent.id)
        if self._agents.is_watched_here(agent):
            standing = self._agents.own.setdefault(agent.id, Standing.registered(now))
            standing.probed(True, now, self._timeout_s())
            standing.heard_at = now
            self._due[agent.id] = now + self._interval_s()
        self._is_news = True
        self._wake.set()

    def _look_soon(self, agent_id: str) -> None:
        if agent_id in self._due:
            self._due[agent_id] = self._clock()
        self._wake.set()

    def _heard(self, agent: Agent, report: Report) -> None:
        now = self._clock()
        standing = self._agents.own.get(agent.id)
        if standing is None:
            standing = self._agents.own[agent.id] = self._standing(agent)
        if standing.heartbeat(report, now, self._now_s()):
            log.info("server is online", extra={"agent": agent.id, "agent_name": agent.name})
        self._is_news = True

    def _standing(self, agent: Agent) -> Standing:
        sight = self._agents.sight(agent)
        return Standing.registered(self._clock()) if sight is None else Standing.found(sight)

    def _owner_of(self, token: str | None) -> Agent:
        if not token:
            raise BadToken("The header X-Agent-Token is missing; registration answers with the token.")
        hashed = _hash(token)
        for agent in self._agents:
            if hmac.compare_digest(agent.token_hash.encode(), hashed.encode()):
                return agent
        raise BadToken("No agent has this token: it was replaced when the agent registered again, or it was deleted.")

    def _known_as(self, wanted: Registration, found: Found) -> Agent | None:
        """The same name and port; on loopback, of the same machine too."""
        via = self._via(found)
        same = (
            agent
            for agent in self._agents
            if (agent.machine_name, agent.runtime_port) == (wanted.machine_name, wanted.runtime_port)
            and (agent.via == via or not (agent.via and via))
        )
        return min(same, key=lambda agent: (agent.registered_at, agent.id), default=None)

    def _via(self, found: Found) -> str:
        address = parsed(found.address)
        return self._me if address is not None and is_loopback(address) else ""

    def _agent(self, wanted: Registration, found: Found, known: Agent | None, token: str) -> Agent:
        return Agent(
            id=str(uuid.uuid4()) if known is None else known.id,
            machine_name=wanted.machine_name,
            ip_address=wanted.ip_address,
            runtime_port=wanted.runtime_port,
            scheme=found.origin.scheme,
            host=found.origin.host,
            port=found.origin.port,
            address=found.address,
            registered_at=self._now_s() if known is None else known.registered_at,
            token_hash=_hash(token),
            via=self._via(found),
            runtime_version=wanted.runtime_version,
            gpu_available=wanted.gpu_available,
            gpu_devices=wanted.gpu_devices,
            gpu_count=wanted.gpu_count,
            gpu_model=wanted.gpu_model,
            models=found.models,
            custom_name=None if known is None else known.custom_name,
            tags=() if known is None else known.tags,
            notes=None if known is None else known.notes,
            is_cordoned=known is not None and known.is_cordoned,
        )

    def _row(self, agent: Agent) -> dict[str, Any]:
        sight = self._agents.sight(agent)
        is_online = self._agents.is_online(agent) and not agent.is_cordoned
        now, wall = self._clock(), self._now_s()
        report = sight.report if sight is not None else None
        return {
            "id": agent.id,
            "agent_id": agent.id,
            "node_id": agent.id,
            "machine_name": agent.machine_name,
            "ip_address": agent.ip_address,
            "runtime_version": agent.runtime_version,
            "runtime_port": agent.runtime_port,
            "status": _state(is_online),
            "state": "cordoned" if agent.is_cordoned else _state(is_online),
            "registered_at": _timestamp(agent.registered_at),
            "last_seen": _timestamp(_seen_at(sight, agent, now, wall)),
            "online_since": _timestamp(wall - (now - sight.online_since)) if sight is not None and is_online else None,
            "gpu_available": bool(agent.gpu_available),
            "gpu_devices": [
                {"model": device.model, "count": device.count, "memory": device.memory} for device in agent.gpu_devices
            ],
            "gpu_count": agent.gpu_count,
            "gpu_model": agent.gpu_model,
            "loaded_models": [model.id for model in agent.models],
            "custom_name": agent.custom_name,
            "tags": list(agent.tags),
            "notes": agent.notes,
            "is_external": True,
            "is_cordoned": agent.is_cordoned,
            "active_requests": (report.active_requests if report is not None else None) or 0,
            "queued": 0,
            "cpu_usage": report.cpu_percent if report is not None else None,
            "memory_usage": report.memory_percent if report is not None else None,
            "avg_response_time_ms": report.response_ms if report is not None else None,
        }


def _seen_at(sight: Sight | None, agent: Agent, now: float, wall: float) -> float:
    return agent.registered_at if sight is None else wall - (now - sight.seen_at)


def _names(agent: Agent) -> tuple[str | None, ...]:
    return (agent.id, agent.machine_name, agent.custom_name)


def _state(is_online: bool) -> str:
    return "online" if is_online else "offline"


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(0.0, seconds)))
