"""OpenAI's own Python client, unmodified, against a peer with the real engine: spec row "openai"."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.conftest import SCRIPTED_ANSWER
from tests.fixtures.peer import Peer, until

pytestmark = pytest.mark.engine

USER = "Hello, who are you?"


@pytest.fixture
def client(peer: Peer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{peer.url}/v1", api_key="loopback-needs-no-key", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def many(peer: Peer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{peer.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


# -- chat


def test_chat_answers_with_the_models_words_and_counts_tokens(client: OpenAI) -> None:
    """F1, F178: an OpenAI client needs another base URL and nothing else."""
    answer = client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": USER}], temperature=0
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", SCRIPTED_ANSWER, "stop")
    assert answer.model == "scripted" and answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens > 5


def test_embedded_model_says_what_it_is(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "What are you?"}]
    answer = client.chat.completions.create(model="hello", messages=messages, temperature=0)  # type: ignore[arg-type]
    assert "small" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_stream_has_the_same_words_then_usage_when_asked(client: OpenAI) -> None:
    with client.chat.completions.create(
        model="scripted",
        messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": USER}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *chunks, last = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == SCRIPTED_ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens > 5
    assert len({c.id for c in (*chunks, last)}) == 1
    assert all(c.usage is None for c in chunks)


def test_stream_without_usage_asked_ends_with_the_finish_reason(client: OpenAI) -> None:
    with client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": USER}], temperature=0, stream=True
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(len(c.choices) == 1 for c in chunks)


def test_stop_and_max_tokens_are_honoured(client: OpenAI) -> None:
    messages = [{"role": "user", "content": USER}]
    stopped = client.chat.completions.create(model="scripted", messages=messages, temperature=0, stop="today")  # type: ignore[arg-type]
    assert stopped.choices[0].message.content == SCRIPTED_ANSWER.partition("today")[0]
    cut = client.chat.completions.create(model="scripted", messages=messages, temperature=0, max_completion_tokens=3)  # type: ignore[arg-type]
    assert cut.choices[0].finish_reason == "length" and cut.usage is not None and cut.usage.completion_tokens == 3


def test_same_seed_gives_the_same_answer(client: OpenAI) -> None:
    def said(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": USER}], seed=seed, max_tokens=20
        )
        return answer.choices[0].message.content

    assert said(7) == said(7) != said(8)


def test_raw_response_tells_request_id_and_peer(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="scripted", messages=[{"role": "user", "content": USER}], extra_headers={"x-request-id": "from-the-sdk"}
    )
    assert raw.headers["x-request-id"] == "from-the-sdk"
    assert raw.headers["x-llm-router-peer"] and raw.headers["x-llm-router-attempts"] == "1"
    assert raw.parse().id == "chatcmpl-from-the-sdk"


# -- completions


def test_completion_continues_a_text_without_template(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="the quick brown fox", max_tokens=8, temperature=0)
    assert answer.object == "text_completion" and answer.usage is not None
    assert answer.usage.completion_tokens <= 8
    again = client.completions.create(model="tiny", prompt=["the quick brown fox"], max_tokens=8, temperature=0)
    assert again.choices[0].text == answer.choices[0].text


def test_completion_of_token_ids_and_as_a_stream(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=[5, 6, 7, 8], max_tokens=8, temperature=0)
    assert answer.usage is not None and answer.usage.prompt_tokens == 4
    with client.completions.create(model="tiny", prompt=[[5, 6, 7, 8]], max_tokens=8, temperature=0, stream=True) as s:
        assert "".join(c.choices[0].text for c in s) == answer.choices[0].text


# -- embeddings


def test_embeddings_are_the_same_as_floats_and_as_the_default_base64(client: OpenAI) -> None:
    inputs = ["first text", "second text", "third"]
    default = client.embeddings.create(model="embed", input=inputs)
    floats = client.embeddings.create(model="embed", input=inputs, encoding_format="float")
    assert [d.index for d in default.data] == [0, 1, 2]
    for one, other in zip(default.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.fsum(x * x for x in one.embedding) == pytest.approx(1.0, abs=1e-5)
    assert default.usage.prompt_tokens == default.usage.total_tokens > 3


def test_embeddings_take_token_ids_and_dimensions(client: OpenAI) -> None:
    answer = client.embeddings.create(model="embed", input=[[5, 6, 7], [8, 9]], dimensions=16)
    assert [len(d.embedding) for d in answer.data] == [16, 16]
    assert answer.usage.prompt_tokens == 5


# -- models


def test_models_are_listed_with_hello_last_and_can_be_retrieved(client: OpenAI) -> None:
    ids = [m.id for m in client.models.list()]
    assert sorted(ids) == ["embed", "hello", "scripted", "tiny"] and ids[-1] == "hello"
    assert client.models.retrieve("tiny").id == "tiny"


# -- errors


def test_unknown_model_is_not_found_and_names_the_nearest(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="tinny", messages=[{"role": "user", "content": USER}])
    assert refused.value.code == "model_not_found" and "tiny" in refused.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such")


def test_wrong_parameter_is_a_bad_request_that_names_it(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": USER}], temperature=9)
    assert (refused.value.param, refused.value.type) == ("temperature", "invalid_request_error")


def test_feature_that_is_not_built_is_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": USER}], n=2)
    assert refused.value.param == "n"


def test_prompt_beyond_the_context_is_told_by_its_code(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 9000}])
    assert refused.value.code == "context_length_exceeded" and "4,096" in refused.value.message


def test_error_of_a_stream_before_its_first_byte_is_typed_too(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "word " * 9000}], stream=True
        )
    assert refused.value.code == "context_length_exceeded"


def test_chatting_with_an_embedding_model_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="embed"):
        client.chat.completions.create(model="embed", messages=[{"role": "user", "content": USER}])
    with pytest.raises(openai.BadRequestError, match="tiny"):
        client.embeddings.create(model="tiny", input="text")


# -- many at once, and leaving


async def test_thirty_concurrent_chats_all_get_the_whole_answer(many: AsyncOpenAI) -> None:
    async def said(number: int) -> str | None:
        answer = await many.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": f"question {number}"}], temperature=0
        )
        return answer.choices[0].message.content

    assert set(await asyncio.gather(*(said(i) for i in range(30)))) == {SCRIPTED_ANSWER}


async def test_mixed_streams_and_embeddings_do_not_disturb_each_other(many: AsyncOpenAI) -> None:
    async def streamed() -> str:
        text = ""
        async with await many.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": USER}], temperature=0, stream=True
        ) as stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        return text

    async def embedded() -> int:
        return len((await many.embeddings.create(model="embed", input=["a", "b"])).data[1].embedding)

    async with asyncio.TaskGroup() as tasks:
        texts = [tasks.create_task(streamed()) for _ in range(8)]
        vectors = [tasks.create_task(embedded()) for _ in range(8)]
    assert {t.result() for t in texts} == {SCRIPTED_ANSWER}
    assert {v.result() for v in vectors} == {64}


def test_closing_a_stream_ends_its_request_in_the_peer(client: OpenAI, peer: Peer) -> None:
    with client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": USER}], stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert [r["state"] for r in peer.ps()["requests"]] == ["generating"]
    until(lambda: not peer.ps()["requests"], "the request of a client that left ends")


def test_error_within_a_stream_is_raised_with_its_code(tmp_path: Path) -> None:
    crashing = {"LLM_ROUTER_WORKER": "tests.fixtures.fake_worker --tokens 500 --rate 200 --crash-after 20"}
    said = ""
    with (
        Peer.started(tmp_path / "data", env=crashing) as peer,
        OpenAI(base_url=f"{peer.url}/v1", api_key="any", max_retries=0, timeout=60) as client,
    ):
        stream = client.chat.completions.create(
            model="hello", messages=[{"role": "user", "content": USER}], stream=True
        )
        with pytest.raises(openai.APIError) as interrupted:
            for chunk in stream:
                said += chunk.choices[0].delta.content or ""
    assert interrupted.value.code == "stream_interrupted"
    assert len(said.split()) == 40  # those of both workers, each once
