"""Registered servers as holders of models, beside the peers: what mesh.neighbours lists and mesh.dispatch asks.

    agents, how they are, what failed here -> AdoptedServers -> holdings, candidates (mesh.router), ServerTarget
    a server only one peer can reach       -> that peer is asked, by a hop for the model `agent:<id>/<name>`

A server is trusted with prompts as the admin who registered it wanted, and with nothing else: it tells no token ids and
no hash of its file, so nobody goes on with its answers and it goes on with nobody's.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from inference.chat import Chunk, EmbeddingRequest, Embeddings, Generation
from inference.errors import EngineError, ModelUnavailable
from inference.providers.openai_compatible import OpenAICompatible
from mesh.adopted.agent import Agent, AgentModel
from mesh.adopted.agents import Agents
from mesh.adopted.bodies import Report
from mesh.adopted.breakers import Breakers
from mesh.facts import GpuFact, Inventory, ModelFact
from mesh.inflight import InFlight
from mesh.local import LocalHolder
from mesh.router import Candidate
from web.services import Forwarder

LODGED = "agent:"
"""How a hop calls a model of a server that only the asked peer can reach. No model's own name begins so."""
SLOTS = 4
"""Nobody says how many requests a server takes at once: as many as llama-server and Ollama do by default."""
FORWARD_S = 0.003
ALL_MODELS = ""
"""What is in flight there is counted for the whole server, as its own reports do."""
NEWEST_SHARE = 0.2
LATEST = ":latest"
"""Ollama's tag for a model that was asked for without one."""


@dataclass(frozen=True, slots=True)
class AdoptedHolder:
    """One server, and its models as facts of a peer. Models of one that is offline are known, and not usable."""

    agent: Agent
    inventory: Inventory


@dataclass(frozen=True, slots=True)
class Lodged:
    """A server that another peer has to be asked for, under that name of the model."""

    peer: str
    model_id: str


