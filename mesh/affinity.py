"""Which holder has kept how much of a prompt: an ingress's own memory of where it sent the conversations before.

An engine keeps the KV of prompts it has evaluated, so the next turn of a chat costs little there and everything
elsewhere. Each ingress remembers, for the last 4,096 beginnings of prompts, who evaluated them and how many tokens that
was. Nothing of it is gossiped: it is a guess which the holder's own answer (`Started.cached_tokens`) need not confirm,
and the router only takes it off the predicted prefill (mesh.router), so a full or wedged holder is left.

A beginning is a running SHA-256: of the messages up to one of them, or of blocks of a text or of tokens. Not here: the
prompt itself, which is never kept; the cache of the engine (inference.engine.prefix).
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from inference.chat import ChatPrompt, Message, Prompt, TextPart, TextPrompt

ENTRIES_MAX = 4096
# Of one beginning: the last holders that evaluated it.
HOLDERS_MAX = 4
# Texts and token prompts have no messages: a beginning is a multiple of this, about 256 tokens either way.
BLOCK_CHARACTERS = 1024
BLOCK_TOKENS = 256
# Remembered of one such prompt, the longest ones: a text of 64 k characters must not push out forty chats.
BLOCKS_MAX = 16
# English is about 4 characters a token, code and other languages fewer; a template adds some tokens to each message.
CHARACTERS_PER_TOKEN = 3.6
TOKENS_PER_MESSAGE = 5


@dataclass(frozen=True, slots=True)
class _Kept:
    """Tokens of the beginning, and of the answer that followed it."""

    tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class _Beginning:
    """`digest` of a beginning; `share` of the prompt's length; `is_answered`: the assistant's answer follows it."""

    digest: bytes
    share: float
    is_answered: bool = False
    is_shared: bool = False  # other conversations may begin so too


class Affinity:
    """`served` what an answer showed; `known` when the next prompt comes. Belongs to one event loop."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._kept: OrderedDict[bytes, OrderedDict[str, _Kept]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def known(self, model_id: str, prompt: Prompt) -> Mapping[str, int]:
        """Peer -> tokens of this prompt that it probably has in its cache."""
        best: dict[str, int] = {}
        for beginning in _beginnings(model_id, prompt):
            holders = self._kept.get(beginning.digest)
            if holders is None:
                continue
            self._kept.move_to_end(beginning.digest)
            for peer, kept in holders.items():
                tokens = kept.tokens + (kept.answer_tokens if beginning.is_answered else 0)
                best[peer] = max(best.get(peer, 0), tokens)
        return best

    def served(self, model_id: str, prompt: Prompt, peer: str, prompt_tokens: int, answer_tokens: int = 0) -> None:
        """`peer` evaluated `prompt` (that many tokens) and then made `answer_tokens`."""
        beginnings = list(_beginnings(model_id, prompt))
        if not beginnings:
            return
        for beginning in beginnings:
            if beginning.is_shared:
                self._keep(beginning.digest, peer, _Kept(int(beginning.share * prompt_tokens), 0))
        whole = beginnings[-1]
        is_whole = whole.share == 1.0
        self._keep(whole.digest, peer, _Kept(int(whole.share * prompt_tokens), answer_tokens if is_whole else 0))

    def forget(self, peer: str) -> None:
        """It began a new run, or left: its caches are empty."""
        for digest in [digest for digest, holders in self._kept.items() if peer in holders]:
            del self._kept[digest][peer]
            if not self._kept[digest]:
                del self._kept[digest]

    def _keep(self, digest: bytes, peer: str, kept: _Kept) -> None:
        holders = self._kept.setdefault(digest, OrderedDict())
        self._kept.move_to_end(digest)
        holders[peer] = kept
        holders.move_to_end(peer)
        if len(holders) > HOLDERS_MAX:
            holders.popitem(last=False)
        if len(self._kept) > self._entries_max:
            self._kept.popitem(last=False)


def estimated_tokens(prompt: Prompt) -> int:
    """About how many tokens `prompt` will be, by its length; only the holder's tokenizer knows."""
    match prompt:
        case ChatPrompt():
            characters = sum(_length(message) for message in prompt.messages)
            return int(characters / CHARACTERS_PER_TOKEN) + TOKENS_PER_MESSAGE * len(prompt.messages)
        case TextPrompt():
            return int(len(prompt.text) / CHARACTERS_PER_TOKEN) + 1
        case _:
            return len(prompt.tokens)


def _beginnings(model_id: str, prompt: Prompt) -> Iterator[_Beginning]:
    """The beginnings of `prompt` that are remembered or looked for, shortest first."""
    running = hashlib.sha256(json.dumps(model_id).encode())
    if isinstance(prompt, ChatPrompt):
        yield from _chat_beginnings(running, prompt.messages)
    elif isinstance(prompt, TextPrompt):
        blocks = [prompt.text[at : at + BLOCK_CHARACTERS] for at in range(0, len(prompt.text), BLOCK_CHARACTERS)]
        is_whole = len(prompt.text) % BLOCK_CHARACTERS == 0
        encoded = [json.dumps(block).encode() for block in blocks]
        yield from _block_beginnings(running, encoded, is_whole, len(prompt.text) / BLOCK_CHARACTERS)
    else:
        tokens = prompt.tokens
        chunks = [json.dumps(tokens[at : at + BLOCK_TOKENS]).encode() for at in range(0, len(tokens), BLOCK_TOKENS)]
        yield from _block_beginnings(running, chunks, len(tokens) % BLOCK_TOKENS == 0, len(tokens) / BLOCK_TOKENS)


def _chat_beginnings(running: hashlib._Hash, messages: tuple[Message, ...]) -> Iterator[_Beginning]:
    whole = sum(_length(message) + TOKENS_PER_MESSAGE for message in messages)
    length = 0
    is_instruction = True
    for index, message in enumerate(messages):
        running.update(_canonical(message))
        length += _length(message) + TOKENS_PER_MESSAGE
        is_instruction = is_instruction and message.role in ("system", "developer")
        rest = messages[index + 1 :]
        yield _Beginning(
            digest=running.digest(),
            share=length / whole,
            is_answered=bool(rest) and rest[0].role == "assistant",
            # The last of the leading instructions: every chat of that program begins so.
            is_shared=is_instruction and bool(rest) and rest[0].role not in ("system", "developer"),
        )


def _block_beginnings(
    running: hashlib._Hash, blocks: list[bytes], is_whole: bool, count: float
) -> Iterator[_Beginning]:
    full = len(blocks) if is_whole else len(blocks) - 1
    for index, block in enumerate(blocks[:full]):
        running.update(block)
        yield _Beginning(digest=running.digest(), share=(index + 1) / count, is_shared=index >= full - BLOCKS_MAX)


def _canonical(message: Message) -> bytes:
    """The same bytes for messages that a template renders alike: text in one part is text."""
    content = message.content
    if isinstance(content, tuple):
        content = "".join(part.text for part in content)
    calls = [[call.name, call.arguments] for call in message.tool_calls]
    return json.dumps([message.role, content, message.name, calls, message.tool_call_id]).encode()


def _length(message: Message) -> int:
    content = message.content
    parts: tuple[TextPart, ...] = content if isinstance(content, tuple) else ()
    text = len(content) if isinstance(content, str) else sum(len(part.text) for part in parts)
    return text + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
