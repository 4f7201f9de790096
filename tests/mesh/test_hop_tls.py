"""The hop over the real peer port: mutual TLS, one peer's certificate and no other, nothing for strangers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from gossip.identity import Identity
from gossip.roster import Roster
from gossip.tls import Tls, stranger_context
from gossip.transport import MEMBER, PeerPort
from inference.errors import PeerGone
from mesh.hop import HopClient, Target
from tests.fixtures.holders import SHA, Holder, Mesh, answer, request
from web.hop import hop_routes
from web.services import Forwarder, HopFacet, Limits

OWN = Forwarder(peer="")
ATTIC, INGRESS, OTHER = Identity.generate(), Identity.generate(), Identity.generate()


def roster() -> Roster:
    found = Roster.found(ATTIC, "attic", time.time())
    for one, name in ((INGRESS, "ingress"), (OTHER, "other")):
        found = found.admit(ATTIC, one.certificate_der, name, "ask", "active", time.time())
    return found


@asynccontextmanager
async def port_of(holder: Holder, mine: Callable[[], Roster]) -> AsyncIterator[PeerPort]:
    tls = Tls(ATTIC)
    tls.update(mine())
    port = PeerPort(tls, roster=mine)
    facet = HopFacet(generate=holder.local.generate, embed=holder.local.embed, load=bytes)
    _, routes = hop_routes(facet, Limits(), lambda request: request[MEMBER])
    port.add(routes)
    await port.start(["127.0.0.1"], [0])
    try:
        yield port
    finally:
        await port.close()


async def alive(peer: str) -> bool:
    return True


async def test_answer_over_mutual_tls_names_the_peer_that_asked_and_nobody_else_gets_one() -> None:
    async with Mesh() as mesh:
        holder, mine = await mesh.holder("attic", "--rate 200 --tokens 20"), roster()
        tls = Tls(INGRESS)
        tls.update(mine)
        async with port_of(holder, lambda: mine) as port, HopClient(probe=alive) as hop:
            address = f"127.0.0.1:{port.port}"
            there = Target(
                peer=ATTIC.peer_id, name="attic", addresses=(address,), model_id="chat", sha256=SHA,
                ssl=tls.client_context(ATTIC.peer_id),
            )  # fmt: skip
            chunks = hop.generate(there, request(), OWN)
            text = (await anext(chunks)).text
            assert [job.asked_by for job in holder.local.active()] == [INGRESS.peer_id]
            assert text + "".join([c.text async for c in chunks]) == answer("hello you", 20)
            with pytest.raises(PeerGone):  # whoever answers there is not the peer that is wanted
                await anext(hop.generate(replace(there, ssl=tls.client_context(OTHER.peer_id)), request(), OWN))
            with pytest.raises(PeerGone):  # a stranger
                await anext(hop.generate(replace(there, ssl=stranger_context()), request(), OWN))
            unknown = Tls(Identity.generate())
            unknown.update(mine)
            with pytest.raises(PeerGone):  # a certificate that no member has
                stolen = replace(there, ssl=unknown.client_context(ATTIC.peer_id))
                await anext(hop.generate(stolen, request(), OWN))


async def test_revoked_peer_gets_nothing_even_over_a_connection_that_was_open() -> None:
    async with Mesh() as mesh:
        holder, mine = await mesh.holder("attic", "--tokens 5"), roster()
        tls = Tls(INGRESS)
        tls.update(mine)
        now = [mine]
        async with port_of(holder, lambda: now[0]) as port, HopClient(probe=alive) as hop:
            there = Target(
                peer=ATTIC.peer_id, name="attic", addresses=(f"127.0.0.1:{port.port}",), model_id="chat",
                ssl=tls.client_context(ATTIC.peer_id),
            )  # fmt: skip
            assert [c async for c in hop.generate(there, request(), OWN)][-1].finish_reason
            now[0] = mine.revoke(ATTIC, INGRESS.peer_id, time.time())
            with pytest.raises(PeerGone):
                await anext(hop.generate(there, request(), OWN))
