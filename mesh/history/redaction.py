"""Takes secrets out of text before it is kept: those that this machine knows, and what looks like one.

Fast on a megabyte (most patterns end at a search for their first letters), and never slower than in proportion to its
length, whatever it holds: no pattern is tried twice on the same characters.

Not here: what is kept at all (mesh.history.bodies).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

MASK = "***"
SECRET_LENGTH_MIN = 8
"""A known secret that is shorter would be found in every other word."""

# Each with letters that must be there for it to match. They stand first in the pattern, so that the search for them is
# quick; what must not stand before them is looked at afterwards.
_PATTERNS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    # OpenAI (sk-, sk-proj-), Anthropic (sk-ant-) and our own keys (sk-mesh-).
    ("sk-", re.compile(r"sk-(?<![A-Za-z0-9]sk-)[A-Za-z0-9_-]{20,}+"), MASK),
    ("AIza", re.compile(r"AIza(?<![A-Za-z0-9]AIza)[A-Za-z0-9_-]{35,}+"), MASK),
    ("hf_", re.compile(r"hf_(?<![A-Za-z0-9]hf_)[A-Za-z0-9]{30,}+"), MASK),
    ("agt_", re.compile(r"agt_(?<![A-Za-z0-9]agt_)[A-Za-z0-9_-]{40,}+"), MASK),  # of servers registered here
    ("github_pat_", re.compile(r"github_pat_[A-Za-z0-9_]{22,}+"), MASK),
    ("gh", re.compile(r"gh(?<![A-Za-z0-9]gh)[pousr]_[A-Za-z0-9]{36,}+"), MASK),
    ("AKIA", re.compile(r"AKIA(?<![A-Za-z0-9]AKIA)[A-Z0-9]{16}(?![A-Za-z0-9])"), MASK),
    ("xox", re.compile(r"xox(?<![A-Za-z0-9]xox)[abeprs]-[A-Za-z0-9-]{10,}+"), MASK),
    (
        "eyJ",  # the beginning of every JWT
        re.compile(r"eyJ(?<![A-Za-z0-9_-]eyJ)[A-Za-z0-9_-]{10,}+\.[A-Za-z0-9_-]{10,}+\.[A-Za-z0-9_-]{10,}+"),
        MASK,
    ),
    ("earer", re.compile(r"([Bb]earer[ ]{1,8})[A-Za-z0-9._~+/=-]{16,}+"), rf"\1{MASK}"),
)
_KEY_BEGINS = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY-----")
_KEY_ENDS = re.compile(r"-----END [A-Z0-9 ]{1,64}-----")
_IN_STRING = re.compile(r'(?:[^"\\]|\\.)*+', re.DOTALL)
_KEY_LENGTH_MAX = 20_000


def redactor(secrets: Iterable[str] = ()) -> Callable[[str], str]:
    """A function that gives a text, JSON or not, with each secret in it replaced by `***`.

    `secrets` are values that must never be kept: keys of clouds, tokens. Those inside others are found too.
    """
    known = {form for secret in secrets if len(secret) >= SECRET_LENGTH_MIN for form in _written(secret)}
    ordered = sorted(known, key=lambda form: (-len(form), form))

    def redacted(text: str) -> str:
        for form in ordered:
            text = text.replace(form, MASK)
        for letters, pattern, mask in _PATTERNS:
            if letters in text:
                text = pattern.sub(mask, text)
        return _without_private_keys(text)

    return redacted


def _written(secret: str) -> set[str]:
    """The secret as it is, and as JSON writes it."""
    return {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}


def _without_private_keys(text: str) -> str:
    """PEM blocks of private keys, replaced up to their end; one that is cut off up to the end of its JSON string."""
    if "PRIVATE KEY-----" not in text:
        return text
    pieces, position = [], 0
    while found := _KEY_BEGINS.search(text, position):
        pieces += [text[position : found.start()], MASK]
        inside = _IN_STRING.match(text, found.end(), found.end() + _KEY_LENGTH_MAX)
        assert inside is not None  # it matches nothing at all, too
        ends = _KEY_ENDS.search(text, found.end(), inside.end())
        position = ends.end() if ends else inside.end()
    return "".join([*pieces, text[position:]])
