"""OpenAI's wire format, both ways, without HTTP. What is refused, and how, is in tests/web/test_bad_requests.py."""

from __future__ import annotations

import array
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.chat import Embeddings, Sampling, Usage
from inference.errors import InvalidRequest
from inference.openai.answer import AnswerHead, EventWriter, comment, embeddings_json, error_event, whole
from inference.openai.request import ENGINE_PARAMETERS, Ingress, chat_call, completion_call, embedding_call

INGRESS = Ingress(id="r1", now=1_700_000_000.5, utc_offset_s=3600)
USER = [{"role": "user", "content": "hi"}]
PARAMETERS = (
    "messages", "prompt", "input", "model", "temperature", "top_p", "top_k", "min_p", "max_tokens",
    "max_completion_tokens", "stop", "seed", "n", "user", "stream", "stream_options", "presence_penalty",
    "frequency_penalty", "repeat_penalty", "logit_bias", "tools", "tool_choice", "response_format", "logprobs",
    "top_logprobs", "modalities", "suffix", "echo", "best_of", "encoding_format", "dimensions", "ignore_eos",
)  # fmt: skip
NAMES = ("role", "content", "type", "text", "function", "name", "tool_calls", "id", "image_url", "url")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "function", "name", "tool_calls", "id", "image_url", "url"]
            ),
            inner,
            max_size=4,
        )
    ),
)


def test_a_plain_chat_gets_openais_defaults() -> None:
    call = chat_call({"model": "m", "messages": USER}, INGRESS)
    assert call.generation.sampling == Sampling()
    assert (call.generation.id, call.generation.now, call.generation.utc_offset_s) == ("r1", 1_700_000_000.5, 3600)
    assert (call.generation.max_tokens, call.stream, call.include_usage) == (None, False, False)


@given(st.dictionaries(st.sampled_from(PARAMETERS), ANYTHING, max_size=6))
def test_any_body_is_a_call_or_an_invalid_request(body: dict[str, Any]) -> None:
    """Nothing a caller sends raises anything else, which would be a 500."""
    for parse in (chat_call, embedding_call, lambda b, i: completion_call(b, i, 16)):
        for defaults in ({}, {"model": "m", "messages": USER, "prompt": "p", "input": "i"}):
            try:
                parse({**defaults, **body}, INGRESS)
            except InvalidRequest as error:
                assert error.code, error.message
                assert error.param, error.message


@pytest.mark.parametrize("name", ENGINE_PARAMETERS)
def test_parameters_of_the_engine_are_refused_by_name(name: str) -> None:
    for parse, body in ((chat_call, {"messages": USER}), (embedding_call, {"input": "x"})):
        parse({"model": "m", **body, name: None}, INGRESS)
        with pytest.raises(InvalidRequest) as refusal:
            parse({"model": "m", **body, name: 1}, INGRESS)
        assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", name)
        assert name in refusal.value.message


def test_the_wording_is_openais() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        chat_call({"model": "m", "messages": USER, "temperature": 2.1}, INGRESS)
    assert refusal.value.message == (
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 2.1 instead."
    )


@pytest.mark.parametrize("kind", ["chat", "generate"])
@given(texts=st.lists(st.text(), max_size=5), model=st.text(min_size=1), include_usage=st.booleans())
def test_a_stream_says_the_same_as_a_whole_answer(kind: Any, texts: list[str], model: str, include_usage: bool) -> None:
    head = AnswerHead(kind=kind, request_id='r"1', model=model, created=5)
    usage = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
    writer = EventWriter(head, include_usage=include_usage)
    data = writer.first() + b"".join(map(writer.text, texts)) + writer.finish("length")
    data += writer.usage(usage) if include_usage else b""
    assert data.isascii()
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    events = [json.loads(block.removeprefix("data: ")) for block in blocks]
    if include_usage:
        assert events.pop()["usage"] == whole(head, "", "stop", usage)["usage"]
    answer = whole(head, "".join(texts), "length", usage)
    choices = [event["choices"][0] for event in events]
    if kind == "chat":
        assert "".join(c["delta"].get("content", "") for c in choices) == answer["choices"][0]["message"]["content"]
    else:
        assert "".join(c["text"] for c in choices) == answer["choices"][0]["text"]
    assert choices[-1]["finish_reason"] == answer["choices"][0]["finish_reason"] == "length"
    assert {(e["id"], e["model"], e["created"]) for e in events} == {(answer["id"], model, 5)}


def test_vectors_are_written_in_order_and_in_both_encodings() -> None:
    made = Embeddings(vectors=(b"\x00\x00\x80?", b"\x00\x00\x00\xbf"), dim=1, prompt_tokens=3)
    floats = json.loads(embeddings_json(made, "m", "float"))
    assert [(d["index"], d["embedding"]) for d in floats["data"]] == [(0, [1.0]), (1, [-0.5])]
    assert floats["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert json.loads(embeddings_json(made, "m", "base64"))["data"][0]["embedding"] == "AACAPw=="


def test_embeddings_are_written_one_vector_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """`json.dumps` keeps the interpreter's lock, and the event loop waiting, until it is done."""
    lengths: list[int] = []
    dumps = json.dumps

    def dumped(value: object) -> str:
        lengths.append(len(dumps(value)))
        return dumps(value)

    monkeypatch.setattr("inference.openai.answer.json.dumps", dumped)
    made = Embeddings(vectors=(array.array("f", [0.25, -1.5]).tobytes(),) * 100, dim=2, prompt_tokens=9)
    body = json.loads(embeddings_json(made, "m", "float"))
    assert [item["embedding"] for item in body["data"]] == [[0.25, -1.5]] * 100
    assert [item["index"] for item in body["data"]] == list(range(100))
    assert max(lengths) < 100


def test_no_text_can_end_a_comment_or_an_event_early() -> None:
    assert comment("a\nb\r\nc") == b": a b  c\n\n"
    assert error_event(InvalidRequest("a\n\nb")).count(b"\n") == 2
