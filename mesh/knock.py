"""Who answers at a peer port, as anybody may ask: without a certificate of this machine's own, and telling nothing.

TLS proves the certificate that is shown, and with it the peer's id. The refusal that follows (members only) carries the
clock of that machine in its Date header. For the doctor, who is no member: nothing here decides who belongs.
"""

from __future__ import annotations

import email.utils
import errno
import http.client
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gossip.errors import BadCertificate
from gossip.identity import peer_id_of
from gossip.interfaces import split

TIMEOUT_S = 2.0
ALL_S = 4.0

Reason = Literal["", "refused", "silent", "no route", "not allowed", "no peer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knock:
    """`peer`: the proven id of who answered; else the reason why none did. `ahead_s`: its clock less ours."""

    address: str
    peer: str = ""
    reason: Reason = ""
    ahead_s: float | None = None


def knocked(address: str, timeout_s: float = TIMEOUT_S) -> Knock:
    """Blocks for at most about twice `timeout_s`; never raises."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the id is looked at instead
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        host, port = split(address)
        connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
        try:
            connection.connect()
            peer = peer_id_of(connection.sock.getpeercert(binary_form=True) or b"")
            return Knock(address=address, peer=peer, ahead_s=_ahead_s(connection))
        finally:
            connection.close()
    except TimeoutError:
        return Knock(address=address, reason="silent")
    except (ssl.SSLError, BadCertificate, http.client.HTTPException, ValueError):
        return Knock(address=address, reason="no peer")
    except OSError as error:
        return Knock(address=address, reason=_reason(error))


def all_knocked(addresses: Iterable[str], within_s: float = ALL_S) -> list[Knock]:
    """All at once, in order. Who has not answered within that time is silent."""
    found = {address: Knock(address=address, reason="silent") for address in addresses}

    def knock(address: str) -> None:
        found[address] = knocked(address)

    threads = [threading.Thread(target=knock, args=(address,), name="knock", daemon=True) for address in found]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(found.values())


def _ahead_s(connection: http.client.HTTPSConnection) -> float | None:
    """None when it does not say. A Date has whole seconds: half a one is added."""
    try:
        began = time.time()
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read(4096)
        theirs = email.utils.parsedate_to_datetime(response.getheader("Date") or "")
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        return None
    return theirs.timestamp() + 0.5 - (began + time.time()) / 2


def _reason(error: OSError) -> Reason:
    match error.errno:
        case errno.ECONNREFUSED:
            return "refused"
        case errno.EHOSTUNREACH | errno.ENETUNREACH | errno.EADDRNOTAVAIL | errno.EINVAL:
            return "no route"
        case errno.EPERM | errno.EACCES:
            return "not allowed"
        case errno.ETIMEDOUT:
            return "silent"
        case _:
            return "no peer"
