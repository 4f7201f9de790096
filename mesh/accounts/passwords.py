"""Passwords: what one may be, and its Argon2id hash (RFC 9106), made and checked in a thread of their own.

19 MiB and two passes are what OWASP's Password Storage Cheat Sheet asks of Argon2id; measured 35 ms on a desktop core,
and a Raspberry Pi 4 takes about 0.2 s. One at a time, a few wait, the rest is turned away: memory and time are
bounded whoever asks, and the event loop waits for none of it (the library lets the interpreter go on meanwhile).
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from inference.openai.fields import bad_value
from mesh.accounts.errors import TooManyLogins

T = TypeVar("T")

MEMORY_KIB = 19_456
PASSES = 2
LANES = 1
HASH_BYTES = 32
SALT_BYTES = 16
WAITING_MAX = 16
"""Half a second of work on a desktop, three seconds on a Raspberry Pi."""
LENGTH_MIN = 8
BYTES_MAX = 1024

NOBODYS = f"$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}$AAAAAAAAAAAAAAAAAAAAAA$" + "A" * 43
"""The hash of no password: what is checked for a user that does not exist, so that it takes as long."""

_PHC = re.compile(
    r"\$argon2id\$v=19\$m=([0-9]{1,6}),t=([0-9]{1,2}),p=([0-9]{1,2})\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,86}"
)
# Rows come from other peers: none makes this one take gigabytes, or minutes.
_MEMORY_KIB_MAX, _PASSES_MAX, _LANES_MAX = 65_536, 8, 8


def checked_password(password: str, param: str = "password") -> str:
    """`password`, if it may be one. Raises InvalidRequest, which never shows it."""
    if len(password) < LENGTH_MIN:
        raise bad_value(param, f"a password has at least {LENGTH_MIN} characters")
    if len(password.encode("utf-8", "surrogatepass")) > BYTES_MAX:
        raise bad_value(param, f"a password has at most {BYTES_MAX} bytes")
    return password


class Passwords:
    """Hashes and checks. `close` ends the thread."""

    def __init__(self, waiting_max: int = WAITING_MAX) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="passwords")
        self._waiting_max = waiting_max
        self._waiting = 0
        self._counting = threading.Lock()

    async def hashed(self, password: str) -> str:
        """The PHC string of the password, with a new salt. Raises TooManyLogins."""
        return await self._run(lambda: _hashed(password))

    async def is_right(self, password: str, phc: str | None) -> bool:
        """Whether that is the password; `phc` None, for somebody unknown, takes as long. Raises TooManyLogins."""
        is_same = await self._run(lambda: _is_right(password, phc or NOBODYS))
        return is_same and phc is not None

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= self._waiting_max:
            raise TooManyLogins("More passwords wait to be checked than this machine can; try again.", retry_after_s=2)
        with self._counting:
            self._waiting += 1
        job = self._thread.submit(work)
        job.add_done_callback(lambda _: self._done())  # not when the caller goes away: the work is still there
        return await asyncio.wrap_future(job)

    def _done(self) -> None:
        with self._counting:
            self._waiting -= 1


def _hashed(password: str) -> str:
    return _argon2id(os.urandom(SALT_BYTES)).derive_phc_encoded(_bytes(password))


def _is_right(password: str, phc: str) -> bool:
    found = _PHC.fullmatch(phc)
    if found is None or int(found[1]) > _MEMORY_KIB_MAX or int(found[2]) > _PASSES_MAX or int(found[3]) > _LANES_MAX:
        return False
    try:
        Argon2id.verify_phc_encoded(_bytes(password), phc)
    except (InvalidKey, ValueError):  # the latter: it only looked like a hash
        return False
    return True


def _argon2id(salt: bytes) -> Argon2id:
    return Argon2id(salt=salt, length=HASH_BYTES, iterations=PASSES, lanes=LANES, memory_cost=MEMORY_KIB)


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")
