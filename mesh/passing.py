"""Passing a request on to the peer that answers it: over mutual TLS, in one hop, and never twice.

`web.passing` decides that it must be, `web.passed` is the other side; here is who is asked, how long, and what it means
when nobody answers. A write that went well is waited for: what was changed through this peer can be read through it.
A peer that is found dead while it is asked ends the waiting (`gone`), so an election never makes anybody hang.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp

from inference.errors import InferenceError, ModelUnavailable, PeerGone
from mesh.calls import PeerCalls
from web.hop import CONTEXT_HEADER, HOP_HEADER
from web.passed import PREFIX, VERSION_HEADER, caller_out
from web.services import Passed, PassedAnswer, PassingFacet

log = logging.getLogger(__name__)

VERSION_LENGTH_MAX = 4096  # as long as mesh.admin.admin makes them
_READS = frozenset({"GET", "HEAD"})


class NobodyAnswers(ModelUnavailable):
    """503: the peer that would answer is not there, or not known yet. Asking again soon is right."""

    code = "no_coordinator"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, code=code, retry_after_s=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a peer may take, in seconds: to begin its answer (it may hash a password, or ask a server on its own
    network), between two pieces of it, and this peer to catch up with what was written."""

    begin_s: float = 20.0
    piece_s: float = 30.0
    catch_up_s: float = 1.0


async def _nothing_to_wait_for(version: str) -> None:
    return None


class Passing:
    """`coordinator` answers the peer id of who coordinates, None while that is not known. `is_alone`: this peer is the
    whole mesh, and owns everything. `resolve` answers the peer id that an id, a prefix or a name means, or raises.
    `caught_up` returns when the admin state here is at least at that version of the owner's. `is_confirmed`: the member
    did not just come by the open door."""

    def __init__(
        self,
        *,
        calls: PeerCalls,
        me: str,
        coordinator: Callable[[], str | None],
        resolve: Callable[[str], str],
        is_alone: Callable[[], bool] = lambda: False,
        caught_up: Callable[[str], Awaitable[None]] = _nothing_to_wait_for,
        is_confirmed: Callable[[str], bool] = lambda peer: True,
        patience: Patience = Patience(),
    ) -> None:
        self._calls = calls
        self._me = me
        self._coordinator = coordinator
        self._resolve = resolve
        self._is_alone = is_alone
        self._caught_up = caught_up
        self._is_confirmed = is_confirmed
        self._patience = patience
        self._waiting: dict[str, set[asyncio.Timeout]] = {}  # for each peer, what waits for its answer to begin

    @property
    def facet(self) -> PassingFacet:
        """What the HTTP surface is given."""
        return PassingFacet(
            is_owner=self.is_owner,
            to_owner=self.to_owner,
            is_this_peer=self.is_this_peer,
            to_peer=self.to_peer,
            keeps_accounts=self.keeps_accounts,
        )

    def is_owner(self) -> bool:
        """True where this peer answers what the coordinator owns."""
        coordinator = self._coordinator()
        return coordinator == self._me or (coordinator is None and self._is_alone())

    def keeps_accounts(self) -> bool:
        """True where users and keys are changed here though another peer coordinates: that one came by the open door
        and nobody confirmed it, so it gets no passwords to see, and what it writes of administrators does not count."""
        coordinator = self._coordinator()
        return coordinator is not None and self._is_confirmed(self._me) and not self._is_confirmed(coordinator)

    def is_this_peer(self, who: str) -> bool:
        """True when `who` means this very peer."""
        try:
            return self._resolve(who) == self._me
        except InferenceError:
            return False

    def gone(self, peer: str) -> None:
        """`peer` is dead, or no member any more: nobody waits for it any longer."""
        now = asyncio.get_running_loop().time()
        for timer in self._waiting.get(peer, ()):
            if not timer.expired():
                timer.reschedule(now)

    @asynccontextmanager
    async def to_owner(self, passed: Passed) -> AsyncIterator[PassedAnswer]:
        """The coordinator's answer. Raises NobodyAnswers at once while there is none."""
        coordinator = self._coordinator()
        if coordinator is None:
            raise NobodyAnswers("The mesh is choosing a coordinator, which answers this; try again in a second.")
        async with self._asked(coordinator, passed, "The coordinator") as answer:
            yield answer

    @asynccontextmanager
    async def to_peer(self, who: str, passed: Passed) -> AsyncIterator[PassedAnswer]:
        """The answer of the peer that `who` means. Raises what `resolve` raises, and NobodyAnswers."""
        async with self._asked(self._resolve(who), passed, "That peer") as answer:
            yield answer

    @asynccontextmanager
    async def _asked(self, peer: str, passed: Passed, subject: str) -> AsyncIterator[PassedAnswer]:
        stack = AsyncExitStack()
        try:
            response = await self._begun(stack, peer, passed, subject)
            headers = {name.lower(): value for name, value in response.headers.items()}
            version = headers.get(VERSION_HEADER)
            if version is None and response.status >= 400:
                raise NobodyAnswers(
                    f"{subject} does not take this from here: it runs another version, or this peer is no member for "
                    f"it (it said {response.status}).",
                    code="not_passed",
                )
            if passed.method not in _READS and response.status < 400:
                await self._follow(version)
            yield PassedAnswer(status=response.status, headers=headers, chunks=self._chunks(response, subject))
        finally:
            # Without the exception: what went wrong between this peer and its client is not the other peer's doing.
            await stack.aclose()

    async def _begun(self, stack: AsyncExitStack, peer: str, passed: Passed, subject: str) -> aiohttp.ClientResponse:
        headers = {
            **passed.headers,
            HOP_HEADER: "1",
            CONTEXT_HEADER: caller_out(passed.caller),
            "x-request-id": passed.request_id,
        }
        if passed.body:
            headers["content-type"] = passed.content_type
        asked = self._calls.stream(peer, passed.method, PREFIX + passed.target, body=passed.body, headers=headers)
        timers = self._waiting.setdefault(peer, set())
        try:
            async with asyncio.timeout(self._patience.begin_s) as timer:
                timers.add(timer)
                try:
                    return await stack.enter_async_context(asked)
                finally:
                    timers.discard(timer)
                    if not timers:
                        self._waiting.pop(peer, None)
        except (PeerGone, TimeoutError) as error:
            log.info("passing on failed", extra={"peer": peer[:8], "request": passed.request_id, "error": str(error)})
            raise NobodyAnswers(f"{subject} cannot be reached now; try again in a second.") from error

    async def _follow(self, version: str | None) -> None:
        """Waits until what was written is here as well; not for ever."""
        if not version or len(version) > VERSION_LENGTH_MAX:
            return
        try:
            async with asyncio.timeout(self._patience.catch_up_s):
                await self._caught_up(version)
        except TimeoutError:
            log.info("a write is not here yet", extra={"version": version})

    async def _chunks(self, response: aiohttp.ClientResponse, subject: str) -> AsyncIterator[bytes]:
        """The body as it comes; what is not read stays in the buffers of two sockets."""
        try:
            while True:
                async with asyncio.timeout(self._patience.piece_s):
                    piece = await response.content.readany()
                if not piece:
                    return
                yield piece
        except (aiohttp.ClientError, ConnectionError, ssl.SSLError, TimeoutError) as error:
            raise NobodyAnswers(f"{subject} went away while it answered; try again in a second.") from error
