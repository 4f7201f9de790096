"""Looks whether a server of OpenAI's API is where somebody says, and what models it has.

    name -> its addresses, once -> the one that is asked from now on (mesh.adopted.address)
    each of two ports: is it a peer? -> GET /v1/models

A name is resolved in a thread of its own: a resolver that hangs holds up neither the loop's threads nor the end of the
program.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from inference.errors import InferenceError, PeerGone, PeerSilent
from inference.providers.openai_compatible import OpenAICompatible, Server
from mesh.adopted.address import Origin, Rules, joined, parsed, pinned
from mesh.adopted.agent import Agent, AgentModel, models_of
from mesh.adopted.errors import AddressRefused, IsPeer, NotReached

RESOLVE_S = 5.0
ADDRESSES_MAX = 32

Resolve = Callable[[str], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A server that answered: where, and with which models."""

    origin: Origin
    address: str
    models: tuple[AgentModel, ...]


async def resolved(host: str) -> Sequence[str]:
    """Every address that `host` has now; none when it has none, or when that is not known within RESOLVE_S."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Sequence[str]] = loop.create_future()

    def tell(addresses: Sequence[str]) -> None:
        if not answer.done():
            answer.set_result(addresses)

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            found = []
        addresses = list(dict.fromkeys(str(row[4][0]) for row in found))[:ADDRESSES_MAX]
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, addresses)

    threading.Thread(target=ask, name="resolving a server's name", daemon=True).start()
    try:
        async with asyncio.timeout(RESOLVE_S):
            return await answer
    except TimeoutError:
        return ()


class Prober:
    """Asks one small question at a time."""

    def __init__(self, client: OpenAICompatible, resolve: Resolve = resolved) -> None:
        self._client = client
        self._resolve = resolve

    async def found(self, name: str, origin: Origin, rules: Rules) -> Found:
        """The server that is registered as `name`, at the port it told or at the next.

        Raises AddressRefused, IsPeer or NotReached.
        """
        is_address = parsed(origin.host) is not None
        addresses = [origin.host] if is_address else await self._resolve(origin.host)
        reasons: list[str] = []
        for port in (origin.port, origin.port + 1):
            there = replace(origin, port=port)
            try:
                if port > 65_535:
                    break
                return await self._at(name, there, pinned(there, addresses, rules))
            except AddressRefused:
                if port == origin.port:
                    raise
            except (PeerGone, PeerSilent) as error:
                reasons.append(f"{joined(origin.host, port)}: {error.message}")
            except IsPeer:
                raise
            except InferenceError as error:  # it answered, with an error
                reasons.append(f"{joined(origin.host, port)}: {error.message}")
        raise NotReached(
            "No server of OpenAI's API answers there; is it started, and does it listen on the network "
            f"(for Ollama OLLAMA_HOST=0.0.0.0)? {'; '.join(reasons)}",
            param="ip_address",
        )

    async def models(self, agent: Agent) -> tuple[AgentModel, ...]:
        """What it serves now. Raises an error when it does not answer as it should."""
        return models_of(await self._client.models(agent.server))

    async def _at(self, name: str, origin: Origin, address: str) -> Found:
        server = Server(id="", name=name, scheme=origin.scheme, host=origin.host, port=origin.port, address=address)
        if await self._client.is_peer(server):
            raise IsPeer(
                f"A peer answers at {joined(origin.host, origin.port)}. Peers join the mesh "
                "(`llm-router join ADDRESS` on one of them); only other servers are registered.",
                param="ip_address",
            )
        return Found(origin=origin, address=address, models=models_of(await self._client.models(server)))
