"""What `llm-router up` prints: the start, and the drain at the end. Pure texts from values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.cli.output import count, harmless
from mesh.version import ADD_ENGINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What there is to say. `engine` is the llama-cpp-python version, None without the extra; `url` without path.

    `gpus` are names; `models` the number on disk besides the built-in one. `lan_url` is how other machines reach it,
    None when they cannot; `is_open`: they need no key. `mesh` says where it stands with other machines (empty: nothing
    to say; it may have several lines). `warnings` are shown last, each one line.
    """

    name: str
    version: str
    engine: str | None
    gpus: tuple[str, ...] = ()
    cores: int
    memory_bytes: int
    models: int
    models_dir: Path
    url: str
    lan_url: str | None = None
    is_open: bool = False
    mesh: str = ""
    warnings: Sequence[str] = ()


def greeting(start: Start) -> str:
    """Several lines, the URL and the next command among them."""
    models = f"{start.models} in {start.models_dir}"
    rows = [
        ("engine", f"llama.cpp (llama-cpp-python {start.engine})" if start.engine else "none: no model can run here"),
        ("hardware", _hardware(start)),
        ("models", models if start.models or start.engine is None else f"{models}; the built-in one answers as hello"),
        ("API", f"{start.url}/v1"),
        *([("network", f"{start.lan_url}/v1, with an API key")] if start.lan_url and not start.is_open else []),
        ("dashboard", f"{start.url}/dashboard"),
        *([("mesh", harmless(start.mesh))] if start.mesh else []),
    ]
    lines = [f"{start.name}: llm-router {start.version} is ready", ""]
    below = "\n" + " " * 13
    lines += [f"  {label:<10} {text.replace(chr(10), below)}" for label, text in rows]
    lines += ["", f"  export OPENAI_BASE_URL={start.url}/v1"]
    if start.engine:
        lines += ['  llm-router run hello "What are you?"', ""]
    else:
        lines += [f"  to add the engine, {ADD_ENGINE}", "  (it is compiled: minutes, and a C++ compiler)", ""]
    if start.lan_url and start.is_open:
        lines += [f"  OPEN: other machines use {start.lan_url}/v1, and whoever reaches it needs no key.", ""]
    lines += [f"  warning: {line}" for line in start.warnings]
    return "\n".join(lines).rstrip() + "\n"


def draining(requests: int) -> str:
    """At the first Ctrl+C, when requests are still running."""
    return f"draining {count(requests, 'request')}, Ctrl+C again to stop now"


def _hardware(start: Start) -> str:
    memory = f"{start.memory_bytes / 1024**3:.0f} GiB memory"
    machine = f"{count(start.cores, 'core')}, {memory}"
    return f"{', '.join(start.gpus)}; {machine}" if start.gpus else f"CPU ({machine}), no GPU seen"
