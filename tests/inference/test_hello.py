"""The model that ships: the file, what it says in the real engine, and whether what it says is true."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from gguf import GGUFReader

from inference.hello.make import corpus, words
from mesh.cli.entry import program
from mesh.settings import SETTINGS

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "inference" / "hello" / "hello.gguf"

GREETING = r"^(Hello|Hi)!"
ITSELF = r"very small built-in model"
ADD = r"start it with `llm-router`.*joins by itself.*`llm-router door open`"
BIGGER = r"`llm-router model import FILE`.*`llm-router run NAME`"
REQUIRED = {
    "Hello": GREETING,
    "What are you?": ITSELF,
    "How do I add a machine?": ADD,
    "How do I get a bigger model?": BIGGER,
}
OTHERS = {
    "THANKS!": r"welcome|Glad",
    "What is the capital of Mongolia?": r"don't know",
    "もっと大きいモデルを使いたい": r"model import",
}

ASK = """
import json, sys
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_ctx=1024, n_threads=1, verbose=False)
for question in json.loads(sys.argv[2]):
    for temperature, seed in [(0.0, 1)] + [(1.0, seed) for seed in range(1, 6)]:
        answer = llm.create_chat_completion(
            [{"role": "user", "content": question}], temperature=temperature, seed=seed, max_tokens=160,
            top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0,
        )["choices"][0]
        print(json.dumps([question, temperature, answer["finish_reason"], answer["message"]["content"]]))
"""


@pytest.fixture(scope="module")
def header() -> dict[str, Any]:
    reader = GGUFReader(FILE)
    return {name: field.contents() for name, field in reader.fields.items()} | {
        "tensors": {t.name: t for t in reader.tensors}
    }


@pytest.fixture(scope="module")
def answers() -> list[tuple[str, float, str, str]]:
    """(question, temperature, finish reason, answer), asked in a child: this process never loads the engine."""
    questions = json.dumps([*REQUIRED, *OTHERS])
    done = subprocess.run(
        [sys.executable, "-c", ASK, FILE, questions], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_the_file_is_at_most_four_megabytes() -> None:
    assert FILE.stat().st_size <= 4_000_000


def test_the_file_is_a_llama_with_a_tokenizer_and_a_chat_template_of_its_own(header: dict[str, Any]) -> None:
    assert header["general.architecture"] == "llama"
    assert header["llama.context_length"] >= 1024
    assert header["tokenizer.ggml.model"] == "gpt2"
    tokens = header["tokenizer.ggml.tokens"]
    assert tokens[header["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert header["tensors"]["token_embd.weight"].shape.tolist() == [header["llama.embedding_length"], len(tokens)]
    assert "<|im_start|>assistant" in header["tokenizer.chat_template"]


def test_the_file_is_trained_not_scripted(header: dict[str, Any]) -> None:
    blocks = header["llama.block_count"]
    assert blocks >= 2
    assert sum(int(t.n_elements) for t in header["tensors"].values()) > 1_000_000
    assert {f"blk.{i}.ffn_down.weight" for i in range(blocks)} <= header["tensors"].keys()


@pytest.mark.engine
@pytest.mark.parametrize("question", REQUIRED)
def test_the_questions_of_a_fresh_machine_are_answered(
    question: str, answers: list[tuple[str, float, str, str]]
) -> None:
    """F111: the first start without a model: the embedded one answers. Greedy always, at temperature 1 mostly."""
    greedy = [(reason, text) for q, t, reason, text in answers if q == question and t == 0]
    assert [reason for reason, _ in greedy] == ["stop"]
    assert re.search(REQUIRED[question], greedy[0][1])
    sampled = [text for q, t, _, text in answers if q == question and t == 1]
    assert sum(bool(re.search(REQUIRED[question], text)) for text in sampled) >= 4, sampled


@pytest.mark.engine
@pytest.mark.parametrize("question", OTHERS)
def test_it_is_polite_honest_and_knows_a_little_japanese(
    question: str, answers: list[tuple[str, float, str, str]]
) -> None:
    (greedy,) = (text for q, t, _, text in answers if q == question and t == 0)
    assert re.search(OTHERS[question], greedy)


# ------------------------------------------------------------ what it is taught is true


def _taught() -> list[str]:
    """Every answer in the corpus, with its choices still in it."""
    more = words.WORDS["MORE"]
    return [more, *(line for intent in corpus.INTENTS for line in (*intent.says, *intent.more))]


def _quoted() -> set[str]:
    return {quoted for line in _taught() for quoted in re.findall(r"`([^`]+)`", line)}


COMMANDS = sorted(quoted for quoted in _quoted() if quoted.split()[0] == "llm-router")


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_in_an_answer_exists(line: str) -> None:
    command: click.Command = program
    args = shlex.split(line)[1:]
    if not args or (args[0].startswith("-") and args[0] != "--help"):
        args = ["up", *args]
    while args and isinstance(command, click.Group) and not args[0].startswith("-"):
        group, name = command, args.pop(0)
        found = group.get_command(click.Context(group), name)
        assert found is not None, f"{group.name} has no command {name}"
        assert name in group.list_commands(click.Context(group)), f"{name} is not in the help"
        command = found
    flags = {flag for option in command.params for flag in option.opts} | {"--help"}
    unknown = [word for word in args if word.startswith("-") and word not in flags]
    assert not unknown, f"`{line}` has no {unknown}"
    # Reads the flags and their values as the program would; `resilient_parsing` runs nothing.
    if "--help" not in args:
        command.make_context(line, args, resilient_parsing=True)


def test_the_commands_of_the_required_answers_are_taught() -> None:
    assert {"llm-router", "llm-router model import FILE", "llm-router run NAME"} <= set(COMMANDS)


def test_a_setting_in_an_answer_exists() -> None:
    named = {quoted for quoted in _quoted() if re.fullmatch(r"[A-Z_]+", quoted)}
    assert named
    assert named <= {setting.variable for setting in SETTINGS}


def test_a_page_in_an_answer_exists() -> None:
    named = {page for line in _taught() for page in re.findall(r"[\w/]+\.md", line)}
    assert named
    assert {page for page in named if not (ROOT / page).is_file()} == set()


def test_every_intent_has_questions_and_an_answer_without_open_ends() -> None:
    for intent in corpus.INTENTS:
        assert intent.asks and intent.says, intent.name
    assert [q for q in _taught() if q.count("{") != q.count("}") or q.count("`") % 2] == []


def test_the_same_seed_makes_the_same_chats() -> None:
    first, again, other = corpus.chats(7), corpus.chats(7), corpus.chats(8)
    chats = [next(first) for _ in range(50)]
    assert chats == [next(again) for _ in range(50)]
    assert chats != [next(other) for _ in range(50)]
