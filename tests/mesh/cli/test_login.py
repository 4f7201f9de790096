"""`llm-router login`, `logout`, `whoami`: the real command line against the real HTTP surface."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mesh import control
from mesh.accounts.https import self_signed, server_context
from mesh.cli.entry import Program
from mesh.cli.failure import Exit
from mesh.cli.group import Entry
from tests.fixtures.accounted import Accounted
from tests.fixtures.scripted_mesh import ScriptedMesh, services
from web.listener import Listener
from web.services import AccountsFacet, Caller, Login, Principal

ROOT = Path(__file__).parents[3]
CONTROL = "control-t0ken"
SESSION = Principal(user_id="u-ann", username="ann", role="admin", session_id="s1", csrf="c")
KEY = Principal(key_id="k1", key_name="scripts", scopes=frozenset({"inference"}))
PROGRAM = Program(
    name="llm-router", entries={name: Entry(f"mesh.cli.login:{name}", name) for name in ("login", "logout", "whoami")}
)
Run = Callable[..., Awaitable[Result]]


@dataclass
class House:
    """A peer with users; `callers` is who asked to log in, by then."""

    accounts: Accounted = field(default_factory=lambda: Accounted(secrets={"a.b.c": SESSION, "sk-mesh-1": KEY}))
    callers: list[Caller] = field(default_factory=list)
    port: int = 0

    def facet(self) -> AccountsFacet:
        facet = self.accounts.facet()

        async def login(username: str, password: str, caller: Caller) -> Login:
            self.callers.append(caller)
            return await facet.login(username, password, caller)

        return replace(facet, login=login)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House()
    listener = Listener(replace(services(ScriptedMesh(), CONTROL), accounts=house.facet()), [("127.0.0.1", 0)])
    await listener.start()
    house.port = listener.port
    url = control.local_url("127.0.0.1", listener.port)
    control.publish(tmp_path, port=listener.port, url=url, version="0.1.0", token=CONTROL)
    yield house
    await listener.close(0)


@pytest.fixture
def run() -> Run:
    async def run(*arguments: str, stdin: str = "", token: str | None = None) -> Result:
        env = {"LLM_ROUTER_TOKEN": token}
        return await asyncio.to_thread(CliRunner().invoke, PROGRAM, arguments, input=stdin, env=env)

    return run


async def test_login_prints_the_token_and_nothing_else_on_stdout(house: House, run: Run) -> None:
    result = await run("login", "--username", "ann", "--password-stdin", stdin="open sesame\n")
    assert (result.exit_code, result.stdout) == (0, "a.b.c\n")
    assert result.stderr == "logged in as ann (admin) for 12 h\n"


async def test_login_is_the_users_own_and_not_the_command_lines(house: House, run: Run) -> None:
    """The control token stays out of it: a wrong password must not come through as an administrator."""
    await run("login", "-u", "ann", "--password-stdin", stdin="open sesame")
    await run("login", "-u", "ann", "--password-stdin", stdin="open sesame", token="sk-mesh-1")
    assert [caller.key_id for caller in house.callers] == [None, None]


async def test_login_elsewhere_needs_no_peer_here(house: House, run: Run, tmp_path: Path) -> None:
    (tmp_path / "control.json").unlink()
    url = f"http://127.0.0.1:{house.port}"
    result = await run("login", "--url", url + "/", "-u", "ann", "--password-stdin", stdin="open sesame\r\n")
    assert (result.exit_code, result.stdout) == (0, "a.b.c\n")
    result = await run("login", "-u", "ann", "--password-stdin", stdin="open sesame")
    assert result.exit_code == Exit.UNREACHABLE


async def test_a_password_over_plain_http_to_another_machine_is_warned_of(house: House, run: Run) -> None:
    def login(url: str) -> Awaitable[Result]:
        return run("login", "--url", url, "-u", "ann", "--password-stdin", stdin="open sesame")

    elsewhere = f"http://0.0.0.0:{house.port}"  # a name of this machine that is not known as one
    assert f"goes over the network unencrypted, to {elsewhere}" in (await login(elsewhere)).stderr
    for here in ("127.0.0.1", "localhost"):
        assert "warning" not in (await login(f"http://{here}:{house.port}")).stderr


async def test_a_wrong_password_is_not_allowed_and_prints_no_token(house: House, run: Run) -> None:
    result = await run("login", "-u", "ann", "--password-stdin", stdin="wrong")
    assert (result.exit_code, result.stdout) == (Exit.NOT_ALLOWED, "")
    assert "error: That user name or password is wrong." in result.stderr
    assert "wrong\n" not in result.stderr.replace("is wrong.\n", "")


async def test_with_json_stdout_is_the_answer(house: House, run: Run) -> None:
    result = await run("login", "-u", "ann", "--password-stdin", "--json", stdin="open sesame")
    answer = json.loads(result.stdout)
    assert (answer["token"], answer["csrf"], answer["expires_in"]) == ("a.b.c", "csrf", 43_200)


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (("--password-stdin",), "open sesame"),
        (("-u", "ann", "--password-stdin"), ""),
        (("-u", "ann", "--password-stdin"), "\n"),
        (("-u", "ann", "--password-stdin"), "a" * 5000),
        (("-u", "ann"), "open sesame"),
        (("-u", "ann", "--password", "open sesame"), ""),
        (("-u", "ann", "--password-stdin", "--url", "attic"), "open sesame"),
        (("-u", "ann", "--password-stdin", "--url", "https://attic", "--fingerprint", "12:34"), "open sesame"),
        (("-u", "ann", "--password-stdin", "--url", "http://attic", "--fingerprint", "0" * 64), "open sesame"),
        (("-u", "ann", "--password-stdin", "--fingerprint", "0" * 64), "open sesame"),
        (("-u", "ann", "--password-stdin", "--url", "https://attic", "--fingerprint", "g" * 64), "open sesame"),
    ],
)
async def test_what_cannot_be_is_a_usage_error_and_asks_nobody(
    house: House, run: Run, arguments: tuple[str, ...], stdin: str
) -> None:
    result = await run("login", *arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (Exit.USAGE, "")
    assert house.callers == []


async def test_whoami_is_the_command_line_or_the_user_and_no_key(house: House, run: Run) -> None:
    assert (await run("whoami")).stdout == "the command line of this machine, which may do everything\n"
    assert (await run("whoami", token="a.b.c")).stdout == "ann (admin)\n"
    result = await run("whoami", token="sk-mesh-1")
    assert (result.exit_code, result.stdout) == (Exit.NOT_ALLOWED, "")
    answer = json.loads((await run("whoami", "--json", token="a.b.c")).stdout)
    assert answer["user"] == {"id": "u-ann", "username": "ann", "role": "admin"}
    url = f"http://127.0.0.1:{house.port}"
    assert (await run("whoami", "--url", url, token="a.b.c")).stdout == "ann (admin)\n"


async def test_a_token_that_is_over_is_not_allowed(house: House, run: Run) -> None:
    result = await run("whoami", token="x.y.z")
    assert (result.exit_code, result.stdout) == (Exit.NOT_ALLOWED, "")


async def test_the_control_token_is_never_sent_elsewhere(house: House, run: Run) -> None:
    result = await run("whoami", "--url", f"http://127.0.0.1:{house.port}")
    assert result.exit_code == Exit.NOT_ALLOWED
    assert "LLM_ROUTER_TOKEN is not set" in result.stderr


async def test_logout_ends_the_login_of_the_variable(house: House, run: Run) -> None:
    result = await run("logout", token="a.b.c")
    assert (result.exit_code, result.stdout) == (0, "logged out; the token is good for nothing now\n")
    assert house.accounts.asked == [("logout",)]
    result = await run("logout")
    assert result.exit_code == Exit.NOT_ALLOWED


@pytest.mark.parametrize("token", ["a b", "a\x1bb", "é", "a\nb: c"])
async def test_what_is_no_token_is_not_sent(house: House, run: Run, token: str) -> None:
    result = await run("logout", token=token)
    assert result.exit_code == Exit.USAGE
    assert token not in result.output
    assert house.accounts.asked == []


async def test_login_over_https_with_the_fingerprint_as_it_was_printed(run: Run, tmp_path: Path) -> None:
    made = self_signed(tmp_path / "own", ["attic"], [], datetime.now(UTC))
    house = House()
    given = replace(services(ScriptedMesh(), CONTROL), accounts=house.facet())
    context = server_context(made.cert, made.key, datetime.now(UTC))
    listener = Listener(given, [("127.0.0.1", 0)], ssl_context=context)
    await listener.start()
    login = ("login", "--url", f"https://127.0.0.1:{listener.port}", "-u", "ann", "--password-stdin", "--fingerprint")
    pasted = ":".join(made.fingerprint[at : at + 2] for at in range(0, 64, 2)).upper()
    result = await run(*login, pasted, stdin="open sesame")
    assert (result.exit_code, result.stdout) == (0, "a.b.c\n")
    assert "warning" not in result.stderr
    result = await run(*login, "0" * 64, stdin="open sesame")
    assert (result.exit_code, result.stdout) == (Exit.NOT_ALLOWED, "")
    assert len(house.callers) == 1, "the password was sent once, to the right peer"
    await listener.close(0)


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal is POSIX")
async def test_on_a_terminal_the_password_is_asked_for_and_not_shown(house: House) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from mesh.cli.login import login; login()",
        stdin=theirs, stdout=asyncio.subprocess.PIPE, stderr=theirs, cwd=ROOT, start_new_session=True,
        env=os.environ | {"TERM": "dumb"},
        preexec_fn=lambda: terminal_of(theirs),
    )  # fmt: skip
    seen = ""

    async def until(pattern: str) -> None:
        nonlocal seen
        while re.search(pattern, seen) is None:
            seen += (await asyncio.wait_for(asyncio.to_thread(os.read, ours, 65536), 30)).decode()

    try:
        await until(r"username \[admin\]: ")
        os.write(ours, b"ann\n")
        await until("password: ")
        os.write(ours, b"open sesame\n")
        stdout, _ = await asyncio.wait_for(process.communicate(), 30)
        await until("logged in as ann")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
        os.close(theirs)
    assert stdout == b"a.b.c\n"
    assert "open sesame" not in seen


def terminal_of(descriptor: int) -> None:
    """Makes it the terminal of this process, which getpass opens by itself."""
    import fcntl
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
