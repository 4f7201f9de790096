"""The program `llm-router`: its commands by name, and the border where every error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from mesh.cli.failure import Exit
from mesh.cli.group import Entry, LazyGroup
from mesh.errors import StartError

COMMANDS = {
    "up": Entry("mesh.cli.up:up", "Start a peer on this machine (also without any command)."),
    "down": Entry("mesh.cli.down:down", "Stop the peer of this machine after its running requests."),
    "run": Entry("mesh.cli.run:run", "Ask a model and print the answer."),
    "chat": Entry("mesh.cli.chat:chat", "Talk with a model."),
    "ps": Entry("mesh.cli.state:ps", "Show the models in memory and what they do."),
    "status": Entry("mesh.cli.state:status", "Show how the peer is."),
    "model": Entry("mesh.cli.model:model", "List, import, show, load, unload and remove models."),
    "peers": Entry("mesh.cli.peers:peers", "List, show, rename, trust and revoke the machines of the mesh."),
    "backend": Entry("mesh.cli.backend:backend", "Use Ollama, LM Studio, vLLM and the like, here or elsewhere."),
    "door": Entry("mesh.cli.door:door", "Let new machines of this network join by themselves for a while, or not."),
    "approve": Entry("mesh.cli.approve:approve", "Let a machine in that asks to join."),
    "deny": Entry("mesh.cli.approve:deny", "Deny a machine that asks to join."),
    "invite": Entry("mesh.cli.invite:invite", "Print the line that lets another machine join."),
    "join": Entry("mesh.cli.join:join", "Join the mesh of another machine."),
    "leave": Entry("mesh.cli.join:leave", "Leave the mesh, and be one of one machine again."),
    "tls": Entry("mesh.cli.tls:tls", "HTTPS for clients, with a certificate of this machine's own."),
    "login": Entry("mesh.cli.login:login", "Log in, and print the token."),
    "logout": Entry("mesh.cli.login:logout", "End a login, on every machine of the mesh."),
    "whoami": Entry("mesh.cli.login:whoami", "Show who is logged in."),
    "keys": Entry("mesh.cli.keys:keys", "List, make, show and revoke API keys."),
    "users": Entry("mesh.cli.users:users", "List, add and remove users, and change what they may do."),
    "identity": Entry("mesh.cli.identity:identity", "Show this machine's identity, or make a new one."),
    "history": Entry("mesh.cli.history:history", "List, show and export the requests that the mesh answered."),
    "audit": Entry("mesh.cli.audit:audit", "List who did what."),
    "logs": Entry("mesh.cli.logs:logs", "Show log lines, the newest last."),
    "backup": Entry(
        "mesh.cli.backup:backup",
        "Write identity, mesh, users, keys, settings and history of this machine into one file.",
    ),
    "restore": Entry("mesh.cli.backup:restore", "Put a backup in the place of what this machine has."),
    "config": Entry("mesh.cli.settings:config", "Show every setting with its value and where it came from."),
    "doctor": Entry("mesh.cli.doctor:doctor", "Check this machine and its network, and say how to fix what is wrong."),
    "env": Entry("mesh.cli.env:env", "Print the variables that point OpenAI clients at this peer."),
    "version": Entry("mesh.cli.version:version", "Show the versions of this program and of its engine."),
    "completion": Entry("mesh.cli.completion:completion", "Print the script that completes commands in a shell."),
    # other names, not in the help
    "start": Entry("mesh.cli.up:up"),
    "serve": Entry("mesh.cli.up:up"),
    "ls": Entry("mesh.cli.model:list_models"),
    "pull": Entry("mesh.cli.model:download"),
    "rm": Entry("mesh.cli.model:remove"),
    "stop": Entry("mesh.cli.model:unload"),
    "key": Entry("mesh.cli.keys:keys"),
    "user": Entry("mesh.cli.users:users"),
}


class Program(LazyGroup):
    """Ends the process with one of `failure.Exit`."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        try:
            result = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
            code = result if isinstance(result, int) else Exit.OK
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            code = Exit.INTERRUPTED
        except StartError as error:
            click.echo(f"error: {error.what}" + (f"\n  fix: {error.fix}" if error.fix else ""), err=True)
            code = error.exit_code
        except BrokenPipeError:  # the reader of our output left: `llm-router ps | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = Exit.FAILED
        except Exception as error:
            if os.environ.get("LLM_ROUTER_LOG_LEVEL", "").lower() in ("debug", "trace"):
                raise
            click.echo(f"error: unexpected {type(error).__name__}: {error}", err=True)
            click.echo("  fix: this is a bug; LLM_ROUTER_LOG_LEVEL=debug shows where", err=True)
            code = Exit.FAILED
        sys.exit(int(code))


def _show_version(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        from mesh.version import our_version

        click.echo(f"llm-router {our_version()}")
        ctx.exit()


program = Program(
    name="llm-router",
    entries=COMMANDS,
    default="up",
    help="The machines of a home lab or an office as one OpenAI-compatible endpoint.",
    epilog="`llm-router` alone starts a peer with the defaults; `llm-router up --help` shows its flags.",
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version and exit.",
        )
    ],
)


def main() -> NoReturn:
    """The entry point of the commands `llm-router` and `llm-node`."""
    if any(value.startswith("powershell_") for name, value in os.environ.items() if name.endswith("_COMPLETE")):
        import mesh.cli.completion  # noqa: F401 - teaches click PowerShell
    program.main()
