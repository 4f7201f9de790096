"""The asking side of the wire format: what goes out arrives as it was, and nonsense is never more than an error."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.chat import (
    ChatPrompt,
    Chunk,
    EmbeddingRequest,
    Embeddings,
    FinishReason,
    Generation,
    Message,
    Produced,
    Role,
    Sampling,
    Started,
    TextPart,
    TextPrompt,
    TokenPrompt,
    ToolCall,
)
from inference.errors import (
    ContextLengthExceeded,
    HolderFull,
    InferenceError,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    PeerGone,
    PeerLeaving,
    WorkerDied,
)
from inference.openai.answer import DONE, AnswerHead
from inference.openai.request import (
    STOP_LENGTH_MAX,
    TOKENS_MAX,
    Ingress,
    chat_call,
    completion_call,
    hop_call,
    hop_embedding_call,
)
from inference.openai.upstream import (
    EVENT_BYTES_MAX,
    AnswerReader,
    EmbeddingsReader,
    HopWriter,
    Said,
    body_of,
    embedding_events,
    error_out,
    hop_body,
    hop_embedding_body,
    path_of,
    refusal_of,
)
from inference.strict_json import parse_object

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
NAME = st.none() | PLAIN
TOKENS = st.lists(st.integers(0, TOKENS_MAX), max_size=8).map(tuple)
CONTENT = TEXT | st.lists(st.builds(TextPart, text=TEXT), min_size=1, max_size=3).map(tuple)
CALLS = st.lists(st.builds(ToolCall, id=PLAIN, name=PLAIN, arguments=TEXT), min_size=1, max_size=2).map(tuple)
ROLES: list[Role] = ["system", "developer", "user", "assistant"]
MESSAGE = (
    st.builds(Message, role=st.sampled_from(ROLES), content=CONTENT, name=NAME)
    | st.builds(Message, role=st.just("tool"), content=CONTENT, name=NAME, tool_call_id=PLAIN)
    | st.builds(Message, role=st.just("assistant"), content=st.none() | CONTENT, name=NAME, tool_calls=CALLS)
)
PROMPT = (
    st.builds(ChatPrompt, messages=st.lists(MESSAGE, min_size=1, max_size=4).map(tuple))
    | st.builds(TextPrompt, text=TEXT.filter(bool))
    | st.builds(TokenPrompt, tokens=TOKENS.filter(bool))
)


def _decimals(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


SAMPLING = st.builds(
    Sampling,
    temperature=_decimals(0, 2),
    top_p=_decimals(0, 1),
    top_k=st.integers(0, TOKENS_MAX),
    min_p=_decimals(0, 1),
    presence_penalty=_decimals(-2, 2),
    frequency_penalty=_decimals(-2, 2),
    repeat_penalty=_decimals(0.01, 10),
    repeat_last_n=st.integers(0, 2**16),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logit_bias=st.dictionaries(st.integers(0, TOKENS_MAX), _decimals(-100, 100), max_size=4).map(
        lambda bias: tuple(bias.items())
    ),
)
GENERATION = st.builds(
    Generation,
    id=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=128),
    model=st.sampled_from(["m", "hf/a/b.gguf", "名前"]),
    prompt=PROMPT,
    sampling=SAMPLING,
    max_tokens=st.none() | st.integers(1, TOKENS_MAX),
    stop=st.lists(PLAIN.filter(bool) | st.just("x" * STOP_LENGTH_MAX), max_size=4).map(tuple),
    produced=st.builds(Produced, tokens=TOKENS, draws=st.integers(0, TOKENS_MAX)),
    now=_decimals(0, 1e11),
    utc_offset_s=st.integers(-86_400, 86_400),
    kind=st.sampled_from(["chat", "generate"]),
    ignore_eos=st.booleans(),
)
KINDS: list[Literal["chat", "generate"]] = ["chat", "generate"]
HEADS = [AnswerHead(kind=kind, request_id="r", model="m", created=1) for kind in KINDS]


@given(GENERATION)
def test_a_generation_that_hops_arrives_as_it_was(generation: Generation) -> None:
    body = parse_object(hop_body(generation))
    assert hop_call(body, is_chat=path_of(generation) == "/v1/chat/completions") == generation


def test_a_field_added_to_generation_must_learn_to_hop() -> None:
    """The property above draws the fields that were there when it was written."""
    fields = {f.name for f in dataclasses.fields(Generation)} | {f.name for f in dataclasses.fields(Sampling)}
    assert fields == {
        "id", "model", "prompt", "sampling", "max_tokens", "stop", "produced", "now", "utc_offset_s", "kind",
        "ignore_eos", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
        "repeat_penalty", "repeat_last_n", "seed", "logit_bias",
    }  # fmt: skip


@given(GENERATION)
def test_without_the_mesh_member_it_is_a_plain_openai_request(generation: Generation) -> None:
    ingress = Ingress(id=generation.id, now=generation.now, utc_offset_s=generation.utc_offset_s)
    body = body_of(generation)
    call = chat_call(body, ingress) if "messages" in body else completion_call(body, ingress, None)
    assert call.stream
    assert call.generation == dataclasses.replace(generation, produced=Produced(), kind=call.generation.kind)


def test_a_body_of_many_bytes_does_not_grow() -> None:
    """32 MiB of Japanese in UTF-8 would be 64 MiB in escapes."""
    text = "日本語 " * 10_000
    asked = Generation(id="r", model="m", prompt=TextPrompt(text=text))
    assert len(hop_body(asked)) < len(text.encode()) + 200


def test_what_a_client_writes_into_mesh_is_ignored() -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    mesh = {"produced": [1, 2], "draws": 2, "kind": "generate", "id": "x"}
    ingress = Ingress(id="r", now=1.0, utc_offset_s=0)
    assert chat_call(body | {"mesh": mesh}, ingress) == chat_call(body, ingress)


@pytest.mark.parametrize(
    "mesh",
    [
        None,
        [],
        {},
        {"kind": "x"},
        {"kind": "chat"},
        {"kind": "chat", "id": 5},
        {"kind": "chat", "id": "r", "produced": [-1]},
        {"kind": "chat", "id": "r", "produced": "abc"},
        {"kind": "chat", "id": "r", "draws": -1},
        {"kind": "chat", "id": "r", "now": "noon"},
    ],
)
def test_a_hop_without_a_good_mesh_member_is_refused(mesh: object) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "mesh": mesh}
    with pytest.raises(InvalidRequest):
        hop_call(body, is_chat=True)


FINISH: list[FinishReason | None] = [None, "stop", "length"]
CHUNKS = st.lists(st.builds(Chunk, text=TEXT, tokens=TOKENS, finish_reason=st.just(None)), max_size=5)


@given(st.sampled_from(HEADS), CHUNKS, st.sampled_from(FINISH[1:]), st.data())
def test_an_answer_is_read_as_it_was_written_however_it_is_cut(
    head: AnswerHead, chunks: list[Chunk], finish: FinishReason, data: st.DataObject
) -> None:
    started = Chunk(started=Started(prompt_tokens=7, cached_tokens=3, sha256="ab"))
    answer = [started, *(dataclasses.replace(c, draws=n) for n, c in enumerate(chunks))]
    answer.append(Chunk(text="end", tokens=(1,), draws=99, finish_reason=finish))
    writer = HopWriter(head)
    wire = b": waiting\n\n".join(writer.chunk(c, b"load" if c in (answer[0], answer[-1]) else None) for c in answer)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    reader = AnswerReader()
    said: list[Said] = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        said += reader.feed(wire[start:end])
    assert [s for s in said if isinstance(s, Chunk)] == answer
    assert [s for s in said if not isinstance(s, Chunk)] == [b"load", b"load"]
    assert reader.is_finished and reader.feed(DONE + b"data: anything\n\n") == []


def test_an_event_is_one_of_openais_chunks() -> None:
    for head in HEADS:
        event = HopWriter(head).chunk(Chunk(text='"é\u2028', tokens=(5, 6), draws=2))
        assert event.isascii() and event.startswith(b"data: ") and event.endswith(b"\n\n")
        found = json.loads(event[6:])
        assert (found["id"], found["model"]) == (head.id, "m") and found["mesh"] == {"t": [5, 6], "r": 2}
        choice = found["choices"][0]
        assert (choice["delta"]["content"] if head.kind == "chat" else choice["text"]) == '"é\u2028'


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ContextLengthExceeded("too long", param="messages"), ContextLengthExceeded),
        (InvalidRequest("no", param="stop", code="invalid_value"), InvalidRequest),
        (ModelNotFound("gone"), ModelNotFound),
        (ModelUnavailable("later", retry_after_s=9), ModelUnavailable),
        (Overloaded("full", retry_after_s=3), Overloaded),
        (HolderFull("full"), HolderFull),
        (PeerLeaving("bye"), PeerLeaving),
        (WorkerDied("dead"), WorkerDied),
        (InferenceError("odd", code="internal_error"), InferenceError),
    ],
)
def test_errors_arrive_as_they_were(error: InferenceError, kind: type[InferenceError]) -> None:
    (load, inside) = AnswerReader().feed(b"data: " + json.dumps(error_out(error, b"load")).encode() + b"\n\n")
    refused, load_of_refusal = refusal_of(error.status, json.dumps(error_out(error, b"load")).encode())
    assert load == load_of_refusal == b"load"
    for found in (inside, refused):
        assert isinstance(found, kind)
        assert (found.status, found.type, found.code, found.param, found.message, found.retry_after_s) == (
            error.status, error.type, error.code, error.param, error.message, error.retry_after_s,
        )  # fmt: skip


GOOD: dict[str, Any] = {"choices": [{"delta": {"content": "a"}, "finish_reason": None}], "mesh": {"t": [1], "r": 0}}


CHANGES: list[dict[str, Any]] = [
    {"choices": []},
    {"choices": [{"delta": {"content": 5}, "finish_reason": None}]},
    {"choices": [{"delta": {"content": "a"}, "finish_reason": "because"}]},
    {"mesh": {"t": [-1], "r": 0}},
    {"mesh": {"t": [True], "r": 0}},
    {"mesh": {"t": "12", "r": 0}},
    {"mesh": {"t": [1], "r": -1}},
    {"mesh": {"t": [1, 2, 3, 4], "r": 0}},
    {"mesh": {"started": {"prompt_tokens": 1, "cached_tokens": 2}}},
    {"mesh": {"t": [1], "r": 0, "load": "%"}},
    {"error": {"message": 1}},
    {"error": "text"},
]
NONSENSE = [
    b"data: {\n",
    b"data: [1]\n",
    b"data: \xff\n",
    b"data: " + b"[" * 100_000 + b"\n",
    b"data: [DONE]\n",
    b"x" * (EVENT_BYTES_MAX + 1),
    b"data: {}\n",
    *(b"data: " + json.dumps(GOOD | change).encode() + b"\n" for change in CHANGES),
]


@pytest.mark.parametrize("event", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_a_peer_that_is_gone(event: bytes) -> None:
    good = b"data: " + json.dumps(GOOD).encode() + b"\n\n"
    reader = AnswerReader(tokens_max=4)
    *before, last = reader.feed(good + event)
    assert before == [Chunk(text="a", tokens=(1,))]
    assert isinstance(last, PeerGone) and reader.is_finished
    assert reader.feed(good) == []


@given(st.binary(max_size=200))
def test_no_bytes_make_a_reader_raise_anything_else(data: bytes) -> None:
    AnswerReader().feed(data + b"\n")
    AnswerReader().feed(b"data: " + data + b"\n")
    refusal_of(500, data)


@pytest.mark.parametrize("count", [1, 16, 17, 50])
def test_vectors_arrive_in_their_order(count: int) -> None:
    request = EmbeddingRequest(id="e", model="m", inputs=("a",) * count)
    vectors = tuple(bytes([n, 0, 0, 0] * 3) for n in range(count))
    answer = Embeddings(vectors=vectors, dim=3, prompt_tokens=count)
    wire = b": waiting\n\n" + b"".join(embedding_events(answer, b"load"))
    reader = EmbeddingsReader(request)
    loads = [load for at in range(0, len(wire), 50) for load in reader.feed(wire[at : at + 50])]
    assert reader.answer == answer and loads == [b"load"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_or_too_many_vectors_are_nonsense(count: int) -> None:
    answer = Embeddings(vectors=(b"\0" * 8,) * count, dim=2, prompt_tokens=1)
    reader = EmbeddingsReader(EmbeddingRequest(id="e", model="m", inputs=("a", "b")))
    with pytest.raises(PeerGone):
        reader.feed(b"".join(embedding_events(answer)))


@given(
    st.builds(
        EmbeddingRequest,
        id=PLAIN,
        model=st.just("m"),
        inputs=st.lists(TEXT.filter(bool), min_size=1, max_size=4).map(tuple)
        | st.lists(TOKENS.filter(bool), min_size=1, max_size=4).map(tuple),
        dimensions=st.none() | st.integers(1, 2**16),
    )
)
def test_an_embedding_request_arrives_as_it_was(request: EmbeddingRequest) -> None:
    assert hop_embedding_call(parse_object(hop_embedding_body(request))) == request
