"""Hashing and checking of passwords."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from inference.errors import InvalidRequest
from mesh.accounts import passwords as module
from mesh.accounts.errors import TooManyLogins
from mesh.accounts.passwords import (
    BYTES_MAX,
    HASH_BYTES,
    LANES,
    MEMORY_KIB,
    NOBODYS,
    PASSES,
    Passwords,
    checked_password,
)


async def test_a_password_is_right_or_wrong() -> None:
    passwords = Passwords()
    phc = await passwords.hashed("correct horse")
    assert await passwords.is_right("correct horse", phc)
    for wrong in ("Correct horse", "correct horse ", "", "correct horse\0"):
        assert not await passwords.is_right(wrong, phc)
    passwords.close()


async def test_the_same_password_hashes_differently_twice_and_both_are_right() -> None:
    """Case 44 of the reference."""
    passwords = Passwords()
    one, other = await passwords.hashed("correct horse"), await passwords.hashed("correct horse")
    assert one != other
    assert await passwords.is_right("correct horse", one) and await passwords.is_right("correct horse", other)
    passwords.close()


async def test_hashes_have_the_parameters_that_owasp_asks_for() -> None:
    passwords = Passwords()
    phc = await passwords.hashed("correct horse")
    assert phc.startswith(f"$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}$")
    assert (MEMORY_KIB, PASSES, LANES) == (19_456, 2, 1)
    passwords.close()


async def test_somebody_unknown_costs_a_whole_hash_too_and_is_never_right() -> None:
    """The library must take the stand-in for a hash, and not refuse its form before it computes."""
    with pytest.raises(InvalidKey):
        Argon2id.verify_phc_encoded(b"x", NOBODYS)
    passwords = Passwords()
    real = await passwords.hashed("correct horse")
    assert [len(part) for part in NOBODYS.split("$")] == [len(part) for part in real.split("$")]
    assert NOBODYS.split("$")[:4] == real.split("$")[:4]
    assert not await passwords.is_right("x", None)
    assert HASH_BYTES == 32
    passwords.close()


@pytest.mark.parametrize(
    "phc",
    [
        "",
        "plain text",
        "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$",
        "$2b$12$abcdefghijklmnopqrstuv",
        f"$argon2id$v=19$m=999999,t=2,p=1${'A' * 22}${'A' * 43}",
        f"$argon2id$v=19$m=19456,t=99,p=1${'A' * 22}${'A' * 43}",
        f"$argon2id$v=19$m=8,t=1,p=16${'A' * 22}${'A' * 43}",
        f"$argon2id$v=19$m=4,t=1,p=8${'A' * 22}${'A' * 43}",
    ],
)
async def test_what_is_no_hash_of_ours_is_never_right_and_costs_no_gigabytes(phc: str) -> None:
    passwords = Passwords()
    assert not await passwords.is_right("x", phc)
    passwords.close()


async def test_a_bounded_number_waits_and_the_rest_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(module, "_is_right", lambda password, phc: gate.wait(30))
    passwords = Passwords(waiting_max=3)
    waiting = [asyncio.create_task(passwords.is_right("x", NOBODYS)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyLogins) as refused:
        await passwords.is_right("x", NOBODYS)
    assert (refused.value.status, refused.value.retry_after_s) == (503, 2)
    gate.set()
    assert await asyncio.gather(*waiting) == [True] * 3
    assert await passwords.is_right("x", NOBODYS)  # there is room again
    passwords.close()


async def test_who_hangs_up_leaves_the_work_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a client that asks and hangs up could fill the queue without end."""
    gate, begun = threading.Event(), threading.Event()

    def slow(password: str, phc: str) -> bool:
        begun.set()
        return gate.wait(30)

    monkeypatch.setattr(module, "_is_right", slow)
    passwords = Passwords(waiting_max=1)
    task = asyncio.create_task(passwords.is_right("x", NOBODYS))
    await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(TooManyLogins):
        await passwords.is_right("x", NOBODYS)
    gate.set()
    passwords.close()


def test_passwords_have_bounds_and_are_not_shown_in_the_complaint() -> None:
    assert checked_password("12345678") == "12345678"
    assert checked_password("ß" * (BYTES_MAX // 2))
    for password in ("", "1234567", "ß" * (BYTES_MAX // 2) + "x", os.urandom(1024).hex()):
        with pytest.raises(InvalidRequest) as refused:
            checked_password(password)
        assert not password or password not in refused.value.message
