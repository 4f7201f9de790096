"""The peer's own routes for the command line on the same machine: what runs here, models in and out, stop."""

from __future__ import annotations

import dataclasses
from typing import Any

from aiohttp import web

from inference.errors import InvalidRequest
from inference.openai.fields import Fields, missing
from web.body import parsed_body
from web.services import ModelView, Services

# Linux allows paths of 4,096 bytes.
PATH_LENGTH_MAX = 4096
NAME_LENGTH_MAX = 512


class ControlRoutes:
    """Handlers of `/api/status`, `/api/ps`, `/api/models` and `/api/shutdown`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response(self._services.state.status())

    async def ps(self, request: web.Request) -> web.Response:
        return web.json_response(self._services.state.ps())

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response([model_json(view) for view in self._services.models.list()])

    async def import_model(self, request: web.Request) -> web.Response:
        path, name = await parsed_body(request, self._services.limits, _import_arguments)
        view = await self._services.models.import_file(path, name)
        return web.json_response(model_json(view), status=201)

    async def load_model(self, request: web.Request) -> web.Response:
        name = await parsed_body(request, self._services.limits, _model_argument)
        view = self._services.models.resolve(name)
        await self._services.models.load(view.id)
        return web.json_response({"model": view.id, "loaded": True})

    async def unload_model(self, request: web.Request) -> web.Response:
        name = await parsed_body(request, self._services.limits, _model_argument)
        view = self._services.models.resolve(name)
        was_loaded = await self._services.models.unload(view.id)
        return web.json_response({"model": view.id, "was_loaded": was_loaded})

    async def remove_model(self, request: web.Request) -> web.Response:
        view = self._services.models.resolve(request.match_info["id"])
        await self._services.models.remove(view.id)
        return web.json_response({"model": view.id, "removed": True})

    async def shutdown(self, request: web.Request) -> web.Response:
        self._services.stop()
        return web.json_response({"stopping": True}, status=202)


def model_json(view: ModelView) -> dict[str, Any]:
    """Everything known of a model."""
    return dataclasses.asdict(view)


def _import_arguments(body: dict[str, Any]) -> tuple[str, str | None]:
    fields = Fields(body)
    path = _required(fields, "path", PATH_LENGTH_MAX)
    return path, fields.string("name", NAME_LENGTH_MAX)


def _model_argument(body: dict[str, Any]) -> str:
    return _required(Fields(body), "model", NAME_LENGTH_MAX)


def _required(fields: Fields, name: str, length_max: int) -> str:
    value = fields.string(name, length_max)
    if value is None:
        raise missing(name)
    if not value:
        raise InvalidRequest(f"Invalid '{name}': it is empty.", param=name, code="invalid_value")
    return value
