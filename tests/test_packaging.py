"""What is shipped: the wheel, the container image, the compose file.

Docker itself is not needed: the Dockerfile is parsed, and what it would run to install is run in a folder of its own,
without the engine, which takes minutes to build and is built by whoever runs these tests anyway.
"""

from __future__ import annotations

import ast
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.tree import ROOT, read, tracked

VERSION = tomllib.loads(read("pyproject.toml"))["project"]["version"]

PACKAGES = {"mesh", "inference", "gossip", "web"}
PROJECT = tomllib.loads(read("pyproject.toml"))


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks: nothing that only lies on this disk can end up in what is built from it."""
    copy = tmp_path_factory.mktemp("tree")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    return copy


# The wheel


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=tree)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_four_packages_the_embedded_model_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {n for n in tracked() if n.split("/")[0] in PACKAGES and not n.startswith("inference/hello/make/")}
    assert names == expected
    assert "inference/hello/hello.gguf" in names
    assert {name.split("/")[0] for name in names} == PACKAGES
    assert not [name for name in names if name.endswith(".pth")]


def test_the_wheel_names_both_commands_its_licence_and_its_pythons(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert "llm-router = mesh.cli.entry:main" in scripts
    assert "llm-node = mesh.cli.entry:main" in scripts
    assert "Requires-Python: <3.14,>=3.11" in metadata
    assert "Provides-Extra: llama" in metadata


def test_the_engine_is_pinned_and_built_with_rpc() -> None:
    (engine,) = PROJECT["project"]["optional-dependencies"]["llama"]
    assert re.fullmatch(r"llama-cpp-python==\d+\.\d+\.\d+", engine)
    assert PROJECT["tool"]["uv"]["config-settings-package"]["llama-cpp-python"] == {"cmake.define.GGML_RPC": "ON"}


def third_party(shipped: list[str]) -> set[str]:
    """Top-level modules that `shipped` import and that are neither ours nor Python's."""
    names: set[str] = set()
    for path in shipped:
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    return names - PACKAGES - set(sys.stdlib_module_names)


def test_every_dependency_is_imported_explained_and_nothing_else_is_needed() -> None:
    declared = {re.split(r"[><=\[]", line)[0] for line in PROJECT["project"]["dependencies"]}
    shipped = [n for n in tracked() if n.split("/")[0] in PACKAGES and n.endswith(".py") and "/make/" not in n]
    names = {"pynvml": "nvidia-ml-py", "prometheus_client": "prometheus-client", "jwt": "pyjwt"}
    assert {names.get(module, module) for module in third_party(shipped)} - {"llama_cpp"} == declared
    page = read("docs/decisions/0001-dependencies.md")
    assert {name for name in declared if f"| {name}" not in page} == set()


def test_git_ignores_the_lock_file_because_it_names_the_index() -> None:
    assert run("git", "check-ignore", "uv.lock", cwd=ROOT).strip() == "uv.lock"


# The Dockerfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    name: str
    value: str


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, comments out, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = [line.strip().split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [Instruction(name=name.upper(), value=value) for name, value in pairs]


def stages(text: str) -> tuple[list[Instruction], dict[str, list[Instruction]]]:
    """What stands before the first FROM, and each stage by its name (the last one: "")."""
    head: list[Instruction] = []
    found: dict[str, list[Instruction]] = {}
    current = head
    for step in instructions(text):
        if step.name == "FROM":
            base, _, alias = step.value.partition(" AS ")
            current = found[alias.strip()] = [Instruction(name="FROM", value=base.strip())]
        else:
            current.append(step)
    return head, found


HEAD, STAGES = stages(read("Dockerfile"))


def values(stage: str, name: str) -> list[str]:
    return [step.value for step in STAGES[stage] if step.name == name]


def environment(*names: str) -> dict[str, str]:
    pairs = [pair for stage in names for line in values(stage, "ENV") for pair in shlex.split(line)]
    return dict(pair.split("=", 1) for pair in pairs)


def test_the_image_is_built_for_cpu_or_cuda_by_one_argument() -> None:
    assert [Instruction(name="ARG", value="CUDA=cpu")] == HEAD
    assert values("build", "FROM") == ["build-${CUDA}"]
    assert values("", "FROM") == ["run-${CUDA}"]
    assert {"build-cpu", "build-cuda", "run-cpu", "run-cuda"} < set(STAGES)
    assert "-DGGML_CUDA=ON" in environment("build-cuda")["CMAKE_ARGS"]
    assert "CUDA" not in environment("build-cpu")["CMAKE_ARGS"]


def test_the_image_keeps_its_promises_of_ports_volume_and_user() -> None:
    """F54: the container."""
    env = environment("")
    assert env["LLM_NODE_PORT"] == "11435"
    assert env["LLM_ROUTER_DATA_DIR"] == "/data"
    assert values("", "EXPOSE") == ["8080 8081 11435"]
    assert values("", "VOLUME") == ["/data"]
    (user,) = values("", "USER")
    assert user not in ("root", "0")
    assert any(f"useradd --system --uid 10001 --create-home {user}" in line for line in values("", "RUN"))
    assert json.loads(values("", "ENTRYPOINT")[0]) == ["llm-router"]


def test_everything_the_image_copies_exists_and_is_not_ignored(tree: Path) -> None:
    ignore = read(".dockerignore").splitlines()
    for line in values("build", "COPY"):
        *sources, _ = line.split()
        for source in sources:
            assert (tree / source).exists()
            assert f"!{source}" in ignore


def install_lines(root: Path) -> Iterator[tuple[str, str]]:
    """What the build stage copies and runs, its folders moved below `root`, the engine left out."""
    for step in STAGES["build"]:
        line = re.sub(r"(?<![\w.])/(opt|src)\b", rf"{root}/\1", step.value)
        if step.name == "RUN" and " sync " in line:
            line += " --no-install-package llama-cpp-python"
        yield step.name, line


@pytest.fixture(scope="module")
def installed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that the Dockerfile's lines make, in a folder of its own."""
    root = tmp_path_factory.mktemp("image")
    (root / "src").mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "VIRTUAL_ENV", "PYTHON"))}
    # UV_LINK_MODE is for image layers; here the cache is on the same disk.
    env |= {k: v.replace("/opt", f"{root}/opt") for k, v in environment("build").items() if k != "UV_LINK_MODE"}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "UV_PYTHON": sys.executable}
    for name, line in install_lines(root):
        if name == "COPY":
            *sources, target = line.split()
            for source in sources:
                copy = shutil.copytree if (tree / source).is_dir() else shutil.copy2
                copy(tree / source, root / "src" / target)
        elif name == "RUN":
            run("sh", "-ec", line, cwd=root / "src", env=env)
    return root / "opt" / "llm-router"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.name == "nt", reason="the image is Linux, its install lines are sh")
