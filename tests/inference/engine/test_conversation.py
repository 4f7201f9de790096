"""Tests of giving a conversation a shape that a template takes."""

from __future__ import annotations

from inference.chat import Message, TextPart
from inference.engine.conversation import alternatives, understood

BRIEF = Message(role="system", content="Be brief.")
POLITE = Message(role="system", content=(TextPart(text="Be"), TextPart(text="polite.")))
HELLO = Message(role="user", content="Hello")
HI = Message(role="assistant", content="Hi")


def test_developer_is_called_system_where_the_template_does_not_know_it() -> None:
    developer = Message(role="developer", content="Be brief.", name="ops")
    (first, second) = understood((developer, HELLO), "{% set developer_preamble = messages[0].role == 'system' %}")
    assert first == Message(role="system", content="Be brief.", name="ops") and second is HELLO


def test_developer_stays_where_the_template_knows_it() -> None:
    messages = (Message(role="developer", content="Be brief."), HELLO)
    assert understood(messages, "{% if m.role == 'developer' %}") is messages


def test_system_message_may_begin_what_the_user_says() -> None:
    assert list(alternatives((BRIEF, HELLO, HI))) == [(Message(role="user", content="Be brief.\n\nHello"), HI)]


def test_several_system_messages_become_one_first() -> None:
    one, none = alternatives((BRIEF, POLITE, HELLO))
    assert one == (Message(role="system", content="Be brief.\n\nBe\npolite."), HELLO)
    assert none == (Message(role="user", content="Be brief.\n\nBe\npolite.\n\nHello"),)


def test_conversation_without_a_system_message_or_without_a_user_has_no_other_shape() -> None:
    assert list(alternatives((HELLO, HI))) == list(alternatives((BRIEF,))) == list(alternatives((BRIEF, HI))) == []
