"""mesh.affinity: who has kept which beginning of a prompt, and that the memory stays small."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.chat import ChatPrompt, Message, TextPart, TextPrompt, TokenPrompt, ToolCall
from mesh.affinity import BLOCK_TOKENS, HOLDERS_MAX, Affinity, estimated_tokens


def chat(*turns: str, system: str | None = None) -> ChatPrompt:
    """user, assistant, user ..."""
    messages = [] if system is None else [Message(role="system", content=system)]
    for index, turn in enumerate(turns):
        messages.append(Message(role="assistant" if index % 2 else "user", content=turn))
    return ChatPrompt(messages=tuple(messages))


def test_the_next_turn_is_known_where_the_last_one_was_served_with_its_answer() -> None:
    affinity = Affinity()
    affinity.served("m", chat("hello"), "a", 20, answer_tokens=30)
    assert affinity.known("m", chat("hello", "hi", "and now?")) == {"a": 50}
    assert affinity.known("m", chat("hello")) == {"a": 20}, "a repeated question has no answer in it"
    affinity.served("m", chat("hello", "hi", "and now?"), "b", 60)
    assert affinity.known("m", chat("hello", "hi", "and now?", "x", "y")) == {"a": 50, "b": 60}


def test_another_beginning_or_model_is_not_known() -> None:
    affinity = Affinity()
    affinity.served("m", chat("hello"), "a", 20)
    assert affinity.known("m", chat("hello!")) == {}
    assert affinity.known("other", chat("hello")) == {}
    assert affinity.known("m", ChatPrompt(messages=(Message(role="assistant", content="hello"),))) == {}


def test_chats_of_one_program_share_its_instructions() -> None:
    affinity = Affinity()
    affinity.served("m", chat("a short question", system="x" * 3000), "a", 1000)
    (tokens,) = affinity.known("m", chat("something else", system="x" * 3000)).values()
    assert 950 < tokens < 1000


def test_text_in_one_part_is_text_and_a_tool_calls_id_is_no_part_of_the_prompt() -> None:
    affinity = Affinity()
    call = ToolCall(id="call_1", name="f", arguments="{}")
    said = Message(role="assistant", content=None, tool_calls=(call,))
    affinity.served("m", ChatPrompt(messages=(Message(role="user", content="hello"), said)), "a", 20)
    parts = Message(role="user", content=(TextPart(text="hel"), TextPart(text="lo")))
    renamed = Message(role="assistant", content=None, tool_calls=(ToolCall(id="x", name="f", arguments="{}"),))
    assert affinity.known("m", ChatPrompt(messages=(parts, renamed))) == {"a": 20}


def test_texts_and_tokens_are_known_by_whole_blocks() -> None:
    affinity = Affinity()
    affinity.served("m", TextPrompt(text="abcd" * 1000), "a", 1000)
    (tokens,) = affinity.known("m", TextPrompt(text="abcd" * 900 + "other")).values()
    assert 700 <= tokens <= 900
    affinity.served("m", TokenPrompt(tokens=tuple(range(600))), "b", 600)
    assert affinity.known("m", TokenPrompt(tokens=tuple(range(300)))) == {"b": BLOCK_TOKENS}
    affinity.served("m", TextPrompt(text="short"), "a", 3)
    assert affinity.known("m", TextPrompt(text="short")) == {}


def test_a_peer_that_began_anew_has_kept_nothing() -> None:
    affinity = Affinity()
    affinity.served("m", chat("hello"), "a", 20)
    affinity.served("m", chat("hello"), "b", 20)
    affinity.forget("a")
    assert affinity.known("m", chat("hello")) == {"b": 20}
    affinity.forget("b")
    assert len(affinity) == 0


def test_the_oldest_are_forgotten_and_what_is_used_stays() -> None:
    affinity = Affinity(entries_max=3)
    for name in ("one", "two", "three"):
        affinity.served("m", chat(name), "a", 10)
    assert affinity.known("m", chat("one", "answer", "next"))
    affinity.served("m", chat("four"), "a", 10)
    assert [bool(affinity.known("m", chat(name))) for name in ("one", "two", "three", "four")] == [
        True,
        False,
        True,
        True,
    ]
    for index in range(20):
        affinity.served("m", chat("four"), f"p{index}", 10)
    assert set(affinity.known("m", chat("four"))) == {f"p{index}" for index in range(20 - HOLDERS_MAX, 20)}


TEXT = st.text(st.characters(codec=None), max_size=40)


@given(st.lists(TEXT, min_size=1, max_size=6), st.integers(1, 5), TEXT)
def test_any_prompt_is_known_by_its_own_beginning_and_by_no_more_tokens_than_it_had(
    turns: list[str], cut: int, system: str
) -> None:
    affinity = Affinity()
    affinity.served("m", chat(*turns[:cut], system=system), "a", 100)
    assert affinity.known("m", chat(*turns, system=system)) == {"a": 100}
    assert all(tokens <= 100 for tokens in affinity.known("m", chat("other", *turns, system=system)).values())


@given(st.one_of(st.builds(TextPrompt, text=TEXT), st.builds(TokenPrompt, tokens=st.just((1, 2, 3)))), TEXT)
def test_an_estimate_is_positive_and_grows_with_the_prompt(prompt: TextPrompt | TokenPrompt, text: str) -> None:
    assert estimated_tokens(prompt) >= 1
    assert estimated_tokens(chat(text, text)) > estimated_tokens(chat(text)) > 0
