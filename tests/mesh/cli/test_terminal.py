"""What is different on a terminal: a chat prompt, colour, Ctrl+C. Real processes on a pseudo-terminal."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.mesh.cli.conftest import FakePeer

pty = pytest.importorskip("pty")
ROOT = Path(__file__).parents[3]


class Session:
    """A program on a terminal: what it wrote, and keys to it."""

    def __init__(self, process: asyncio.subprocess.Process, terminal: int) -> None:
        self.process = process
        self._terminal = terminal
        self.text = ""

    async def until(self, pattern: str) -> str:
        """Reads until the text that is not yet taken matches, and takes it."""
        while (match := re.search(pattern, self.text, re.DOTALL)) is None:
            data = await asyncio.wait_for(asyncio.to_thread(os.read, self._terminal, 65536), 30)
            self.text += data.decode()
        taken, self.text = self.text[: match.end()], self.text[match.end() :]
        return taken

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())


@asynccontextmanager
async def on_terminal(*arguments: str) -> AsyncIterator[Session]:
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mesh.cli", *arguments,
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True,
            env=os.environ | {"TERM": "dumb", "NO_COLOR": ""},
        )  # fmt: skip
        try:
            yield Session(process, ours)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    finally:
        os.close(ours)
        os.close(theirs)


async def test_run_without_a_prompt_on_a_terminal_is_a_chat(peer: FakePeer) -> None:
    async with on_terminal("run", "hello") as session:
        await session.until(r"/exit ends it.*> ")
        session.type("hi\n")
        assert "Hello there!" in await session.until(r"Hello there!\r\n> ")
        session.type("/exit\n")
        assert await asyncio.wait_for(session.process.wait(), 30) == 0
    assert peer.asked[0][2]["messages"] == [{"role": "user", "content": "hi"}]


async def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(peer: FakePeer) -> None:
    peer.hangs = True
    async with on_terminal("chat", "hello") as session:
        await session.until(r"> ")
        session.type("hi\n")
        await session.until(r"Hello there!")
        session.process.send_signal(signal.SIGINT)
        await session.until(r"\r\n> ")
        session.type("/exit\n")
        assert await asyncio.wait_for(session.process.wait(), 30) == 0
    await asyncio.wait_for(peer.was_left.wait(), 30)


async def test_ctrl_c_while_running_ends_with_130(peer: FakePeer) -> None:
    peer.hangs = True
    async with on_terminal("run", "hello", "hi") as session:
        await session.until(r"Hello there!")
        session.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(session.process.wait(), 30) == 130


async def test_what_a_model_says_cannot_steer_the_terminal(peer: FakePeer) -> None:
    peer.words = ["\x1b]0;owned\x07", "done"]
    async with on_terminal("run", "hello", "hi") as session:
        taken = await session.until(r"done\r\n")
        assert "\x1b" not in taken and "\x07" not in taken


async def test_removing_asks_on_a_terminal_and_no_is_no(peer: FakePeer) -> None:
    async with on_terminal("model", "rm", "qwen") as session:
        await session.until(r"Remove hf/qwen/q4\.gguf \(491 MB\) from the disk of this machine\? \[y/N\]")
        session.type("n\n")
        assert await asyncio.wait_for(session.process.wait(), 30) == 130
    assert [method for method, _, _ in peer.asked] == ["GET"]
