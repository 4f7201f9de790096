"""What is neither inference nor administration: is it alive, what does it count, where is the dashboard."""

from __future__ import annotations

from typing import Literal, TypedDict

from aiohttp import web

from web import assets
from web.route import Answer, Operation
from web.services import Services


class PageRoutes:
    """Handlers of `/`, `/dashboard`, `/health`, `/ready`, `/metrics` and `/.well-known/llm-router`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def health(self, request: web.Request) -> web.Response:
        """200 as long as the event loop turns."""
        return web.json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        """200 when listener and store are open, else 503."""
        if self._services.state.ready():
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "starting"}, status=503, headers={"Retry-After": "1"})

    async def metrics(self, request: web.Request) -> web.Response:
        """Everything local, as Prometheus text."""
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._services.state.metrics(), headers=headers)

    async def well_known(self, request: web.Request) -> web.Response:
        """What another peer asks first, and nothing else: version, short mesh id, peer port."""
        mesh = self._services.mesh
        alone = {"version": self._services.state.version, "mesh": None, "peer_port": None}
        return web.json_response(alone if mesh is None else mesh.well_known())

    async def root(self, request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/dashboard"})

    async def dashboard(self, request: web.Request) -> web.Response:
        """The page; what it shows, its scripts ask for."""
        return assets.answer(request, assets.PAGE)


class Health(TypedDict):
    """The event loop turns."""

    status: Literal["ok"]


class Ready(TypedDict):
    """Whether listener and store are open."""

    status: Literal["ready", "starting"]


class WellKnown(TypedDict):
    """What a peer asks an address before it knocks at the peer port."""

    version: str
    mesh: str | None
    peer_port: int | None


HEALTH = Operation(summary="Is it alive", tag="about", answers={200: Answer(shape=Health)})
READY = Operation(summary="Can it be asked", tag="about", answers={200: Answer(shape=Ready), 503: Answer(shape=Ready)})
METRICS = Operation(
    summary="Counters of this peer for Prometheus", tag="about", answers={200: Answer(media=("text/plain",))}
)
WELL_KNOWN = Operation(summary="Which mesh this is", tag="about", answers={200: Answer(shape=WellKnown)})
ROOT = Operation(summary="To the dashboard", tag="about", answers={302: Answer(headers=("Location",))})
DASHBOARD = assets.PAGE_OPERATION
