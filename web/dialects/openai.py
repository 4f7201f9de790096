"""OpenAI's API over HTTP: parse the body, ask the services, write the answer whole or as a stream."""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal, cast

from aiohttp import web

from inference.chat import Chunk, FinishReason, Generation, Started, Usage
from inference.errors import InferenceError, InvalidRequest, ModelNotFound, StreamInterrupted
from inference.openai.answer import (
    DONE,
    AnswerHead,
    EventWriter,
    comment,
    embeddings_json,
    error_event,
    whole,
)
from inference.openai.request import (
    COMPLETION_TOKENS_DEFAULT,
    GenerationCall,
    Ingress,
    chat_call,
    completion_call,
    embedding_call,
)
from web.auth import Spent, check_model, estimated_input, estimated_tokens, may_use, spending
from web.body import parsed_body
from web.border import CALLER, REQUEST_ID
from web.errors import HttpRefusal
from web.inflight import IN_FLIGHT
from web.recording import Recorded, recorded
from web.services import Asked, Caller, ModelView, Services
from web.sse import EventStream

_log = logging.getLogger(__name__)

# Whose keys the clouds want; `ahtnorpic` is a spelling that scripts of old use.
CLOUD_KEYS = {
    "openai": "OPENAI_API_KEY",
    "google": "GOOGLE_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "ahtnorpic": "ANTHROPIC_API_KEY",
}
# Freeing a slot takes one step of the engine.
CLOSE_S_MAX = 5.0