class ServerTarget:
    """How one server is asked for one model, from here."""

    def __init__(self, servers: AdoptedServers, agent: Agent, model: AgentModel) -> None:
        self._servers = servers
        self._agent = agent
        self._model = model

    @property
    def agent_id(self) -> str:
        return self._agent.id

    @property
    def model_id(self) -> str:
        return self._model.id

    def generate(self, generation: Generation) -> AsyncGenerator[Chunk, None]:
        """See inference.providers.openai_compatible."""
        return self._servers.generate(self._agent, replace(generation, model=self._model.name))

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See inference.providers.openai_compatible."""
        return await self._servers.client.embed(self._agent.server, replace(request, model=self._model.name))


class AdoptedServers:
    """Use `client` as `async with` around it. All methods belong to one loop."""

    def __init__(
        self, *, agents: Agents, breakers: Breakers, client: OpenAICompatible, clock: Callable[[], float]
    ) -> None:
        self.client = client
        self._agents = agents
        self._breakers = breakers
        self._clock = clock
        self._inventories: dict[str, tuple[Agent, bool, Inventory]] = {}
        self._took_s: dict[str, float] = {}  # a whole answer, as measured here
        agents.watch(self._changed)

    def __contains__(self, agent_id: str) -> bool:
        return self._agents.get(agent_id) is not None

    def holders(self) -> list[AdoptedHolder]:
        """Every server, those that are offline too."""
        return [AdoptedHolder(agent, self._inventory(agent)) for agent in self._agents]

    def candidate(self, agent: Agent, in_flight: InFlight, now: float) -> Candidate:
        """As the router ranks it: what it reported, if that is fresh, and what this peer sees."""
        sight = self._agents.sight(agent)
        report = sight.fresh(now) if sight is not None else None
        reported_at = sight.reported_at if sight is not None and report is not None else None
        said = report or Report()
        active = said.active_requests or 0
        unreported = in_flight.unreported(agent.id, ALL_MODELS, -math.inf if reported_at is None else reported_at)
        own = max(-active, unreported)
        took_s = self._took_s.get(agent.id)
        return Candidate(
            peer=agent.id,
            name=agent.name,
            is_adopted=True,
            is_suspect=self._breakers.is_open(agent.id),
            is_penalized=self._breakers.is_penalized(agent.id, now),
            slots=SLOTS,
            active=active,
            in_flight=own,
            forward_s=FORWARD_S,
            gpu=agent.gpu_available is not False,
            cpu_percent=said.cpu_percent,
            memory_percent=said.memory_percent,
            gpu_percent=said.gpu_percent,
            active_requests=active + own,
            metrics_age_s=None if reported_at is None else now - reported_at,
            response_ms=said.response_ms or (None if took_s is None else 1000 * took_s),
        )

    def target(self, agent_id: str, model_id: str) -> ServerTarget | Lodged | None:
        """How it is reached now; None when it is not to be asked."""
        agent = self._agents.get(agent_id)
        model = None if agent is None else _model_of(agent, model_id)
        if agent is None or model is None or agent.is_cordoned or not self._agents.is_online(agent):
            return None
        if not self._agents.is_reached_here(agent):
            return Lodged(agent.via, f"{LODGED}{agent.id}/{model.id}")
        return ServerTarget(self, agent, model)

    def lodged(self, name: str) -> ServerTarget | None:
        """What another peer asks for with a name that `Lodged` gave it; None for a name of another kind.

        Raises ModelUnavailable when that server is not to be asked any more.
        """
        if not name.startswith(LODGED):
            return None
        agent_id, _, model_id = name.removeprefix(LODGED).partition("/")
        target = self.target(agent_id, model_id)
        if isinstance(target, ServerTarget):
            return target
        raise ModelUnavailable("That server is not to be asked here any more.", retry_after_s=5)

    def failed(self, agent_id: str, how: str) -> None:
        """A request failed there: "gone" (avoided until a probe succeeds) or "wedged" (ranked last for a while)."""
        if agent_id in self:
            self._breakers.failed(agent_id, how, self._clock())

    def proved(self, agent_id: str) -> None:
        """It made text."""
        self._breakers.proved(agent_id)

    async def generate(self, agent: Agent, generation: Generation) -> AsyncGenerator[Chunk, None]:
        """The chunks of one answer, which is timed."""
        began = self._clock()
        async with aclosing(self.client.generate(agent.server, generation)) as chunks:
            async for chunk in chunks:
                if chunk.finish_reason is not None:
                    self._took(agent.id, self._clock() - began)
                yield chunk

    # -- inside

    def _inventory(self, agent: Agent) -> Inventory:
        is_online = self._agents.is_online(agent)
        known = self._inventories.get(agent.id)
        if known is None or known[0] is not agent or known[1] is not is_online:
            known = self._inventories[agent.id] = (agent, is_online, _inventory(agent, is_online=is_online))
        return known[2]

    def _took(self, agent_id: str, seconds: float) -> None:
        before = self._took_s.get(agent_id, seconds)
        self._took_s[agent_id] = before + (seconds - before) * NEWEST_SHARE

    def _changed(self, agent_id: str) -> None:
        if agent_id not in self:
            self._inventories.pop(agent_id, None)
            self._took_s.pop(agent_id, None)


class HopService:
    """What web.services.HopFacet asks for: this machine's models, and the servers that only it can reach."""

    def __init__(self, local: LocalHolder, servers: AdoptedServers) -> None:
        self._local = local
        self._servers = servers

    async def generate(self, generation: Generation, forwarder: Forwarder) -> AsyncGenerator[Chunk, None]:
        """As mesh.local does."""
        target = self._servers.lodged(generation.model)
        chunks = self._local.generate(generation, forwarder) if target is None else target.generate(generation)
        async with aclosing(chunks):
            try:
                async for chunk in chunks:
                    yield chunk
            except EngineError:
                if target is not None:
                    self._servers.failed(target.agent_id, "gone")
                raise

    async def embed(self, request: EmbeddingRequest, forwarder: Forwarder) -> Embeddings:
        """As mesh.local does."""
        target = self._servers.lodged(request.model)
        if target is None:
            return await self._local.embed(request, forwarder)
        try:
            return await target.embed(request)
        except EngineError:
            self._servers.failed(target.agent_id, "gone")
            raise


def _model_of(agent: Agent, model_id: str) -> AgentModel | None:
    return next((model for model in agent.models if model.id == model_id), None)


def _inventory(agent: Agent, *, is_online: bool) -> Inventory:
    devices = [
        GpuFact(name=d.model, memory_bytes=d.memory or 0, is_usable=True, capability=0.0) for d in agent.gpu_devices
    ]
    return Inventory(
        client_port=agent.port,
        engine=None,
        cores=0,
        memory_bytes=0,
        budget_bytes=0,
        max_loaded=len(agent.models),
        gpus=tuple(devices),
        models=tuple(
            ModelFact(
                id=model.id,
                sha256="",
                size_bytes=0,
                context=0,
                is_embedding=model.is_embedding,
                quantization=None,
                created=int(agent.registered_at),
                slots=SLOTS,
                load_s=0.0,
                is_usable=is_online and not agent.is_cordoned,
                aliases=(model.id.removesuffix(LATEST),) if model.id.endswith(LATEST) else (),
            )
            for model in agent.models
        ),
    )
