"""The shape of the house: which package may import which, what the peer process never loads, how long things get."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys

import pytest

from tests.fixtures.tree import ROOT, read, tracked

ARROWS = {
    "mesh": {"web", "gossip", "inference"},
    "web": {"inference"},
    "gossip": set[str](),
    "inference": set[str](),
}
FOLDERS = {*ARROWS, "tests", "docs", "benchmarks", ".ci", ".github"}
# The worker's side of the engine: these run in a child process, one per loaded model.
WORKER_SIDE = {"inference/engine/llama.py", "inference/engine/worker.py"}
# Trains the embedded model, in the repository only; it is not shipped.
TRAINER = "inference/hello/make/"
# A screen. Tests and the trainer are held to it too.
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 700


def modules(*packages: str) -> list[str]:
    return [name for name in tracked() if name.endswith(".py") and name.split("/")[0] in packages]


@functools.cache
def tree(path: str) -> ast.Module:
    return ast.parse(read(path), filename=path)


def imported(path: str) -> set[str]:
    """Full names of the modules that `path` imports, wherever the import stands."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; ours are written in full"
            assert node.module is not None
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def attributes(path: str) -> set[str]:
    """Every `module.name` that `path` uses."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", sorted(ARROWS))
def test_imports_go_one_way(package: str) -> None:
    found = modules(package)
    assert found, f"{package}/ holds no module"
    allowed = ARROWS[package] | {package}
    wrong = {
        str(path): sorted(ours - allowed) for path in found if (ours := top(imported(path)) & set(ARROWS)) - allowed
    }
    assert not wrong


def test_nothing_of_ours_imports_the_tests() -> None:
    assert not [path for path in modules(*ARROWS) if top(imported(path)) & {"tests", "benchmarks"}]


def test_only_the_workers_side_imports_llama_cpp() -> None:
    found = {path for path in modules(*ARROWS) if "llama_cpp" in top(imported(path))}
    wrong = {path for path in found - WORKER_SIDE if not path.startswith(TRAINER)}
    assert not wrong, "the peer process must not load the engine"


def test_the_peer_process_loads_neither_the_engine_nor_what_only_workers_and_developers_need() -> None:
    code = (
        "import sys, mesh.node, mesh.cli.entry\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}"
        " & {'llama_cpp', 'numpy', 'gguf', 'openai', 'pytest', 'hypothesis', 'jax'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_nothing_goes_out_by_itself() -> None:
    """C18: nothing large is fetched unasked. Who opens HTTP connections, and to whom, is known by name."""
    clients = {"http.client", "urllib.request", "aiohttp.ClientSession", "requests", "httpx", "huggingface_hub"}
    allowed = {
        "mesh/cli/client.py",  # to the user's own peer, and to one that a person names to log in
        "mesh/knock.py",  # to members of the mesh and named addresses, when a person runs the doctor
        "mesh/surroundings.py",  # nobody: it asks which proxies are set
        "mesh/calls.py",  # to members of the mesh: what they keep together, and what they pass on
        "mesh/hop.py",  # to members of the mesh: a request goes to a holder of its model
        "inference/providers/openai_compatible.py",  # to servers that an admin registered, at the address they had then
        "gossip/joiner.py",  # to a stranger that may let this machine in: no prompt, no secret it does not know
        "gossip/transport.py",  # to members of the mesh, and to addresses that may be one
        "gossip/seeds.py",  # to the addresses a person named
        "gossip/joining.py",  # to a peer that this one asks to be let in
    }
    found = {path for path in modules(*ARROWS) if (imported(path) | attributes(path)) & clients}
    assert {"mesh/cli/client.py", "mesh/hop.py"} <= found <= allowed


def test_every_top_level_folder_is_one_of_the_house() -> None:
    assert {path.split("/")[0] for path in tracked() if "/" in path} <= FOLDERS


def test_every_module_says_what_it_is() -> None:
    # Package files may be silent: they hold nothing, as the next test says.
    silent = [
        path
        for path in modules(*ARROWS, "tests", "benchmarks")
        if not path.endswith("/__init__.py") and not ast.get_docstring(tree(path))
    ]
    assert not silent


def test_package_files_hold_no_code() -> None:
    package_files = [path for path in modules(*ARROWS) if path.endswith("/__init__.py")]
    allowed = ast.Assign | ast.Expr
    assert not [path for path in package_files if not all(isinstance(node, allowed) for node in tree(path).body)]


def test_no_module_has_a_name_that_says_nothing() -> None:
    nothing = {"utils", "util", "helpers", "common", "misc", "base", "manager"}
    assert not [path for path in modules(*ARROWS) if nothing & set(path.removesuffix(".py").split("/"))]


def test_tests_have_no_package_files_that_would_shadow_ours() -> None:
    assert not [path for path in modules("tests") if path.endswith("__init__.py")]


def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        f"{path}:{node.lineno} {node.name}": length
        for path in modules(*ARROWS, "tests", "benchmarks")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert not long


def test_no_module_is_the_one_that_everybody_must_edit() -> None:
    long = {path: lines for path in modules(*ARROWS) if (lines := read(path).count("\n")) > FILE_LINES_MAX}
    assert not long