class OpenAIRoutes:
    """Handlers of `/v1/*`, `/api/chat` and `/api/generate`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generated(request, chat_call)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generated(
            request, lambda body, ingress: completion_call(body, ingress, COMPLETION_TOKENS_DEFAULT)
        )

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Like completions; without `max_tokens` the answer goes on until the model ends it."""
        return await self._generated(request, lambda body, ingress: completion_call(body, ingress, None))

    async def embeddings(self, request: web.Request) -> web.Response:
        ingress = _ingress(request)
        asked_for, call = await parsed_body(
            request, self._services.limits, lambda body: (body, embedding_call(body, ingress))
        )
        asked = _asked(request, "embeddings", call.request.model, asked_for, is_stream=False)
        async with (
            recorded(request, self._services.history, asked) as record,
            spending(request, self._services, estimated_input(call.request)) as spent,
        ):
            view = self._resolved(request, call.request.model, ("embedding",))
            answer = await self._services.chat.embed(replace(call.request, model=view.id), request[CALLER])
            body = await asyncio.to_thread(embeddings_json, answer, call.request.model, call.encoding)
            peer = answer.peer or self._services.state.name
            spent.tokens = answer.prompt_tokens
            record.started(
                Started(
                    prompt_tokens=answer.prompt_tokens,
                    cached_tokens=0,
                    peer=peer,
                    peer_id=answer.peer_id,
                    attempts=answer.attempts,
                )
            )
            await record.succeeded(None, Usage(prompt_tokens=answer.prompt_tokens, completion_tokens=0))
        headers = _who(peer, answer.attempts)
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def models(self, request: web.Request) -> web.Response:
        views = [view for view in self._services.models.list() if may_use(request[CALLER], view.id)]
        data = [model_object(view) for view in views]
        return web.json_response({"object": "list", "data": data})

    async def model(self, request: web.Request) -> web.Response:
        return web.json_response(model_object(self._resolved(request, request.match_info["id"])))

    async def _generated(
        self, request: web.Request, parse: Callable[[dict[str, Any], Ingress], GenerationCall]
    ) -> web.StreamResponse:
        ingress = _ingress(request)
        body, call = await parsed_body(request, self._services.limits, lambda body: (body, parse(body, ingress)))
        wanted = call.generation
        asked = _asked(request, wanted.kind, wanted.model, body, is_stream=call.stream)
        del body  # history has it now, and may be done with it long before the answer is made
        async with (
            recorded(request, self._services.history, asked) as record,
            spending(request, self._services, estimated_tokens(wanted)) as spent,
        ):
            view = self._resolved(request, wanted.model, ("chat",) if wanted.kind == "chat" else ("completion", "chat"))
            head = AnswerHead(kind=wanted.kind, request_id=ingress.id, model=wanted.model, created=int(ingress.now))
            generation = replace(wanted, model=view.id)
            progress = _Progress(record, spent)
            if call.stream:
                return await self._streamed(request, progress, generation, head, include_usage=call.include_usage)
            return await self._whole(request, progress, generation, head)

    async def _whole(
        self, request: web.Request, progress: _Progress, generation: Generation, head: AnswerHead
    ) -> web.Response:
        async with self._chunks(generation, request[CALLER]) as chunks:
            async for chunk in chunks:
                progress.add(chunk)
        body = whole(head, progress.text, progress.check_finished(), progress.usage)
        await progress.record.succeeded(body, progress.usage)
        return web.json_response(body, headers=_origin_headers(progress.started))

    async def _streamed(
        self,
        request: web.Request,
        progress: _Progress,
        generation: Generation,
        head: AnswerHead,
        *,
        include_usage: bool,
    ) -> web.StreamResponse:
        """An error before the first byte is raised, and becomes a status; after it, an event without [DONE]."""
        async with EventStream(request, self._services.limits.heartbeat_s) as stream:
            try:
                await self._fill(stream, progress, generation, head, request[CALLER], include_usage=include_usage)
            except ConnectionError:
                raise
            except asyncio.CancelledError:
                in_flight = request.app[IN_FLIGHT]
                why = in_flight.why_stopped(request)
                if not stream.is_open or not in_flight.was_stopped(request):
                    raise
                stopping = StreamInterrupted("This peer is stopping." if why is None else why.message)
                await progress.record.failed(stopping, stream.response.status)
                await stream.send(error_event(stopping))
            except Exception as error:
                await stream.hush()
                if not stream.is_open:
                    raise
                told = _as_event(error, head.request_id)
                await progress.record.failed(told, stream.response.status)
                await stream.send(error_event(told))
        return stream.response

    async def _fill(
        self,
        stream: EventStream,
        progress: _Progress,
        generation: Generation,
        head: AnswerHead,
        caller: Caller,
        *,
        include_usage: bool,
    ) -> None:
        """Writes the whole stream, [DONE] included; each step of the engine is one write."""
        writer = EventWriter(head, include_usage=include_usage)
        async with self._chunks(generation, caller) as chunks:
            async for chunk in chunks:
                progress.add(chunk)
                data = writer.text(chunk.text) if chunk.text else b""
                if chunk.started is not None and not progress.is_continued:
                    await stream.open(_origin_headers(chunk.started))
                    data = writer.first() + data
                if chunk.finish_reason is not None:
                    data += writer.finish(chunk.finish_reason)
                if data:
                    await stream.send(data)
        body = whole(head, progress.text, progress.check_finished(), progress.usage)
        await progress.record.succeeded(body, progress.usage)
        usage = writer.usage(progress.usage) if include_usage else b""
        await stream.send(usage + comment(_served_by(progress.started)) + DONE)

    @asynccontextmanager
    async def _chunks(self, generation: Generation, caller: Caller) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The chunks of one answer; leaving early, however it happens, frees its slot."""
        chunks = self._services.chat.generate(generation, caller)
        try:
            yield chunks
        finally:
            async with asyncio.timeout(CLOSE_S_MAX):
                await cast(AsyncGenerator[Chunk, None], chunks).aclose()

    def _resolved(self, request: web.Request, name: str, capabilities: tuple[str, ...] = ()) -> ModelView:
        """The model called `name`. Raises when there is none, when it has none of `capabilities`, and when the caller's
        key is not for it."""
        _refuse_clouds(name)
        try:
            view = self._services.models.resolve(name)
        except ModelNotFound as error:
            error.param = error.param or "model"
            raise
        check_model(request[CALLER], view.id)
        if capabilities and not set(capabilities) & set(view.capabilities):
            raise InvalidRequest(
                f"The model '{view.id}' cannot do that: it is made for {', '.join(view.capabilities)}.",
                param="model",
                code="unsupported_model",
            )
        return view


class _Progress:
    """What has been seen of one answer."""

    def __init__(self, record: Recorded, spent: Spent) -> None:
        self.record = record
        self._spent = spent
        self._pieces: list[str] = []
        self.started = Started(prompt_tokens=0, cached_tokens=0)
        self.finish_reason: FinishReason | None = None
        self.is_continued = False  # it has started before: another peer goes on with it
        self._completion_tokens = 0
        self._told_usage: Usage | None = None  # by a server that is no peer, whose tokens cannot be counted
        self._has_started = False

    def add(self, chunk: Chunk) -> None:
        self.record.saw(chunk)
        self._pieces.append(chunk.text)
        self._completion_tokens += len(chunk.tokens)
        self._told_usage = chunk.usage or self._told_usage
        if chunk.started is not None:
            self.is_continued, self._has_started = self._has_started, True
            self.started = chunk.started
        self.finish_reason = chunk.finish_reason or self.finish_reason
        used = self._told_usage
        prompt, answer = self.started.prompt_tokens, self._completion_tokens
        self._spent.tokens = prompt + answer if used is None else used.prompt_tokens + used.completion_tokens

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def check_finished(self) -> FinishReason:
        """Why the answer ended. Raises StreamInterrupted when it did not."""
        if self.finish_reason is None:
            raise StreamInterrupted("The answer ended before it was complete.")
        return self.finish_reason

    @property
    def usage(self) -> Usage:
        return self._told_usage or Usage(
            prompt_tokens=self.started.prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self.started.cached_tokens,
        )


def model_object(view: ModelView) -> dict[str, Any]:
    """A model as OpenAI lists it, with what a client may want to know besides."""
    return {
        "id": view.id,
        "object": "model",
        "created": view.created,
        "owned_by": "llm-router",
        "ready": view.ready,
        "loaded": view.loaded,
        "size_bytes": view.size_bytes,
        "context_length": view.context,
        "quantization": view.quantization,
        "capabilities": list(view.capabilities),
        "aliases": list(view.aliases),
        "holders": list(view.holders),
    }


def _ingress(request: web.Request) -> Ingress:
    now = time.time()
    return Ingress(id=request[REQUEST_ID], now=now, utc_offset_s=time.localtime(now).tm_gmtoff)


def _asked(
    request: web.Request,
    kind: Literal["chat", "generate", "embeddings"],
    model: str,
    body: dict[str, Any],
    *,
    is_stream: bool,
) -> Asked:
    """The request as history has it. `store: false` is OpenAI's way to say that nothing of it is to be kept."""
    return Asked(
        request_id=request[REQUEST_ID],
        kind=kind,
        model=model,
        body=body,
        is_stream=is_stream,
        caller=request[CALLER],
        is_kept=body.get("store") is not False,
    )


