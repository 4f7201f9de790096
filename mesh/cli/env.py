"""`llm-router env`: the variables that point OpenAI clients at this peer, in the words of a shell."""

from __future__ import annotations

import os

import click

from mesh import control
from mesh.cli.options import json_option, with_settings
from mesh.cli.output import print_json
from mesh.config import PLACEHOLDER_KEY, Loaded

_FORMS = {
    "bash": "export {name}={value}",
    "zsh": "export {name}={value}",
    "fish": "set -gx {name} {value}",
    "powershell": '$env:{name} = "{value}"',
}


@click.command(
    help='Print the variables that point OpenAI clients at this peer.\n\nUse it as: eval "$(llm-router env)"'
)
@click.option("--shell", type=click.Choice(list(_FORMS)), help="Whose words to use; guessed when not given.")
@json_option
@with_settings
def env(loaded: Loaded, shell: str | None, as_json: bool) -> None:
    running = control.read(loaded.config.data_dir)
    is_https = loaded.config.tls_cert is not None
    url = running.url if running else control.local_url(loaded.config.host, loaded.config.port, is_https=is_https)
    variables = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": PLACEHOLDER_KEY}
    if as_json:
        print_json(variables)
        return
    for name, value in variables.items():
        click.echo(_FORMS[shell or _guessed()].format(name=name, value=value))
    if running is None:
        click.echo("no peer is running here yet: llm-router", err=True)


def _guessed() -> str:
    if os.name == "nt":
        return "powershell"
    return "fish" if os.environ.get("SHELL", "").endswith("fish") else "bash"
