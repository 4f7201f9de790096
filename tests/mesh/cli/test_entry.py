"""The program itself: its commands, its help, what is mistyped, and how every error ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mesh.cli.backend import backend
from mesh.cli.door import door
from mesh.cli.entry import COMMANDS, Program, program
from mesh.cli.failure import Exit, Failure
from mesh.cli.group import Entry, LazyGroup
from mesh.cli.identity import identity
from mesh.cli.keys import keys
from mesh.cli.model import model
from mesh.cli.peers import peers
from mesh.cli.tls import tls
from mesh.cli.up import up
from mesh.cli.users import users
from mesh.errors import PortBusy
from mesh.settings import LATER, SETTINGS

ROOT = Path(__file__).parents[3]


def llm_router(*arguments: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """The program as a process of its own, in a data folder of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OPENAI_"))}
    return subprocess.run(
        [sys.executable, "-m", "mesh.cli", *arguments],
        env=kept | {"LLM_ROUTER_DATA_DIR": str(folder)} | environ,
        capture_output=True,
        text=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


@pytest.mark.parametrize(
    "group", [program, model, peers, backend, door, identity, tls, keys, users], ids=lambda group: str(group.name)
)
def test_the_help_of_a_group_says_what_its_commands_say_of_themselves(group: LazyGroup) -> None:
    context = click.Context(group)
    for name, entry in group.entries.items():
        command = group.get_command(context, name)
        assert command is not None and command.help, name
        if entry.summary:
            assert command.help.splitlines()[0].startswith(entry.summary.removesuffix(".")), name


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys\nfrom mesh.cli.entry import main\n"
        "sys.argv = ['llm-router', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'aiohttp', 'asyncio', 'rich', 'psutil', 'numpy', 'llama_cpp', 'http.client', 'mesh.settings'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    for flag in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.stdout.startswith(("Usage: llm-router", "llm-router "))
        assert done.stderr == "[]\n"


def test_every_setting_with_a_flag_stands_in_the_help_of_up_and_no_secret_does() -> None:
    help_text = CliRunner().invoke(program, ["up", "--help"], terminal_width=200).output
    options = {option for param in up.params for option in param.opts}
    for setting in SETTINGS:
        assert (setting.flag in options) is setting.has_flag
        assert (f"{setting.flag} " in help_text) is setting.has_flag
        assert (f"[{setting.variable}" in help_text) is setting.has_flag
    assert help_text.count(LATER) == sum(setting.is_later and setting.has_flag for setting in SETTINGS)
    assert "LLM_ROUTER_WORKER" not in help_text


@pytest.mark.parametrize(
    ("typed", "meant"), [(["statsu"], "status"), (["model", "lst"], "list"), (["up", "--prot", "1"], "--port")]
)
def test_a_mistyped_word_is_answered_with_the_nearest(typed: list[str], meant: str) -> None:
    result = CliRunner().invoke(program, typed)
    assert result.exit_code == Exit.USAGE
    assert meant in result.stderr and "id you mean" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--port", "abc"], ["serve"], ["start"], ["up"]])
def test_without_a_command_and_by_its_other_names_it_is_up(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(
        program, arguments, env={"LLM_ROUTER_DATA_DIR": str(tmp_path), "LLM_ROUTER_OPEN": "perhaps"}
    )
    assert result.exit_code == Exit.USAGE
    assert result.stderr.startswith("error: setting ") and "is not allowed; allowed is" in result.stderr


def test_a_setting_that_cannot_be_read_ends_the_start_in_one_line(tmp_path: Path) -> None:
    """F17-F53: a setting that cannot be parsed stops the start with one line."""
    done = llm_router(folder=tmp_path, LLM_ROUTER_PORT="eighty")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: setting port: 'eighty' (environment LLM_ROUTER_PORT) is not allowed; "
        "allowed is a whole number, 0 to 65535 (0: any free one)\n"
    )


def test_the_process_ends_with_the_code_of_its_failure(tmp_path: Path) -> None:
    assert llm_router("version", folder=tmp_path).returncode == 0
    assert llm_router("model", "add", "x", folder=tmp_path).returncode == 1
    assert llm_router("nonsense", folder=tmp_path).returncode == 2
    done = llm_router("ps", folder=tmp_path)
    assert done.returncode == 3
    assert done.stderr == (
        f"error: no peer is running here\n  there is no control.json in {tmp_path}\n"
        "  fix: start one in another terminal: llm-router\n"
    )


def ended(error: BaseException) -> tuple[int, str]:
    """How the program ends when a command raises."""

    def raising() -> None:
        raise error

    this = sys.modules[__name__]
    vars(this)["_raising"] = click.Command("raising", callback=raising)
    result = CliRunner().invoke(Program(name="x", entries={"raising": Entry(f"{__name__}:_raising")}), ["raising"])
    return result.exit_code, result.stderr


def test_every_error_becomes_a_line_and_a_code_and_never_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, sys))
    assert ended(Failure("what", why="why", fix="do", code=Exit.PARTIAL)) == (6, "error: what\n  why\n  fix: do\n")
    assert ended(PortBusy("port 1 is in use", fix="--port 0")) == (1, "error: port 1 is in use\n  fix: --port 0\n")
    assert ended(KeyboardInterrupt())[0] == 130
    code, text = ended(ZeroDivisionError("division by zero"))
    assert code == 1
    assert text.startswith("error: unexpected ZeroDivisionError: division by zero\n")
    assert "Traceback" not in text


@pytest.mark.skipif(os.name != "posix", reason="pipes as a shell makes them")
def test_a_reader_that_leaves_early_makes_no_noise(tmp_path: Path) -> None:
    command = f"{sys.executable} -m mesh.cli config --data-dir {tmp_path} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stderr == ""


def test_both_commands_of_the_distribution_are_this_program() -> None:
    from importlib import metadata

    scripts = {entry.name: entry.value for entry in metadata.entry_points(group="console_scripts")}
    assert scripts["llm-router"] == scripts["llm-node"] == "mesh.cli.entry:main"


@pytest.mark.parametrize("group", ["peers", "door", "identity"])
def test_a_group_that_has_a_default_command_still_has_its_own_help(group: str) -> None:
    asked = CliRunner().invoke(program, [group, "--help"])
    assert asked.exit_code == 0 and "Commands:" in asked.output
    assert "--json" in CliRunner().invoke(program, [group, "list" if group == "peers" else "show", "--help"]).output


def test_hidden_names_are_not_in_the_help() -> None:
    shown = CliRunner().invoke(program, ["--help"]).output
    listed = {line.split()[0] for line in shown.split("Commands:")[1].splitlines() if line.startswith("  ")}
    assert {name for name, entry in COMMANDS.items() if entry.summary} <= listed
    assert listed.isdisjoint({"serve", "ls", "pull", "rm", "stop"})