def _refuse_clouds(name: str) -> None:
    """Raises for `openai:gpt-4o` and the like: clouds come in a later version. `openai:` alone is no model."""
    provider, _, model = name.partition(":")
    variable = CLOUD_KEYS.get(provider)
    if variable is not None and model:
        raise HttpRefusal(
            401,
            f"The provider '{provider}' is not configured: {variable} is not set, and this version does not "
            "forward to clouds yet.",
            code="provider_not_configured",
            param="model",
        )


def _as_event(error: Exception, request_id: str) -> InferenceError:
    if isinstance(error, InferenceError):
        return error
    _log.error("stream failed", extra={"request": request_id}, exc_info=error)
    return StreamInterrupted(f"Something went wrong inside this peer (request id {request_id}).")


def _origin_headers(started: Started) -> dict[str, str]:
    """Who answers, at which try, and on request who else could have."""
    headers = _who(started.peer, started.attempts)
    if started.continued_on:
        headers["x-llm-router-continued-on"] = _fit_for_header(", ".join(started.continued_on))
    if started.candidates is not None:
        headers["x-llm-router-candidates"] = started.candidates
    return headers


def _who(peer: str, attempts: int) -> dict[str, str]:
    return {"x-llm-router-peer": _fit_for_header(peer), "x-llm-router-attempts": str(attempts)}


def _served_by(started: Started) -> str:
    """`served-by attic, continued-on tower`: the last thing a stream says."""
    return ", ".join((f"served-by {started.peer}", *(f"continued-on {peer}" for peer in started.continued_on)))


def _fit_for_header(name: str) -> str:
    """A name may hold any character, a header may not."""
    return urllib.parse.quote(name, safe=" !#$&'()*+,/:;=?@[]")
