"""`llm-router version`."""

from __future__ import annotations

import platform

import click

from mesh.cli.options import json_option
from mesh.cli.output import print_json
from mesh.version import engine_version, llama_cpp_commit, our_version


@click.command(help="Show the versions of this program and of its engine.")
@json_option
def version(as_json: bool) -> None:
    engine = engine_version()
    commit = llama_cpp_commit(engine)
    if as_json:
        python = platform.python_version()
        print_json({"llm_router": our_version(), "python": python, "llama_cpp_python": engine, "llama_cpp": commit})
        return
    click.echo(f"llm-router {our_version()}")
    click.echo(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    if engine is None:
        click.echo("no engine: llama-cpp-python is not installed")
    else:
        click.echo(f"llama-cpp-python {engine}" + (f" (llama.cpp {commit})" if commit else ""))
