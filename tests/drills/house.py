"""A house of several machines: hosts of a test LAN, a peer on each, started as their user starts them.

    with House.built(folder, 5, holders=("h4", "h5"), worker="--rate 50 --tokens 100") as house:
        house.until_all_see_all()
        house.kill("h4")                         # the process is gone; its sockets say so
        house.lan.power_off("h5")                # nothing says so
        house.start("h4")

Nothing is configured: mDNS, the open door and the same file on two machines are all that makes a mesh of them.
`holders` have the models of tests.drills.models, of which the mesh knows `tiny` (random), `story` and `embed`;
everybody has `hello`. With `worker` every engine is tests.fixtures.fake_worker with those arguments, whose answers
are known beforehand (`expected`).
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from inference.chat import ChatPrompt, Message
from tests.drills.models import made
from tests.fixtures.fake_worker import expected_text
from tests.fixtures.lan import Lan
from tests.fixtures.peer import Peer, until

PORT = 8080
FORMED_S = 60.0
POLL_S = 0.05
LOG_LINES = 20
TOLD_S = 2.0
"""What a peer says of its files is a second old at most, and a second on its way."""


def fake_worker(arguments: str) -> dict[str, str]:
    """The environment of a peer whose engines are the worker of the tests."""
    return {"LLM_ROUTER_WORKER": f"tests.fixtures.fake_worker {arguments}"}


def expected(text: str, seed: int, tokens: int) -> str:
    """What the worker of the tests answers to a chat of one turn."""
    return expected_text(ChatPrompt(messages=(Message(role="user", content=text),)), seed, tokens)


class House:
    """Made by `built`."""

    def __init__(
        self,
        lan: Lan,
        folder: Path,
        *,
        holders: Collection[str],
        env: Mapping[str, str],
        env_of: Mapping[str, Mapping[str, str]],
        flags_of: Mapping[str, Sequence[str]],
    ) -> None:
        self.lan = lan
        self.folder = folder
        self.peers: dict[str, Peer] = {}
        self._holders = holders
        self._env = env
        self.env_of = {name: dict(given) for name, given in env_of.items()}
        self._flags_of = flags_of

    @classmethod
    @contextlib.contextmanager
    def built(
        cls,
        folder: Path,
        hosts: int,
        *,
        holders: Collection[str] = (),
        worker: str | None = None,
        env: Mapping[str, str] | None = None,
        env_of: Mapping[str, Mapping[str, str]] | None = None,
        flags_of: Mapping[str, Sequence[str]] | None = None,
        is_started: bool = True,
    ) -> Iterator[House]:
        """Every peer is ready when the block begins (`is_started`); everything is ended when it ends."""
        given = {"LLM_ROUTER_MDNS": "true"} | (fake_worker(worker) if worker is not None else {}) | dict(env or {})
        with Lan(hosts) as lan:
            house = cls(lan, folder, holders=holders, env=given, env_of=env_of or {}, flags_of=flags_of or {})
            try:
                if is_started:
                    house.spawn_all()
                    house.until_ready()
                yield house
            except AssertionError as error:
                house.tell(error)
                raise
            finally:
                house.end()

    # -- peers come and go

    @property
    def names(self) -> list[str]:
        return list(self.lan.hosts)

    def spawn(self, name: str) -> Peer:
        """Started, not waited for."""
        data_dir = self.folder / name / "data"
        flags = ["--port", str(PORT), "--name", name, *self._flags_of.get(name, ())]
        if name in self._holders:
            flags += ["--models-dir", str(self._models_of(name))]
        env = {**self._env, **self.env_of.get(name, {})}
        peer = self.peers[name] = Peer.spawned(data_dir, *flags, env=env, host=self.lan[name])
        return peer

    def spawn_all(self) -> None:
        for name in self._holders:
            self._models_of(name)  # made beforehand, so that all start together
        for name in self.names:
            self.spawn(name)

    def until_ready(self) -> None:
        for peer in self.peers.values():
            peer.wait_until_ready()

    def start(self, name: str) -> Peer:
        """Started and ready."""
        peer = self.spawn(name)
        peer.wait_until_ready()
        return peer

    def kill(self, name: str) -> float:
        """SIGKILL: what its kernel does with its sockets is all that the others hear. When that was."""
        peer = self.peers[name]
        at = time.monotonic()
        peer.process.send_signal(signal.SIGKILL)
        peer.process.wait(10)
        return at

    def power_off(self, name: str) -> float:
        """No packet leaves it any more. When that was."""
        at = time.monotonic()
        self.lan.power_off(name)
        self.peers[name].process.wait(10)
        return at

    def power_on(self, name: str) -> Peer:
        self.lan.power_on(name)
        return self.start(name)

    def end(self) -> None:
        """Kills what still runs: how a peer ends by itself is shown elsewhere, and takes seconds for each."""
        for peer in self.peers.values():
            if peer.process.poll() is None:
                peer.process.kill()
                peer.process.wait(10)

    def _models_of(self, name: str) -> Path:
        """Its own copy: the same files everywhere."""
        original, own = self.folder / "models", self.folder / name / "models"
        if not own.exists():
            if not original.exists():
                made(original)
            shutil.copytree(original, own)
        return own

    # -- what they see

    def mesh(self, name: str) -> dict[str, Any]:
        """`/api/mesh` as that peer answers it."""
        found: dict[str, Any] = self.peers[name].get("/api/mesh").json
        return found

    def meshes(self, names: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
        """The same of several at once."""
        asked = list(self.names if names is None else names)
        with ThreadPoolExecutor(len(asked)) as pool:
            return dict(zip(asked, pool.map(self.mesh, asked), strict=True))

    def states(self, of: str, names: Collection[str] | None = None) -> dict[str, str]:
        """How each of `names` (all but `of`) sees `of`."""
        asked = [name for name in (self.names if names is None else names) if name != of]
        return {name: _state(mesh, of) for name, mesh in self.meshes(asked).items()}

    def until_all_see_all(self, names: Collection[str] | None = None, timeout_s: float = FORMED_S) -> float:
        """Every one of `names` lists every other as alive, in one mesh; the seconds that took."""
        there = set(self.names if names is None else names)

        def formed() -> bool:
            meshes = self.meshes(there)
            alive = ({p["name"] for p in m["peers"] if p["state"] == "alive"} for m in meshes.values())
            return len({m["mesh_id"] for m in meshes.values()}) == 1 and all(there <= seen for seen in alive)

        return waited(formed, "every peer lists every other", timeout_s)

    def until_one_coordinator(self, names: Collection[str] | None = None, timeout_s: float = FORMED_S) -> float:
        """All of `names` follow the same one, which is one of them, in the same term."""
        there = set(self.names if names is None else names)

        def agreed() -> bool:
            found = {(m["coordinator"] or {}).get("name") for m in self.meshes(there).values()}
            return len(found) == 1 and found <= there

        return waited(agreed, "one coordinator", timeout_s)

    def until_files_known(self) -> None:
        """Every holder has hashed its files and told the others: answers can be continued from now on."""
        for name in self._holders:
            peer = self.peers[name]
            waited(lambda p=peer: all(m["sha256"] for m in p.get("/api/models").json), "files are hashed", FORMED_S)  # type: ignore[misc]
        time.sleep(TOLD_S)

    def until_all_know(self, model: str, names: Collection[str] | None = None, holders: int = 0) -> float:
        """Every one of `names` lists `model`, with at least that many holders."""

        def known() -> bool:
            for name in self.names if names is None else names:
                models = self.peers[name].get("/v1/models").json["data"]
                if not any(m["id"] == model and len(m["holders"]) >= max(1, holders) for m in models):
                    return False
            return True

        return waited(known, f"every peer knows of {model}", FORMED_S)

    def coordinator(self, name: str) -> str | None:
        """Who coordinates, by what that peer says."""
        found = self.mesh(name)["coordinator"]
        return None if found is None else str(found["name"])

    def tell(self, error: AssertionError) -> None:
        """Adds the end of every log to what failed."""
        for name, peer in self.peers.items():
            with contextlib.suppress(OSError):
                lines = [line for line in peer.stderr.splitlines() if '"logger": "web.access"' not in line]
                error.add_note("\n".join((f"--- {name}", peer.stdout[-600:], *lines[-LOG_LINES:])))


def _state(mesh: Mapping[str, Any], name: str) -> str:
    return next((str(p["state"]) for p in mesh["peers"] if p["name"] == name), "unlisted")


def waited(condition: Callable[[], bool], what: str, timeout_s: float) -> float:
    """As `until`, for conditions that cost the machine something."""

    def slowly() -> bool:
        if condition():
            return True
        time.sleep(POLL_S)
        return False

    return until(slowly, what, timeout_s)
