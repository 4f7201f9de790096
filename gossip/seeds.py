"""Machines that a person named (LLM_ROUTER_URL), for networks where mDNS does not reach: where their peer ports are.

    host, host:port, http://host:port
      -> every address the name has now
      -> `GET /.well-known/llm-router` where a port answers HTTP, the port itself where it does not
      -> "address:port" of a peer port, offered to whoever dials

Names are resolved anew each time, because addresses change. A seed is asked until it is a member, with longer and
longer pauses up to 30 s, and looked at every 30 s after that: two groups that know each other only through a seed must
merge whenever both are up. Nothing that comes back is believed: the handshake of the dial proves who is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from gossip.interfaces import is_dialable, is_loopback, joined

log = logging.getLogger(__name__)

WELL_KNOWN = "/.well-known/llm-router"
CLIENT_PORT = 8080
PAUSE_S_MIN = 1.0
PAUSE_S_MAX = 30.0
ANSWER_S = 3.0
ANSWER_BYTES_MAX = 4_096
RESOLVE_S = 5.0
SEEDS_MAX = 64
# A name may stand for all peers of a site (a headless service); it may also be anybody's.
ADDRESSES_MAX = 16
ASKED_AT_ONCE = 16

_HOST = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?")


@dataclass(frozen=True, slots=True, order=True)
class Seed:
    """What a person wrote, read. Without a port, the usual ones are tried."""

    host: str
    port: int | None = None

    def __str__(self) -> str:
        return self.host if self.port is None else joined(self.host, self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Where this peer itself listens: a seed that leads there is itself."""

    hosts: frozenset[str] = frozenset()  # its IP addresses; loopback need not be named
    ports: frozenset[int] = frozenset()  # client and peer port

    def is_at(self, host: str, port: int) -> bool:
        """True if that is this peer."""
        return port in self.ports and (host in self.hosts or is_loopback(host))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A peer port that a seed led to."""

    seed: Seed
    address: str  # "host:port" or "[v6]:port"
    mesh: str = ""  # the short mesh id it told over HTTP, unproven; empty when it told none


@dataclass(frozen=True, slots=True, kw_only=True)
class WellKnown:
    """What a peer says of itself on its client port."""

    version: str
    mesh: str
    peer_port: int


def seeds_of(texts: Iterable[str]) -> tuple[Seed, ...]:
    """The seeds of what a person wrote, each once. Raises ValueError, naming the one that cannot be read."""
    found = dict.fromkeys(_seed_of(text.strip()) for text in texts if text.strip())
    if len(found) > SEEDS_MAX:
        raise ValueError(f"{len(found)} peers to join are named; {SEEDS_MAX} are enough, one is usual")
    return tuple(found)


def well_known_of(body: bytes) -> WellKnown | None:
    """The answer of a peer; None when it is not one of ours, or has no peer port."""
    if len(body) > ANSWER_BYTES_MAX:
        return None
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    version, mesh, port = found.get("version"), found.get("mesh"), found.get("peer_port")
    mesh = "" if mesh is None else mesh
    if not (isinstance(version, str) and isinstance(mesh, str) and type(port) is int):
        return None
    if not (len(version) <= 64 and len(mesh) <= 64 and 1 <= port <= 65_535):
        return None
    return WellKnown(version=version, mesh=mesh, peer_port=port)


def pause_s(before_s: float, rng: random.Random) -> float:
    """The next pause, given the last one (0 at first): longer, up to 30 s, and never in step with others.

    "Decorrelated jitter": uniform between the minimum and three times the last
    (aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter).
    """
    return min(PAUSE_S_MAX, rng.uniform(PAUSE_S_MIN, max(PAUSE_S_MIN, before_s) * 3))


class Seeds:
    """Asks the seeds. `own` is asked anew each round, since addresses change."""

    def __init__(self, seeds: Sequence[Seed], *, own: Callable[[], Own], rng: random.Random) -> None:
        self._seeds = tuple(seeds)
        self._own = own
        self._rng = rng
        self._wake = asyncio.Event()
        self._resolver = _Resolver()
        self._reasons: dict[Seed, str] = {}  # why each was no member when last asked
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)

    @property
    def reasons(self) -> dict[Seed, str]:
        """The seeds that are no members, and why."""
        return dict(self._reasons)

    def wake(self) -> None:
        """Ask now, from the shortest pause on: the machine slept, or its address changed."""
        self._wake.set()

    async def run(self, offer: Callable[[Found], Awaitable[bool]]) -> None:
        """For ever. `offer` dials an address and answers True if a member of this mesh is there, at once if it knows
        that already; of several addresses where one seed may be, the next is offered only after a False."""
        if not self._seeds:
            return
        before_s = 0.0
        while True:
            self._wake.clear()
            are_members = await self.round(offer)
            before_s = PAUSE_S_MAX if are_members else pause_s(before_s, self._rng)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(before_s):
                    await self._wake.wait()
            if self._wake.is_set() or are_members:
                before_s = 0.0

    async def round(self, offer: Callable[[Found], Awaitable[bool]]) -> bool:
        """Asks every seed once. True if each of them is a member, or this peer itself."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        connector = aiohttp.TCPConnector(limit=ASKED_AT_ONCE, force_close=True)
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            tasks = [group.create_task(self._try(seed, session, offer)) for seed in self._seeds]
        return all(task.result() for task in tasks)

    async def _try(self, seed: Seed, session: aiohttp.ClientSession, offer: Callable[[Found], Awaitable[bool]]) -> bool:
        hosts = await self._resolver.hosts(seed.host)
        if not hosts:
            self._say(seed, "its name has no address")
            return False
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._try_host(seed, host, session, offer)) for host in hosts]
        reasons = [reason for task in tasks if (reason := task.result())]
        self._say(seed, reasons[0] if reasons else "")
        return not reasons

    async def _try_host(
        self, seed: Seed, host: str, session: aiohttp.ClientSession, offer: Callable[[Found], Awaitable[bool]]
    ) -> str:
        """Why there is no member at this address of the seed; empty if there is one, or it is this peer."""
        own = self._own()
        port = CLIENT_PORT if seed.port is None else seed.port
        if own.is_at(host, port):
            return ""
        async with self._asking:
            heard = await _asked(session, host, port)
        if isinstance(heard, WellKnown):
            ports, reason = [heard.peer_port], "no member answers at its peer port"
        elif heard == "no http" and seed.port is not None:
            # A peer port; or a client port with TLS, whose peer port is the next.
            ports, reason = [port, port + 1], "it is no member"
        else:
            ports, reason = [port + 1], _REASONS[heard]
        for candidate in ports:
            if own.is_at(host, candidate):
                return ""
            mesh = heard.mesh if isinstance(heard, WellKnown) else ""
            if candidate <= 65_535 and await offer(Found(seed=seed, address=joined(host, candidate), mesh=mesh)):
                return ""
        return f"{joined(host, port)}: {reason}"

    def _say(self, seed: Seed, reason: str) -> None:
        """Once for each change, not for each vain attempt."""
        before = self._reasons.pop(seed, None)
        if reason:
            self._reasons[seed] = reason
            if before is None:
                log.warning("seed %s is no member yet, it is asked again: %s", seed, reason)
        elif before is not None:
            log.info("seed %s is a member now", seed)


