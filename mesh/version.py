"""Which builds these are: ours, and the engine's. Asks the installed metadata, never imports native code."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "llm-router-mesh"
ENGINE_DISTRIBUTION = "llama-cpp-python"
ENGINE_PINNED = "0.3.36"
"""The version that the `llama` extra installs and that is tested."""

ADD_ENGINE = "install llm-router-mesh[llama]; in a clone: uv run --extra llama llm-router"
"""How to add the engine, in a line. It is compiled on the machine: minutes, and a C++ compiler."""

_LLAMA_CPP_COMMITS = {"0.3.36": "0c1e57098", "0.3.35": "4df29be4f"}
"""The llama.cpp that a llama-cpp-python holds; source: its CHANGELOG.md. The package itself does not say."""


def our_version() -> str:
    """The version of this program, such as `0.1.0`."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+source"  # run from a folder, not installed


def engine_version() -> str | None:
    """The version of llama-cpp-python, or None without the engine."""
    try:
        return metadata.version(ENGINE_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def llama_cpp_commit(engine: str | None) -> str | None:
    """The llama.cpp commit inside that llama-cpp-python, None if not known."""
    return _LLAMA_CPP_COMMITS.get(engine) if engine else None
