"""The settings that a whole mesh shares, over HTTP. The coordinator answers (web.passing).

Which settings there are, and what they may be, is for who answers `AgentsFacet` to say: a JSON object of names and
plain values comes in here.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from aiohttp import web

from inference.openai.fields import bad_value
from web.body import parsed_body
from web.border import CALLER
from web.errors import HttpRefusal
from web.mesh import Named
from web.route import Answer, Operation
from web.services import AgentsFacet, Services
from web.shapes import Text, checked

SETTINGS_MAX = 64

Value = Annotated[str, Text(4096)] | float | bool | None
"""null takes a setting back to its default."""


class SettingsRoutes:
    """Handlers of `/api/settings`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def settings(self, request: web.Request) -> web.Response:
        return web.json_response(self._facet.mesh_settings())

    async def change(self, request: web.Request) -> web.Response:
        facet = self._facet
        body = await parsed_body(request, self._services.limits, _changes)
        return web.json_response(await facet.change_mesh_settings(body, request[CALLER]))

    @property
    def _facet(self) -> AgentsFacet:
        """Raises HttpRefusal 503 without one."""
        if self._services.agents is None:
            raise HttpRefusal(
                503, "This peer has no settings of a mesh.", code="settings_unavailable", error_type="server_error"
            )
        return self._services.agents


def _changes(body: dict[str, Any]) -> dict[str, Any]:
    if len(body) > SETTINGS_MAX:
        raise bad_value("body", f"it has {len(body)} settings, the limit is {SETTINGS_MAX}")
    checked(dict[str, Value], body)
    return body


class Setting(TypedDict):
    """`value` counts on the peer that answers, because `origin` says so: this machine, mesh, or default."""

    value: Any
    origin: str
    mesh: str | None
    default: Any
    unit: str | None
    allowed: str
    help: str


class MeshSettings(TypedDict):
    """Each setting that a mesh can give its peers, and the peer that should coordinate, if somebody said so."""

    settings: dict[str, Setting]
    coordinator: Named | None


READ = Operation(summary="Settings of the mesh", tag="mesh", answers={200: Answer(shape=MeshSettings)})
CHANGE = Operation(
    summary="Change settings of the mesh",
    tag="mesh",
    body=dict[str, Value],
    answers={200: Answer(shape=MeshSettings)},
    errors=(404, 409),
)