_REASONS = {
    "refused": "nothing listens there",
    "silent": f"no answer within {ANSWER_S:g} s",
    "no http": "what listens there speaks no HTTP",
    "not ours": "what answers there is no peer",
}


async def _asked(session: aiohttp.ClientSession, host: str, port: int) -> WellKnown | str:
    """What a port says to the well-known question, or the key of `_REASONS` that fits."""
    try:
        url = f"http://{joined(host, port)}{WELL_KNOWN}"
        headers = {"Accept-Encoding": "identity"}
        async with session.get(url, allow_redirects=False, headers=headers) as response:
            if response.status != 200:
                return "not ours"
            body = b""
            while len(body) <= ANSWER_BYTES_MAX and (more := await response.content.read(ANSWER_BYTES_MAX)):
                body += more
            return well_known_of(body) or "not ours"
    except aiohttp.ClientConnectorError:
        return "refused"
    except TimeoutError:
        return "silent"
    except (aiohttp.ClientError, OSError, ValueError):
        return "no http"  # what a TLS port does when it is spoken to in HTTP: it hangs up, or sends an alert


class _Resolver:
    """Names to addresses, in threads of their own: a resolver that hangs holds up neither the loop's few threads nor
    the end of the program."""

    def __init__(self) -> None:
        self._pending: dict[str, asyncio.Future[tuple[str, ...]]] = {}

    async def hosts(self, name: str) -> tuple[str, ...]:
        """The IP addresses of a name; none when it has none, or when that is not known within 5 s."""
        future = self._pending.get(name)
        if future is None:
            loop = asyncio.get_running_loop()
            future = self._pending[name] = loop.create_future()
            future.add_done_callback(lambda _: self._pending.pop(name, None))
            threading.Thread(target=_resolve, args=(name, loop, future), daemon=True, name=f"resolve {name}").start()
        try:
            async with asyncio.timeout(RESOLVE_S):
                return await asyncio.shield(future)
        except TimeoutError:
            return ()


def _resolve(name: str, loop: asyncio.AbstractEventLoop, future: asyncio.Future[tuple[str, ...]]) -> None:
    try:
        rows = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        rows = []
    found = _usable(str(row[4][0]) for row in rows)

    def tell() -> None:
        if not future.done():
            future.set_result(found)

    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(tell)


def _usable(hosts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(host for host in hosts if is_dialable(host) or is_loopback(host)))[:ADDRESSES_MAX]


def _seed_of(text: str) -> Seed:
    wrong = ValueError(f"{text!r} names no peer: host, host:port or http://host:port")
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme.lower() not in ("http", "https"):
        raise wrong
    authority = rest.partition("/")[0]
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?", authority)
    plain = re.fullmatch(r"([^:@\[\]]+)(?::([0-9]{1,5}))?", authority)
    if bracketed is None and plain is None:
        if authority.count(":") < 2 or not _is_ipv6(authority):
            raise wrong
        host, port = authority, None
    else:
        host, port = (bracketed or plain).groups()  # type: ignore[union-attr]  # one of them is there
    if bracketed is not None and not _is_ipv6(host):
        raise wrong
    if plain is not None and not (len(host) <= 253 and _HOST.fullmatch(host)):
        raise wrong
    if port is not None and not 1 <= int(port) <= 65_535:
        raise ValueError(f"{text!r}: ports are 1 to 65535")
    return Seed(host.lower().rstrip("."), None if port is None else int(port))


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text)
    except OSError:
        return False
    return True
