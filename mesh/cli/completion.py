"""`llm-router completion SHELL`: the script that completes commands, and the completion of model names.

click brings bash, zsh and fish; PowerShell is added here.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import click
from click.shell_completion import (
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
)

if TYPE_CHECKING:
    from mesh.cli.client import Peer

_INSTALL = {
    "bash": 'eval "$({program} completion bash)"    in ~/.bashrc',
    "zsh": 'eval "$({program} completion zsh)"    in ~/.zshrc',
    "fish": "{program} completion fish > ~/.config/fish/completions/{program}.fish",
    "powershell": "{program} completion powershell | Out-String | Invoke-Expression    in $PROFILE",
}


@add_completion_class
class PowerShellComplete(ShellComplete):
    """The words so far travel in COMP_WORDS, the one being typed in COMP_LAST, a candidate comes back on each line."""

    name: ClassVar[str] = "powershell"
    source_template: ClassVar[str] = """\
Register-ArgumentCompleter -Native -CommandName %(prog_name)s -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $env:%(complete_var)s = "powershell_complete"
    $env:COMP_WORDS = $commandAst.ToString()
    $env:COMP_LAST = $wordToComplete
    %(prog_name)s | ForEach-Object {
        [System.Management.Automation.CompletionResult]::new($_, $_, "ParameterValue", $_)
    }
    Remove-Item Env:%(complete_var)s, Env:COMP_WORDS, Env:COMP_LAST
}
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        words = shlex.split(os.environ.get("COMP_WORDS", ""), posix=False)
        last = os.environ.get("COMP_LAST", "")
        return (words[1:-1] if last and words and words[-1] == last else words[1:]), last

    def format_completion(self, item: CompletionItem) -> str:
        return str(item.value)


@click.command(help="Print the script that completes commands in a shell.")
@click.argument("shell", type=click.Choice(list(_INSTALL)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    root = ctx.find_root()
    program = root.info_name or "llm-router"
    variable = f"_{program}_COMPLETE".replace("-", "_").replace(".", "_").upper()
    script: type[ShellComplete] | None = get_completion_class(shell)
    assert script is not None
    click.echo(script(root.command, {}, program, variable).source())
    if sys.stdout.isatty():
        click.echo("# " + _INSTALL[shell].format(program=program), err=True)


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The ids of the running peer's models that begin so; nothing when there is no peer."""
    return _completed(ctx, incomplete, lambda peer: [str(model["id"]) for model in peer.models()])


def complete_peer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the machines of the mesh that begin so; nothing when there is no peer."""
    return _completed(ctx, incomplete, lambda peer: [str(found["name"]) for found in peer.get("/api/mesh")["peers"]])


def complete_backend(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the registered servers that begin so; nothing when there is no peer."""
    from mesh.cli.backend import backends

    return _completed(ctx, incomplete, lambda peer: [str(found["machine_name"]) for found in backends(peer)])


def _completed(ctx: click.Context, incomplete: str, names: Callable[[Peer], list[str]]) -> list[CompletionItem]:
    from mesh.cli.client import connect
    from mesh.config import load
    from mesh.errors import StartError

    try:
        found = names(connect(load({"data_dir": ctx.params.get("data_dir")}).config.data_dir))
    except (click.ClickException, StartError):
        return []
    return [CompletionItem(name) for name in found if name.startswith(incomplete)]