def test_the_install_lines_of_the_image_give_both_commands_outside_the_tree(installed: Path, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LLM_ROUTER_DATA_DIR": str(tmp_path / "data")}
    for command in ("llm-router", "llm-node"):
        assert VERSION in run(installed / "bin" / command, "version", cwd=tmp_path, env=env)
    where = run(installed / "bin" / "python", "-c", "import web; print(web.__file__)", cwd=tmp_path, env=env)
    assert Path(where.strip()).is_relative_to(installed)


def asked(url: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer; status 0 when nobody listens."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, None


def wait_until_ready(peer: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + 60
    while asked(f"{url}/ready")[0] != 200:
        assert peer.poll() is None, peer.communicate()
        assert time.monotonic() < deadline, "not ready after 60 s"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.name == "nt", reason="the image is Linux, its install lines are sh")
def test_without_the_engine_a_peer_starts_headless_says_so_and_serves_what_needs_none(
    installed: Path, tmp_path: Path, unused_tcp_port: int
) -> None:
    """F33, F125: headless, without a terminal: it asks nothing and prints the dashboard's URL."""
    url = f"http://127.0.0.1:{unused_tcp_port}"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    env |= {"LLM_ROUTER_DATA_DIR": str(tmp_path / "data"), "LLM_ROUTER_PORT": str(unused_tcp_port)}
    with subprocess.Popen(
        [installed / "bin" / "llm-router"],
        cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as peer:  # fmt: skip
        try:
            wait_until_ready(peer, url)
            assert asked(f"{url}/health")[0] == 200
            assert asked(f"{url}/v1/models")[0] == 200
            status, answer = asked(
                f"{url}/v1/chat/completions", {"model": "hello", "messages": [{"role": "user", "content": "Hello"}]}
            )
            assert (status, answer["error"]["code"]) == (503, "model_unavailable")
            assert "llama" in answer["error"]["message"]
            peer.terminate()
            printed, logged = peer.communicate(timeout=60)
        finally:
            peer.kill()
    assert peer.returncode == 0, logged
    assert f"{url}/dashboard" in printed
    assert re.search(r"engine +none", printed)


def test_the_health_check_passes_and_fails_with_the_peer(unused_tcp_port: int) -> None:
    (line,) = values("", "HEALTHCHECK")
    command = json.loads(line.partition(" CMD ")[2])
    assert command[0] == "python3"
    env = os.environ | {"LLM_ROUTER_PORT": str(unused_tcp_port)}

    def check() -> int:
        done = subprocess.run([sys.executable, *command[1:]], env=env, capture_output=True, timeout=30)
        return done.returncode

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    assert check() != 0
    with http.server.HTTPServer(("127.0.0.1", unused_tcp_port), Health) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            assert check() == 0
        finally:
            server.shutdown()
            thread.join(10)


# compose.yaml


def compose_bytes(text: str) -> int:
    """A size as compose writes it ("8g"), its default taken out of `${NAME:-default}`."""
    match = re.fullmatch(r"(?:\$\{\w+:-)?(\d+)([kmg]?)b?\}?", text)
    assert match, text
    return int(match[1]) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[match[2]]


def test_compose_has_host_networking_a_volume_and_memory_limits() -> None:
    """F55: the compose file."""
    parsed = yaml.safe_load(read("compose.yaml"))
    (service,) = parsed["services"].values()
    assert service["network_mode"] == "host"
    assert service["build"]["args"] == {"CUDA": "${CUDA:-cpu}"}
    (mount,) = service["volumes"]
    volume, _, target = mount.partition(":")
    assert volume in parsed["volumes"]
    assert [target] == values("", "VOLUME")
    container = compose_bytes(service["deploy"]["resources"]["limits"]["memory"])
    models = compose_bytes(service["environment"]["LLM_NODE_MAX_MEMORY_BYTES"])
    assert models < container, "a model that fills the container has it killed"


# The workflow


def test_the_workflow_tries_every_python_and_system_that_we_name() -> None:
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    named = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if "Python :: 3." in line]
    assert matrix["python"] == named
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert any(step.get("run") == ".ci/run" for step in jobs["all"]["steps"])
    assert (ROOT / ".ci/run").stat().st_mode & 0o111 or os.name == "nt"
