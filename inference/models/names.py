"""The names of models: what a name may be, which model a caller's name means, and the order of a list. Pure.

A name becomes an id, never a path: files are named by their SHA-256, or were found in the folder by us.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import PurePath, PurePosixPath
from typing import Protocol, TypeVar

from inference.errors import ModelNotFound
from inference.models.errors import BadModelName
from inference.models.model import HELLO

NAME_CHARS_MAX = 200
NEAREST = 3
# Of many and long ids only so much is compared: it takes the event loop's time, and other peers choose them.
COMPARED_MAX = 500
COMPARED_CHARS = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*(:[A-Za-z0-9][A-Za-z0-9._-]*)?", re.ASCII)
_CLOUDS = frozenset({"openai", "anthropic", "ahtnorpic", "google"})
_GENERIC_STEMS = frozenset({"model", "ggml-model"})


class Named(Protocol):
    """What has a name: a model of this machine, or one that another peer tells of."""

    @property
    def id(self) -> str: ...

    @property
    def aliases(self) -> tuple[str, ...]: ...

    @property
    def file_name(self) -> str: ...

    @property
    def is_builtin(self) -> bool: ...


M = TypeVar("M", bound=Named)


def checked(name: str) -> str:
    """`name`, if it may be a model's id; else raises `BadModelName` saying the rule.

    Letters, digits, `.`, `_` and `-` in parts divided by `/`, then at most one `:tag`; every part begins with a letter
    or digit; no `..`; 200 characters. `hello` is the embedded model's and `openai:` and the like are the clouds'.
    """
    shown = _shown(name)
    if len(name) > NAME_CHARS_MAX:
        raise BadModelName(
            f"The model name `{shown}...` has {len(name):,} characters; at most {NAME_CHARS_MAX} may be."
        )
    if not _NAME.fullmatch(name) or ".." in name:
        raise BadModelName(
            f"The model name `{shown}` is not allowed: letters, digits, '.', '_' and '-', in parts divided by '/', "
            "and one ':tag' at the end, as in `qwen2.5-7b` or `org/model:q4`."
        )
    if name.casefold() == HELLO:
        raise BadModelName(f"The name `{HELLO}` belongs to the embedded model; choose another.")
    if name.partition(":")[0].casefold() in _CLOUDS and ":" in name:
        raise BadModelName(f"The model name `{shown}` would be sent to a cloud; choose one without that prefix.")
    return name


def resolve(name: str, models: Sequence[M]) -> M:
    """The model a caller means: exact id, else alias, else file stem in any case, with or without `.gguf`.

    An alias or stem that several models share means none of them. Raises `ModelNotFound` naming the nearest ids.
    """
    found = meant(name, models)
    if found is None:
        raise absent(name, models)
    return found


def meant(name: str, models: Sequence[M]) -> M | None:
    """As `resolve`, but None for a name that means none of them."""
    for model in models:
        if model.id == name:
            return model
    wanted = name.casefold().removesuffix(".gguf")
    for match in (
        [model for model in models if name in model.aliases],
        [model for model in models if wanted in _stems(model)],
    ):
        if len(match) == 1:
            return match[0]
    return None


def absent(name: str, models: Sequence[Named]) -> ModelNotFound:
    """The error for a name that means none of `models`: OpenAI's sentence, and where to go from there."""
    sentence = f"The model `{_shown(name)}` does not exist or you do not have access to it."
    ids = {model.id.casefold()[:COMPARED_CHARS]: model.id for model in in_order(models)[:COMPARED_MAX]}
    near = difflib.get_close_matches(name.casefold()[:COMPARED_CHARS], ids, n=NEAREST, cutoff=0.0)
    hint = f"Nearest: {', '.join(f'`{ids[key]}`' for key in near)}."
    if not near:
        hint = "There are no models here; add one with `llm-router model import FILE.gguf`."
    return ModelNotFound(f"{sentence} {hint}", param="model")


def in_order(models: Iterable[M]) -> list[M]:
    """By id regardless of case, the embedded model last."""
    return sorted(models, key=lambda model: (model.is_builtin, model.id.casefold(), model.id))


def derived(file: PurePath, taken: Collection[str]) -> str:
    """A free name for a file: its stem, or its folder's name where the file is just called `model.gguf`.

    `file` is relative to the folder of models. Where the name is taken (`taken` holds case-folded names) the folders
    above are put in front, and then a number behind.
    """
    for name in _suggestions(file):
        if name.casefold() not in taken and _is_allowed(name):
            return name
    raise AssertionError("numbers never end")


def aliases_of(file: PurePath, name: str) -> tuple[str, ...]:
    """Other names for a file called `name`: its stem, and `family:tag` for the reference's folders `family_tag`."""
    own = _own_name(file)
    family, _, tag = own.rpartition("_")
    candidates = (own, f"{family}:{tag}") if _is_generic(file) and family else (own,)
    return tuple(c for c in candidates if c.casefold() != name.casefold() and _is_allowed(c))


def _suggestions(file: PurePath) -> Iterator[str]:
    parents = [cleaned for part in file.parent.parts if (cleaned := _cleaned(part))]
    own = _own_name(file)
    if _is_generic(file):
        parents = parents[:-1]
    for depth in range(len(parents) + 1):
        yield "/".join([*parents[len(parents) - depth :], own])
    number = 2
    while True:
        yield f"{own}-{number}"
        number += 1


def _own_name(file: PurePath) -> str:
    own = file.parent.name if _is_generic(file) else _stem(file.name)
    return _cleaned(own) or "model"


def _is_generic(file: PurePath) -> bool:
    return _stem(file.name).casefold() in _GENERIC_STEMS and file.parent.name != ""


def _cleaned(text: str) -> str:
    """`text` with what a name may not hold replaced by dashes, short enough to be one of several parts."""
    dashed = re.sub(r"[^A-Za-z0-9._-]+", "-", text, flags=re.ASCII)
    return re.sub(r"\.{2,}", ".", dashed).strip("._-")[:60].rstrip("._-")


def _is_allowed(name: str) -> bool:
    try:
        checked(name)
    except BadModelName:
        return False
    return True


def _stem(file_name: str) -> str:
    return file_name[: -len(".gguf")] if file_name.casefold().endswith(".gguf") else file_name


def _stems(model: Named) -> set[str]:
    """What the model may be called, in lower case: its id, the last part of it, its aliases, its file."""
    names = {model.id, PurePosixPath(model.id).name, _stem(model.file_name), *model.aliases} - {""}
    return {name.casefold() for name in names}


def _shown(name: str) -> str:
    """The beginning of a name that may be hostile, fit for a message: nothing unprintable, no backquotes."""
    return "".join(c if c.isprintable() and c != "`" else "?" for c in name[:80])
