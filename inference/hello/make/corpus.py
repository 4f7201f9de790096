"""The text the embedded model is trained on: made-up chats about this program, from a seed, and nothing else.

`intents.txt` is in a small language, one block per intent:

    # name weight      a new intent; weight says how often it is asked (1 when left out)
    question           {a|b|} picks one, $NAME picks from `words.WORDS` or is made by MAKE; noise is added later
    = answer           one is picked; the same language. Commands in backticks must exist: a test reads them
    + answer           given to "how?", "tell me more" right after this intent

Questions are in lower case: the model's chat template lowers what people type.

    python -m inference.hello.make.corpus 5        # print five chats
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from inference.hello.make import words

Turn = tuple[str, str]  # role, text


@dataclass(slots=True)
class Intent:
    """Questions that ask the same thing, and what is answered."""

    name: str
    weight: float
    asks: list[str] = field(default_factory=list)
    says: list[str] = field(default_factory=list)
    more: list[str] = field(default_factory=list)

    @property
    def is_japanese(self) -> bool:
        return self.name.startswith("ja_")


def chats(seed: int) -> Iterator[list[Turn]]:
    """Endless chats of one to five questions."""
    rng = random.Random(seed)
    while True:
        yield chat(rng, rng.choice([1, 2, 3, 4, 5]))


def chat(rng: random.Random, questions: int, long_system: bool = False) -> list[Turn]:
    """One chat. With `long_system` it may begin with a system prompt of many sentences."""
    turns: list[Turn] = []
    if rng.random() < 0.25:
        turns.append(("system", _system(rng, long_system)))
    for _ in range(questions):
        intent = rng.choices(INTENTS, WEIGHTS)[0]
        asked, said = ask(intent, rng)
        turns += [("user", asked), ("assistant", said)]
        if intent.name == "joke" and rng.random() < 0.6:
            again = "{another{| one| joke}|one more|again|more|tell me another{| one}|next|haha, another one|got more}"
            joke = words.JOKES[(words.JOKES.index(said) + 1) % len(words.JOKES)]
            turns += [("user", noisy(expand(again, rng), rng)), ("assistant", joke)]
        elif not intent.is_japanese and rng.random() < (0.3 if intent.more else 0.1):
            more = expand(rng.choice(intent.more), rng) if intent.more else said
            turns += [("user", noisy(expand(words.FOLLOW, rng), rng)), ("assistant", more)]
    return turns


def ask(intent: Intent, rng: random.Random) -> Turn:
    """A question of this intent, and an answer."""
    line = rng.choices(intent.asks, LINE_WEIGHTS[intent.name])[0]
    asked = expand(line, rng)
    said = rng.choice(words.JOKES) if intent.name == "joke" else expand(rng.choice(intent.says), rng)
    if intent.is_japanese:
        return asked.replace(" ", ""), said
    if "$SNIP" in line or "$SUM" in line:
        return asked, said
    return noisy(asked, rng), said


def expand(text: str, rng: random.Random) -> str:
    """One sentence of the many that `text` stands for."""
    while m := _CHOICE.search(text):
        if name := m[1]:
            new = MAKE[name](rng).replace("{", "\1").replace("$", "\2") if name in MAKE else rng.choice(_SPLIT[name])
            text = text[: m.start()] + new + text[m.end() :]
        else:
            depth, end = 1, m.end()
            while depth:
                depth += (text[end] == "{") - (text[end] == "}")
                end += 1
            text = text[: m.start()] + rng.choice(_split(text[m.end() : end - 1])) + text[end:]
    return re.sub(r"  +", " ", text.replace("\1", "{").replace("\2", "$")).strip()


_CHOICE = re.compile(r"\$([A-Z]+)|(\{)")


def _split(text: str) -> list[str]:
    """`a|{b|c}|d` at its outer bars."""
    out, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c == "{") - (c == "}")
        if c == "|" and depth == 0:
            out.append(text[start:i])
            start = i + 1
    return [*out, text[start:]]


_SPLIT = {name: _split(text) for name, text in words.WORDS.items()}


# ------------------------------------------------------------ what is made, not picked


def _odd(rng: random.Random) -> str:
    """A word that does not exist."""
    ends = ["nrlstkm", [""]]
    syllables = [
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(rng.choice(ends))
        for _ in range(rng.choice([1, 2, 2, 3]))
    ]
    return "".join(syllables)


def _keys(rng: random.Random) -> str:
    """What a cat types."""
    return "".join(rng.choice("asdfghjklqwertyuiopzxcvbnm") for _ in range(rng.randint(3, 9)))


def _babble(rng: random.Random) -> str:
    """Grammar without meaning, to teach what is none of our business."""
    small = [
        "the",
        "a",
        "of",
        "to",
        "in",
        "and",
        "is",
        "was",
        "with",
        "for",
        "my",
        "that",
        "on",
        "at",
        "it",
        "by",
        "from",
    ]
    lists = [small, small, *(_SPLIT[name] for name in ("NOUN", "VERB", "ADJ", "THING"))]
    return " ".join(rng.choice(rng.choice(lists)) for _ in range(rng.choice([4, 6, 9, 14, 30])))


def _snippet(rng: random.Random) -> str:
    n, m = _odd(rng), rng.randint(0, 99)
    return rng.choice(
        [
            f"def {n}(x): return x + {m}",
            f"for i in range({m}): print({n})",
            f"SELECT * FROM {n} WHERE id = {m}",
            f"if ({n} > {m}) {{ return {n}; }}",
            f"<div class='{n}'>{m}</div>",
            f'{{"{n}": {m}, "ok": true}}',
            f"import {n}\n{n}.run({m})",
            f"int {n} = {m};",
            f"const {n} = () => {m};",
            f"TypeError: {n} is not a function",
        ]
    )


def _number(rng: random.Random) -> str:
    return str(rng.choice([rng.randint(0, 9), rng.randint(10, 99), rng.randint(100, 9999)]))


def _sum(rng: random.Random) -> str:
    """An exercise, as a person types it."""
    a, b = (rng.choice(_DIGITS) if rng.random() < 0.15 else _number(rng) for _ in "ab")
    op = rng.choice([" + ", "+", " - ", "-", " x ", "*", " * ", "/", " / ", " plus ", " minus ", " times "])
    return f"{a}{op if op.strip() and not (a + b).isalpha() else ' plus '}{b}"


_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

MAKE = {
    "ODD": _odd,
    "KEYS": _keys,
    "BABBLE": _babble,
    "SNIP": _snippet,
    "SUM": _sum,
    "NUM": _number,
    "JTHING": lambda rng: rng.choice(words.JTHING),
}


def _system(rng: random.Random, long: bool) -> str:
    if long and rng.random() < 0.4:
        return " ".join(expand(words.RULE, rng) for _ in range(rng.randint(5, 40)))
    return expand(rng.choice(words.SYSTEMS), rng)


# ------------------------------------------------------------ noise


def noisy(text: str, rng: random.Random) -> str:
    """`text` as a person would type it: shortened, with asides, typos and punctuation."""
    if " " not in text and rng.random() < 0.6:  # one word: show it as it is, more or less shouted
        return text + rng.choice(["", "", "!", "!!", ".", "?", "...", " :)"])
    for long, short in words.SHORT.items():
        if rng.random() < (0.5 if "'" in short else 0.06):
            text = re.sub(rf"\b{long}\b", short, text)
    text = _beside_the_point(text, rng)
    if rng.random() < 0.2:
        text = rng.choice(words.BEFORE) + " " + text
    if rng.random() < 0.1:
        text += " " + rng.choice(words.AFTER)
    if rng.random() < 0.2:
        text = _mistyped(text, rng)
    if rng.random() < 0.05:
        text = text.replace("'", "")
    if text[-1:].isalnum():
        asks = re.match(r"(what|who|where|why|how|when|which|is|are|can|do|does|will|should)\b", text)
        text += rng.choice(["?", "?", "?", "", "", "??", "."] if asks else ["", "", "", ".", "!", "?"])
    return text


def _beside_the_point(text: str, rng: random.Random) -> str:
    dice, parts = rng.random(), text.split(" ")
    if dice < 0.06 and len(parts) > 4:  # a word is lost
        parts.pop(rng.randrange(len(parts)))
        return " ".join(parts)
    if dice < 0.10 and len(parts) > 2:
        return expand(rng.choice(words.ASIDE), rng) + rng.choice([". ", ", ", " and ", " so ", "! "]) + text
    if dice < 0.12 and len(parts) > 2:
        return text + " " + expand(rng.choice(words.BECAUSE), rng)
    return text


def _mistyped(text: str, rng: random.Random) -> str:
    parts = text.split(" ")
    for _ in range(1 + len(parts) // 8):
        i = rng.randrange(len(parts))
        w = parts[i]
        if len(w) > 3 and w.isalpha():
            j = rng.randrange(len(w) - 1)
            swapped = w[:j] + w[j + 1] + w[j] + w[j + 2 :]
            beside = w[:j] + _NEIGHBOUR.get(w[j], w[j]) + w[j + 1 :]
            parts[i] = rng.choice([swapped, w[:j] + w[j + 1 :], w[:j] + w[j] + w[j:], beside])
    return " ".join(parts)


_KEYBOARD = "qwertyuiopasdfghjklzxcvbnm"
_NEIGHBOUR = dict(zip(_KEYBOARD, _KEYBOARD[1:] + _KEYBOARD[:1], strict=True))


# ------------------------------------------------------------ the intents


def parse(text: str) -> list[Intent]:
    """The intents of a text in the language above."""
    intents: list[Intent] = []
    for line in text.strip().split("\n"):
        mark, rest = line[:2], line[2:]
        if mark == "# ":
            name, *weight = rest.split()
            intents.append(Intent(name, float(weight[0]) if weight else 1.0))
        else:
            it = intents[-1]
            it.says.append(rest) if mark == "= " else it.more.append(rest) if mark == "+ " else it.asks.append(line)
    return intents


INTENTS = parse(Path(__file__).with_name("intents.txt").read_text(encoding="utf-8"))
WEIGHTS = [i.weight for i in INTENTS]
# A line that stands for more sentences is asked more often, but not in proportion.
LINE_WEIGHTS = {i.name: [1 + 0.25 * (q.count("|") + 6 * q.count("$")) ** 0.5 for q in i.asks] for i in INTENTS}


if __name__ == "__main__":
    source = chats(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(*(f"{role}: {text}" for role, text in next(source)), "", sep="\n")
