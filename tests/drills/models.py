"""The models that drills use, made from nothing in a second."""

from __future__ import annotations

from pathlib import Path

from tests.fixtures import make_gguf

STORY = " ".join(f"Sheep number {n} looked at the fence, thought {n * n % 97}, and jumped." for n in range(1, 120))
"""Long enough that a fault finds every stream in the middle of it."""


def made(folder: Path) -> Path:
    """A models folder with `story` (always says STORY), `tiny` (random) and `embed`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_gguf.scripted(folder / "story.gguf", say=STORY)
    make_gguf.tiny(folder / "tiny.gguf")
    make_gguf.embed(folder / "embed.gguf")
    return folder
