"""The README's first command, as a new user runs it: start, wait for ready, ask the built-in model, Ctrl+C.

    python3 .ci/first_chat.py "COMMAND"

Only the standard library: it runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

# Building the engine takes up to eight minutes on two cores; a start without it takes a second or two.
READY_S = 900
ANSWER_S = 60
STOP_S = 60


def main(command: str) -> int:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="llm-router-", ignore_cleanup_errors=True) as folder:
        env = os.environ | {"LLM_ROUTER_PORT": str(port), "LLM_ROUTER_DATA_DIR": folder}
        peer = subprocess.Popen(["bash", "-c", command], env=env, start_new_session=True)
        try:
            wait_until_ready(peer, port)
            answer = chat(port, "What are you?")
            print(f"hello says: {answer}")
            os.killpg(peer.pid, signal.SIGINT)
            code = peer.wait(STOP_S)
        finally:
            if peer.poll() is None:
                os.killpg(peer.pid, signal.SIGKILL)
                peer.wait()
    if not answer.strip() or code not in (0, 130):
        print(f"answer {answer!r}, exit code {code} (0 or 130 expected)", file=sys.stderr)
        return 1
    return 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def wait_until_ready(peer: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if peer.poll() is not None:
            raise SystemExit(f"the peer ended with {peer.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.2)
    raise SystemExit(f"not ready after {READY_S} s")


def chat(port: int, text: str) -> str:
    body = {"model": "hello", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 100}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as reply:  # noqa: S310
        content: str = json.load(reply)["choices"][0]["message"]["content"]
    return content


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
