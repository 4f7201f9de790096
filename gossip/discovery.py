"""Peers on the same network find each other by multicast DNS (RFC 6762) and DNS-SD (RFC 6763), over zeroconf.

Each peer announces `<peer id>._llm-router._tcp.local.` with its port, addresses and a small TXT record, and hears
those of the others as hints (gossip.hints). That is all: who is alive and who belongs is decided elsewhere, by
connections that prove who is there. The coordinator may publish a name as well, so that clients have one address for
the whole mesh.

What zeroconf 0.154 does and does not do, which shaped this module:

- It probes for the uniqueness of a name, and renames or refuses. Here nothing is renamed: the instance is the peer's
  id, and a second machine that uses it (a copied data folder) is to be heard of, not stepped aside for. Nor is
  `llm-router.local` probed for: the next coordinator takes it over while the last one's record is still in caches; the
  cache-flush bit (RFC 6762, section 10.2) makes the others drop that within a second. So services go straight into
  the registry, and the announcements are sent from here.
- Its browser calls nobody when a known service is announced again, asks again only after three quarters of 75 minutes,
  and then lists everything it ever heard. So records are listened to directly, and questions are asked from here: at 0,
  1, 3 and 7 s after a start or a change, then every minute, naming at most 64 known answers.
- It does not notice that an address changed; whoever calls `addresses_are` does (gossip.interfaces.watch).
- What it keeps of the network is bounded (10,000 records), and packets that cannot be read are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from zeroconf import Error, ServiceInfo, Zeroconf
from zeroconf.asyncio import AsyncZeroconf

from gossip import records
from gossip.bucket import Bucket
from gossip.hints import AGAIN_S, KNOWN_MAX, Hint, Pace
from gossip.interfaces import Choice, dial_order

log = logging.getLogger(__name__)

FIRST_QUESTION_S = (0.02, 0.12)
"""RFC 6762, section 5.2: machines switched on together do not ask all at once."""
FIRST_PAUSES_S: tuple[float, ...] = (1.0, 2.0, 4.0)
PAUSE_S = 60.0
"""Two networks that are joined by a cable find each other within this."""
CLOSE_S = 1.0
GOODBYES_S = 0.25
GOODBYE_AGAIN_S = 1.0
ASKED_PER_S, ASKED_BURST = 2.0, 16.0
"""Of records that were missing beside a pointer: a flood of pointers must not make us flood."""


class Discovery:
    """Announces this peer and listens for others. Belongs to the loop it was started in.

    `on_hint` is called in that loop and must not wait. A hint with this peer's own id comes when another machine
    announces it too. Trouble with the network never raises: it is a warning, and tried again.
    """

    def __init__(
        self,
        *,
        me: str,
        port: int,
        mesh: str,
        version: str,
        choice: Choice,
        on_hint: Callable[[Hint], None],
        rng: random.Random,
    ) -> None:
        self._me = me
        self._port = port
        self._mesh = mesh
        self._version = version
        self._choice = choice
        self._on_hint = on_hint
        self._rng = rng
        self._zeroconf: AsyncZeroconf | None = None
        self._names: dict[str, int] = {}  # published host names, and the client port behind them
        self._known: dict[str, tuple[Hint, float]] = {}  # the newest last, and when it was told
        self._changed = asyncio.Event()
        self._updating = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._has_warned = False

    @property
    def is_running(self) -> bool:
        """False while multicast does not work on this machine."""
        return self._zeroconf is not None

    @property
    def hints(self) -> tuple[Hint, ...]:
        """What was heard last of each peer that has not left, this one apart; unproven."""
        return tuple(hint for hint, _ in self._known.values() if hint.peer_id != self._me)

    async def start(self) -> None:
        """Announces and listens from now on, until `close`. Never raises: a network without multicast is a warning."""
        assert self._keeping is None, "already started"
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)  # what strangers send, and dead sockets, are no news
        loop = asyncio.get_running_loop()
        self._pace = Pace(loop.time())
        self._asked = Bucket(rate=ASKED_PER_S, burst=ASKED_BURST, now=loop.time())
        await self._open()
        self._keeping = loop.create_task(self._keep(), name="discovery")
        self._keeping.add_done_callback(_say_if_failed)

    async def close(self) -> None:
        """Says goodbye and stops, within a second."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
        if self._timer is not None:
            self._timer.cancel()
        opened, self._zeroconf = self._zeroconf, None
        if opened is not None:
            await _closed(opened)

    def update(self, *, mesh: str | None = None, port: int | None = None) -> None:
        """Another mesh id or peer port: told at once."""
        self._mesh = self._mesh if mesh is None else mesh
        self._port = self._port if port is None else port
        self._register()
        self._changed.set()

    async def addresses_are(self, choice: Choice) -> None:
        """This machine's addresses changed: others are told, through the interfaces it has now."""
        self._choice = choice
        self._register()
        await self._use_interfaces(choice.multicast)
        self._changed.set()

    async def refresh(self) -> None:
        """The machine slept: joins the multicast groups anew, asks who is there, and tells everything again."""
        if self._keeping is None:
            return
        await self._use_interfaces(())
        await self._use_interfaces(self._choice.multicast)
        for peer_id, (hint, _) in self._known.items():
            self._known[peer_id] = (hint, -AGAIN_S)
            self._heard(peer_id)
        self._tell_due()
        self._changed.set()

    def publish_name(self, name: str, port: int) -> None:
        """`name` ("llm-router.local") leads to this machine from now on, whoever had it. `port`: of the client port."""
        self._names[name] = port
        self._register()
        self._changed.set()

    def unpublish_name(self, name: str) -> None:
        """It leads here no more. Another machine that published the same name meanwhile keeps it."""
        if self._names.pop(name, None) is None or self._zeroconf is None:
            return
        zeroconf = self._zeroconf.zeroconf
        info = self._name_service(name, self._port)
        zeroconf.registry.async_remove(info)
        goodbye = zeroconf.generate_service_broadcast(info, 0)
        zeroconf.async_send(goodbye)
        asyncio.get_running_loop().call_later(GOODBYE_AGAIN_S, zeroconf.async_send, goodbye)

    # -- what this peer says

    async def _open(self) -> None:
        opened: AsyncZeroconf | None = None
        try:
            opened = AsyncZeroconf(interfaces=list(self._choice.multicast))
            await opened.zeroconf.async_wait_for_start()
        except asyncio.CancelledError:
            if opened is not None:
                opened.zeroconf.engine.close()
            raise
        except (OSError, RuntimeError, Error, TimeoutError) as error:
            if opened is not None:
                await _closed(opened)
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    "multicast DNS does not work here, peers are not found by themselves: %s. "
                    "Name one of them in LLM_ROUTER_URL",
                    error,
                )
            return
        if self._has_warned:
            self._has_warned = False
            log.info("multicast DNS works now")
        self._zeroconf = opened
        opened.zeroconf.async_add_listener(records.Listener(self._heard, self._tell_due), None)
        self._register()

    async def _keep(self) -> None:
        """Asks and announces: often at first and after each change, then every minute."""
        await asyncio.sleep(self._rng.uniform(*FIRST_QUESTION_S))
        while True:
            self._changed.clear()
            for is_first, pause_s in self._schedule():
                if self._zeroconf is None:
                    await self._open()
                if self._zeroconf is not None:
                    zeroconf = self._zeroconf.zeroconf
                    if is_first:
                        for info in zeroconf.registry.async_get_service_infos():
                            zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
                    zeroconf.async_send(records.who_is_there(zeroconf))
                try:
                    async with asyncio.timeout(pause_s):
                        await self._changed.wait()
                    break
                except TimeoutError:
                    pass

    def _schedule(self) -> Iterator[tuple[bool, float]]:
        """Whether to announce as well, and the pause after."""
        for pause_s in (*FIRST_PAUSES_S, PAUSE_S):
            yield True, pause_s
        while True:
            yield False, PAUSE_S * self._rng.uniform(0.9, 1.1)

    def _register(self) -> None:
        """What is answered to questions from now on."""
        if self._zeroconf is None:
            return
        own = records.own_service(
            me=self._me, port=self._port, mesh=self._mesh, version=self._version, hosts=self._choice.advertised
        )
        for info in (own, *(self._name_service(name, port) for name, port in self._names.items())):
            self._zeroconf.zeroconf.registry.async_update(info)

    def _name_service(self, name: str, port: int) -> ServiceInfo:
        return records.name_service(name, me=self._me, port=port, hosts=self._choice.advertised)

    async def _use_interfaces(self, addresses: Iterable[str]) -> None:
        async with self._updating:
            if self._zeroconf is None:
                return
            try:
                await self._zeroconf.async_update_interfaces(list(addresses))
            except (OSError, RuntimeError, Error, TimeoutError) as error:
                log.warning("an interface cannot be used for multicast DNS: %s", error)

    # -- what others say

    def _heard(self, peer_id: str) -> None:
        self._pace.add(peer_id, asyncio.get_running_loop().time())

    def _tell_due(self) -> None:
        """Tells of those whose turn it is, and comes back when it is the next one's."""
        loop = asyncio.get_running_loop()
        if self._zeroconf is None:
            return
        for peer_id in self._pace.take(loop.time()):
            self._tell(peer_id, self._zeroconf.zeroconf)
        if self._timer is not None:
            self._timer.cancel()
        wait_s = self._pace.wait_s(loop.time())
        self._timer = None if wait_s is None else loop.call_later(wait_s, self._tell_due)

    def _tell(self, peer_id: str, zeroconf: Zeroconf) -> None:
        before, told_at = self._known.pop(peer_id, (None, 0.0))
        if not records.is_announced(zeroconf, peer_id):
            if peer_id == self._me:
                self._changed.set()  # somebody said goodbye in our name: we are still here
            elif before is not None:
                self._on_hint(replace(before, is_removed=True))
            return
        now = asyncio.get_running_loop().time()
        if not records.is_complete(zeroconf, peer_id):
            if before is not None:
                self._known[peer_id] = (before, told_at)
            if self._asked.has(now) >= 1.0:  # the answer leads back here
                self._asked.charge(1.0)
                zeroconf.async_send(records.what_is_missing(peer_id))
            return
        found = records.heard(zeroconf, peer_id)
        hint = None if found is None else self._as_seen_from_here(found)
        if hint is None:
            return
        is_news = hint != before or now - told_at >= AGAIN_S
        self._known[peer_id] = (hint, now if is_news else told_at)  # as the newest
        if len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]
        if is_news:
            self._on_hint(hint)

    def _as_seen_from_here(self, hint: Hint) -> Hint | None:
        """The addresses in the order to try; None if there is none, or if these are this peer's own words."""
        hosts = dial_order(hint.hosts, self._choice)
        if hint.peer_id == self._me and hint.port == self._port:
            hosts = tuple(host for host in hosts if host not in self._choice.advertised)
        if not hosts:
            return None
        return replace(hint, hosts=hosts)


def _say_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("peers are not asked for any more, found ones stay: a bug", exc_info=error)


async def _closed(opened: AsyncZeroconf) -> None:
    """Says goodbye in a quarter of a second, and closes; the sockets even if that takes too long."""
    try:
        async with asyncio.timeout(CLOSE_S):
            for out in records.goodbyes(opened.zeroconf):
                opened.zeroconf.async_send(out)
                await asyncio.sleep(GOODBYES_S / 2)
            await opened.async_close()
    except (TimeoutError, OSError, RuntimeError, Error) as error:
        log.debug("mDNS did not close in order: %s", error)
    finally:
        with contextlib.suppress(OSError, RuntimeError, Error):
            opened.zeroconf.engine.close()
