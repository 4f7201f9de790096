"""Streams and whole answers over real sockets: their shape, their heartbeat, their end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from inference.errors import Overloaded, WorkerDied
from web.services import Access, Limits

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def _data(blocks: list[str]) -> list[Any]:
    return [json.loads(b.removeprefix("data: ")) for b in blocks if b.startswith("data: {")]


async def test_a_chat_is_answered_with_openais_object(surface: Any) -> None:
    """F178: /v1/chat/completions answers `chat.completion`."""
    status, body, headers = await surface.ask("POST", "/v1/chat/completions", CHAT, x_request_id="abc")
    assert status == 200
    assert body["id"] == "chatcmpl-abc"
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 3,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert (headers["x-request-id"], headers["x-llm-router-peer"], headers["x-llm-router-attempts"]) == (
        "abc",
        "attic",
        "2",
    )
