"""The peer's own routes for the command line on the same machine: what runs here, models in and out, stop."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NotRequired, TypedDict

from aiohttp import web

from inference.errors import InvalidRequest
from web.body import parsed_body
from web.border import CALLER
from web.route import Answer, Operation
from web.services import ModelView, Services
from web.shapes import Text, checked

# Linux allows paths of 4,096 bytes.
PATH_LENGTH_MAX = 4096
NAME_LENGTH_MAX = 512


class ControlRoutes:
    """Handlers of `/api/status`, `/api/ps`, `/api/models` and `/api/shutdown`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def status(self, request: web.Request) -> web.Response:
        """With the link to the set-up, while there is no administrator, for the command line alone: it is a secret."""
        state = self._services.state
        answer = state.status()
        if request[CALLER].key_id == "control" and (link := state.setup_link()) is not None:
            answer["setup"] = link
        return web.json_response(answer)

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
    asked = checked(Import, body)
    return _filled("path", asked["path"]), asked.get("name")


def _model_argument(body: dict[str, Any]) -> str:
    return _filled("model", checked(ModelName, body)["model"])


def _filled(name: str, value: str) -> str:
    if not value:
        raise InvalidRequest(f"Invalid '{name}': it is empty.", param=name, code="invalid_value")
    return value


# -- what is asked and answered


class Import(TypedDict):
    """A GGUF file on this machine, and what it is called here (None: as the file is)."""

    path: Annotated[str, Text(PATH_LENGTH_MAX)]
    name: NotRequired[Annotated[str, Text(NAME_LENGTH_MAX)] | None]


class ModelName(TypedDict):
    """An id, an alias, or the stem of a file's name."""

    model: Annotated[str, Text(NAME_LENGTH_MAX)]


class Loaded(TypedDict):
    """It is in memory."""

    model: str
    loaded: bool


class Unloaded(TypedDict):
    """It is not in memory any more."""

    model: str
    was_loaded: bool


class Removed(TypedDict):
    """Its file is gone from this machine."""

    model: str
    removed: bool


class Stopping(TypedDict):
    """The peer ends when its running requests have."""

    stopping: bool


STATUS = Operation(summary="This peer", tag="peer", answers={200: Answer(shape=dict[str, Any])})
PS = Operation(summary="Models in memory and running requests", tag="peer", answers={200: Answer(shape=dict[str, Any])})
MODELS = Operation(summary="Models that can be used", tag="models", answers={200: Answer(shape=list[ModelView])})
IMPORT = Operation(
    summary="Take a file of this machine as a model",
    tag="models",
    body=Import,
    answers={201: Answer(shape=ModelView)},
    errors=(404, 409, 507),
)
LOAD = Operation(
    summary="Load a model here", tag="models", body=ModelName, answers={200: Answer(shape=Loaded)}, errors=(404, 409)
)
UNLOAD = Operation(
    summary="Unload a model here",
    tag="models",
    body=ModelName,
    answers={200: Answer(shape=Unloaded)},
    errors=(404, 409),
)
REMOVE = Operation(
    summary="Remove a model from this machine",
    tag="models",
    answers={200: Answer(shape=Removed)},
    errors=(404, 409),
)
SHUTDOWN = Operation(summary="End this peer", tag="peer", answers={202: Answer(shape=Stopping)})
