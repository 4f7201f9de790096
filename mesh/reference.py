"""The pages that are made from the table of settings: docs/configuration.md and config.example.toml.

`python -m mesh.reference` says whether they are up to date, with `--write` it makes them so; a test holds them equal.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mesh.settings import GROUPS, LATER, Setting

INTRODUCTION = """\
A value comes from the first of: a flag of `llm-router up`, an environment variable, the config file, the default.
`llm-router config` prints every setting with its value and where it came from. A value that cannot be read stops the
start with one line that names it and says what is allowed. An empty variable counts as unset.

The config file is `<data dir>/config.toml`, or the one that `--config` or `LLM_NODE_CONFIG` names. Its keys are the
flags with underscores and without the leading dashes (see [config.example.toml](../config.example.toml)).

Secrets have no flag: a command line is seen by everybody on the machine. Each also has a variable with `_FILE` at its
end (`OPENAI_API_KEY_FILE`) that names a file to read it from. A config file that holds a secret must be readable by its
owner only (`chmod 600`).

Old names still work, with a warning that names the new one; the new one wins.

"Later" marks settings that are read and checked now and take effect in a later version. "Mesh" marks those that the
settings of the whole mesh may give in a later version; they come just before the default then.
"""

GENERATED = "python -m mesh.reference --write"


def default_text(setting: Setting) -> str:
    """The default, as a person reads it."""
    if setting.default_note is not None:
        return setting.default_note
    return f"`{setting.default}`" if setting.default else "none"


def _groups() -> Iterator[tuple[str, list[Setting]]]:
    for title, settings in GROUPS.items():
        if visible := [setting for setting in settings if not setting.is_hidden]:
            yield title, visible


def _allowed(setting: Setting) -> str:
    unit = setting.unit if setting.unit and setting.unit not in setting.kind.allowed else ""
    return setting.kind.allowed + (f"; {unit}" if unit and unit != "bytes" else "")


def configuration_page() -> str:
    """docs/configuration.md."""
    lines = [
        "# Settings",
        "",
        f"<!-- Written by `{GENERATED}` from mesh/settings.py; edit there. -->",
        "",
        *INTRODUCTION.splitlines(),
        "",
    ]
    for group, settings in _groups():
        lines += [f"## {group}", "", "| variable | flag | default | allowed | meaning |", "|---|---|---|---|---|"]
        lines += [_row(setting) for setting in settings]
        lines.append("")
    return "\n".join(lines)


def _row(setting: Setting) -> str:
    names = f"`{setting.variable}`"
    if setting.also:
        names += ", or " + ", ".join(f"`{name}`" for name in setting.also)
    if setting.legacy:
        names += ", old: " + ", ".join(f"`{name}`" for name in setting.legacy)
    marks = " ".join(mark for mark, on in (("Later.", setting.is_later), ("Mesh.", setting.is_mesh)) if on)
    cells = (
        names,
        f"`{setting.flag}`" if setting.has_flag else "",
        default_text(setting),
        _allowed(setting),
        f"{setting.help} {marks}".rstrip(),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def example_file() -> str:
    """config.example.toml: every setting with its default, commented out."""
    lines = [
        "# Settings of llm-router. Copy to ~/.llm-router/config.toml and remove the # of what you change.",
        f"# Written by `{GENERATED}` from mesh/settings.py. A flag and an environment variable win over this file.",
        "",
    ]
    for group, settings in _groups():
        lines += [f"# --- {group} ---", ""]
        for setting in settings:
            if setting.name == "config":
                continue  # the file cannot name itself
            note = f" {LATER}" if setting.is_later else ""
            lines.append(f"# {setting.help.replace('`', '')}{note}")
            lines.append(f"# {_allowed(setting)}; default: {default_text(setting).replace('`', '')}")
            lines += [f"# {setting.name} = {_example_value(setting)}", ""]
    return "\n".join(lines)


def _example_value(setting: Setting) -> str:
    value = setting.default or ""
    if setting.kind.metavar.endswith(",..."):
        return "[]"
    if setting.kind.is_switch:
        return value or "true"
    if re.fullmatch(r"\d+", value):
        return value
    return f'"{value}"'


def main(arguments: list[str]) -> int:
    """`--write` brings both files up to date; without it, exit 1 if they are not."""
    root = Path(__file__).resolve().parent.parent
    stale = 0
    for path, text in (
        (root / "docs/configuration.md", configuration_page()),
        (root / "config.example.toml", example_file()),
    ):
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if arguments == ["--write"]:
            path.write_text(text, encoding="utf-8")
        else:
            print(f"{path} is not what mesh/settings.py says; run `{GENERATED}`", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
