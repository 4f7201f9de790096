"""`llm-router tls ...`: HTTPS with a certificate of this machine's own. It needs no running peer."""

from __future__ import annotations

import ipaddress
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from mesh.accounts import https
from mesh.cli.failure import Exit, Failure
from mesh.cli.group import Entry, LazyGroup
from mesh.cli.options import json_option, with_settings
from mesh.cli.output import print_json
from mesh.cli.state import print_fields
from mesh.config import Config, Loaded
from mesh.hosts import allowed_hosts, own_addresses
from mesh.private import private_folder

FOLDER = "tls"

tls = LazyGroup(
    name="tls",
    help="HTTPS for clients, with a certificate of this machine's own.\n\n"
    "One of an authority is used by its files alone: LLM_ROUTER_TLS_CERT and LLM_ROUTER_TLS_KEY.",
    entries={
        "self-signed": Entry(f"{__name__}:self_signed", "Make a certificate for this machine."),
        "show": Entry(f"{__name__}:show", "Show the certificate that clients see, with its fingerprint."),
    },
)


@click.command(
    name="self-signed",
    help="Make a certificate for this machine.\n\n"
    "It is for the names and addresses that the machine has now, and for every --name. Browsers ask once whether to "
    "trust it: compare the fingerprint. Other programs are told by its file (curl --cacert, SSL_CERT_FILE).",
)
@click.option("--name", "names", multiple=True, metavar="NAME", help="Another name or address; may be repeated.")
@click.option("--force", is_flag=True, help="Replace the certificate that is there.")
@json_option
@with_settings
def self_signed(loaded: Loaded, names: tuple[str, ...], force: bool, as_json: bool) -> None:
    folder = loaded.config.data_dir
    private_folder(folder)  # before the first start it is made here, and a peer refuses one that is open to others
    hosts, addresses = _subjects(loaded.config, names)
    now = datetime.now(UTC).replace(microsecond=0)
    made = https.self_signed(folder / FOLDER, hosts, addresses, now, force=force)
    settings = {"LLM_ROUTER_TLS_CERT": str(made.cert), "LLM_ROUTER_TLS_KEY": str(made.key)}
    fields = {"cert": str(made.cert), "key": str(made.key)} | _fields(made.cert)
    if as_json:
        print_json(fields | {"settings": settings})
        return
    print_fields(fields)
    click.echo("\nto use it, set both and start the peer again:", err=True)
    for name, value in settings.items():
        click.echo(f"{name}={value}")


@click.command(help="Show the certificate that clients see, with its fingerprint.")
@json_option
@with_settings
def show(loaded: Loaded, as_json: bool) -> None:
    path = loaded.config.tls_cert or loaded.config.data_dir / FOLDER / https.CERT_FILE
    if not path.exists():
        raise Failure(f"there is no certificate {path}", fix="llm-router tls self-signed", code=Exit.NOT_FOUND)
    fields = {"cert": str(path)} | _fields(path)
    if as_json:
        print_json(fields)
        return
    print_fields(fields)
    if loaded.config.tls_cert is None:
        click.echo("it is not used: LLM_ROUTER_TLS_CERT and LLM_ROUTER_TLS_KEY are not set", err=True)


def _fields(cert: Path) -> dict[str, Any]:
    found = https.about(cert)
    return {
        "names": list(found.names),
        "valid_until": f"{found.valid_until:%Y-%m-%d}",
        "fingerprint": https.shown(found.fingerprint),
    }


def _subjects(config: Config, asked: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Names and addresses, those first that were asked for. Of the machine's own what fits into no certificate, or no
    other machine can use, is left out."""
    own = allowed_hosts([*config.allowed_hosts, config.ip or "", config.host], own_addresses())
    host = socket.gethostname().lower()
    names: list[str] = []
    addresses: list[str] = []
    for text in [*asked, *sorted(own, key=lambda name: (name != host, name))]:
        address = _address(text)
        if address is None and (text in asked or https.is_name(text)):
            names.append(text)
        elif address is not None and (text in asked or not (address.is_link_local or address.is_multicast)):
            addresses.append(str(address))
    return names, addresses


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
