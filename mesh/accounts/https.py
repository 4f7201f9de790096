"""HTTPS for clients: the context of the listener, and certificates that a peer makes for itself."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfSigned:
    """A certificate with its key, both files. `fingerprint` is the SHA-256 of the certificate."""

    cert: Path
    key: Path
    fingerprint: str


def server_context(cert: Path, key: Path, now: datetime) -> ssl.SSLContext:
    """The TLS of the client listener. Raises StartError for files that cannot be used."""
    raise NotImplementedError


def self_signed(
    folder: Path, names: Sequence[str], addresses: Sequence[str], now: datetime, *, force: bool = False
) -> SelfSigned:
    """Makes a certificate for these names and addresses."""
    raise NotImplementedError
