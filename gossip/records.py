"""The DNS records that peers announce, ask for, take back and hear: RFC 1035, 2782 (SRV), 6762 (mDNS), 6763 (DNS-SD).

Built with zeroconf's own parts, some of which it does not export. When they are sent, and what is made of those that
come in, is in gossip.discovery and gossip.hints.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable, Sequence

from zeroconf import RecordUpdate, RecordUpdateListener, ServiceInfo, Zeroconf, current_time_millis
from zeroconf._dns import DNSAddress, DNSQuestion
from zeroconf._protocol.outgoing import DNSOutgoing
from zeroconf.asyncio import AsyncServiceInfo

from gossip.hints import SERVICE, Hint, hint_of, host_name, peer_named, service_name, txt_of

KNOWN_ANSWERS_MAX = 64
FLUSHED_TTL_S = 1
"""RFC 6762, section 10.2. Our own records live 120 s."""

_A, _PTR, _TXT, _AAAA, _SRV, _IN = 1, 12, 16, 28, 33, 1
_QUERY, _ANSWER = 0, 0x8400
_NAME_SERVICE = "_http._tcp.local."


# -- what a peer announces


def own_service(*, me: str, port: int, mesh: str, version: str, hosts: Sequence[str]) -> ServiceInfo:
    """The service of a peer."""
    return ServiceInfo(
        SERVICE,
        service_name(me),
        port=port,
        properties=txt_of(version=version, mesh=mesh, peer_id=me),
        server=host_name(me),
        parsed_addresses=list(hosts),
    )


def name_service(name: str, *, me: str, port: int, hosts: Sequence[str]) -> ServiceInfo:
    """A web server on the host `name`. The instance is named by the peer, so that its goodbye takes no other's away."""
    return ServiceInfo(
        _NAME_SERVICE,
        f"{name.removesuffix('.local')}-{me[:8]}.{_NAME_SERVICE}",
        port=port,
        properties={"path": "/"},
        server=f"{name}.",
        parsed_addresses=list(hosts),
    )


def goodbyes(zeroconf: Zeroconf) -> list[DNSOutgoing]:
    """Everything announced, taken back three times, each time in other words.

    An answer that waits its turn (up to a second: RFC 6762, section 6) may still go out after the first goodbye, and
    whoever hears the same packet again within 0.8 s drops it.
    """
    infos = zeroconf.registry.async_get_service_infos()
    zeroconf.registry.async_remove(infos)
    found = [DNSOutgoing(_ANSWER) for _ in range(3)] if infos else []
    for info in infos:
        for number, out in enumerate(found):
            out.add_answer_at_time(info.dns_pointer(override_ttl=0), 0)
            if number != 1:
                out.add_answer_at_time(info.dns_service(override_ttl=0), 0)
            if number == 0:
                for record in (info.dns_text(override_ttl=0), *info.dns_addresses(override_ttl=0)):
                    out.add_answer_at_time(record, 0)
    return found


# -- what it asks


def who_is_there(zeroconf: Zeroconf) -> DNSOutgoing:
    """ "Who is there, apart from these?" (RFC 6762, section 7.1)"""
    out = DNSOutgoing(_QUERY)
    out.add_question(DNSQuestion(SERVICE, _PTR, _IN))
    now = current_time_millis()
    fresh = (r for r in zeroconf.cache.get_all_by_details(SERVICE, _PTR, _IN) if not r.is_stale(now))
    for record in itertools.islice(fresh, KNOWN_ANSWERS_MAX):
        out.add_answer_at_time(record, now)
    return out


def what_is_missing(peer_id: str) -> DNSOutgoing:
    """Asks for everything that a pointer to this peer should have brought along."""
    out = DNSOutgoing(_QUERY)
    for kind in (_SRV, _TXT):
        out.add_question(DNSQuestion(service_name(peer_id), kind, _IN))
    for kind in (_A, _AAAA):
        out.add_question(DNSQuestion(host_name(peer_id), kind, _IN))
    return out


# -- what it hears


class Listener(RecordUpdateListener):
    """Hears every record that comes in, before and after it is in zeroconf's cache."""

    def __init__(self, heard: Callable[[str], None], complete: Callable[[], None]) -> None:
        self._heard = heard
        self._complete = complete
        self._is_any = False

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Which peers these are about: new records, the same again, and ends."""
        for update in records:
            record = update.new
            if record.type == _PTR:
                peer_id = peer_named(getattr(record, "alias", "")) if record.name == SERVICE else None
            else:
                peer_id = peer_named(record.name) if record.type in (_SRV, _TXT, _A, _AAAA) else None
            if peer_id is not None:
                self._heard(peer_id)
                self._is_any = True

    def async_update_records_complete(self) -> None:
        """Now the cache holds them."""
        if self._is_any:
            self._is_any = False
            self._complete()


def is_announced(zeroconf: Zeroconf, peer_id: str) -> bool:
    """True if there is a pointer to this peer that was not taken back and has not run out."""
    return zeroconf.cache.current_entry_with_name_and_alias(SERVICE, service_name(peer_id)) is not None


def is_complete(zeroconf: Zeroconf, peer_id: str) -> bool:
    """True if everything that the pointer leads to is known."""
    return AsyncServiceInfo(SERVICE, service_name(peer_id)).load_from_cache(zeroconf)


def heard(zeroconf: Zeroconf, peer_id: str) -> Hint | None:
    """What its records say; None if that is nothing that a peer of ours would say."""
    info = AsyncServiceInfo(SERVICE, service_name(peer_id))
    info.load_from_cache(zeroconf)
    return hint_of(
        name=info.name,
        server=info.server,
        port=info.port,
        properties=info.properties,
        hosts=_hosts(zeroconf, peer_id),
    )


def _hosts(zeroconf: Zeroconf, peer_id: str) -> list[str]:
    """The addresses in the cache, newest first, but for those that newer ones replaced: these get a second to live."""
    now = current_time_millis()
    records = [r for kind in (_A, _AAAA) for r in zeroconf.cache.get_all_by_details(host_name(peer_id), kind, _IN)]
    live = [r for r in records if isinstance(r, DNSAddress) and r.ttl > FLUSHED_TTL_S and not r.is_expired(now)]
    live.sort(key=lambda r: -r.created)
    return [str(ipaddress.ip_address(r.address)) for r in live if len(r.address) in (4, 16)]
