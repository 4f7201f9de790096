"""The documentation names only what is there: commands, files, tests, promises, and the lines that CI runs."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import subprocess
from collections.abc import Iterator

import click
import pytest

from tests.fixtures.tree import ROOT, read, tracked

PAGES = [
    name
    for name in tracked()
    if name.endswith(".md") and (name.startswith("docs/") or "/" not in name)
]  # fmt: skip


def fences(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of every code block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)


# The README's two lines


def readme_command(name: str, page: str = "README.md") -> str:
    """The one line in the block under `<!-- command: NAME -->`."""
    found = re.findall(rf"^<!-- command: {name} -->\n```sh\n(.+)\n```$", read(page), re.MULTILINE)
    assert len(found) == 1, f"{page}: one line must stand in the block under <!-- command: {name} -->"
    return str(found[0])


def test_the_readme_has_one_line_that_starts_a_peer_and_one_that_runs_the_tests() -> None:
    start, tests = readme_command("start"), readme_command("tests")
    assert start.endswith("uv run --no-dev --extra llama llm-router")
    assert tests.endswith("uv run --extra llama pytest")
    for line in (start, tests):
        # uv comes into a folder of the clone: the system's Python stays as it is (PEP 668).
        assert line.startswith("python3 -m venv .uv && .uv/bin/pip install -q uv && ")


def test_both_readmes_have_the_same_lines() -> None:
    for name in ("start", "tests"):
        assert readme_command(name) == readme_command(name, "README.ja.md")


@pytest.mark.parametrize("name", ["start", "tests"])
def test_ci_runs_the_readmes_lines_as_they_are_printed(name: str) -> None:
    script = read(".ci/run")
    (function,) = re.findall(r"^readme\(\) \{.*\}$", script, re.MULTILINE)
    done = subprocess.run(
        ["bash", "-c", f"{function}\nreadme {name}"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == readme_command(name)
    assert f'"$(readme {name})"' in script


# Commands


@functools.cache
def spoken() -> tuple[tuple[str, str], ...]:
    """Page and words of every `llm-router ...` in a code block or between backticks, except in the log of what was."""
    found: set[tuple[str, str]] = set()
    for page in PAGES:
        text = read(page)
        blocks = [block for language, block in fences(page) if language in ("sh", "powershell", "")]
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        lines += re.findall(r"`((?:llm-router|llm-node)\b[^`\n]*)`", text)
        for line in lines:
            for part in re.split(r"&&|\||;|\$\(|\)\"|\s#", line):
                match = re.search(r"^(?:.*\s)?(?:llm-router|llm-node)(?:\s+(.*))?$", part.strip())
                if match and not re.match(r"docker (build|run|compose (up|logs))", part.strip()):
                    found.add((page, (match[1] or "").strip()))
    return tuple(sorted(found))


def test_the_pages_name_every_command_that_there_is() -> None:
    from mesh.cli.entry import program

    context = click.Context(program)
    named = {words.split()[0] for page, words in spoken() if page == "USAGE.md" and words}
    assert set(program.list_commands(context)) <= named


@pytest.mark.parametrize(("page", "words"), spoken())
def test_every_command_in_the_pages_parses(page: str, words: str) -> None:
    from mesh.cli.entry import program

    arguments = [re.sub(r"[\[\],]", "", word) for word in shlex.split(words)]
    command: click.Command = program
    context = click.Context(program, info_name="llm-router")
    if not arguments or arguments[0].startswith("-"):
        arguments = arguments if arguments[:1] in (["--help"], ["--version"]) else ["up", *arguments]
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        found = command.get_command(context, arguments[0])
        assert found is not None, f"{page}: there is no `llm-router {words}`"
        command, context = found, click.Context(found, parent=context, info_name=arguments.pop(0))
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    unknown = [word for word in arguments if word.startswith("--") and word.partition("=")[0] not in options]
    assert not unknown, f"{page}: `llm-router {words}` has unknown options"
    assert command.get_help(context)


# Promises

# Every id of the contract: F and C, first and last of each run.
PROMISED = {
    "F": [
        (1, 14), (17, 33), (36, 64), (70, 71), (74, 75), (83, 85), (88, 95), (98, 100), (105, 105), (107, 114),
        (118, 118), (121, 121), (123, 127), (129, 130), (132, 136), (155, 157), (162, 178), (180, 190),
    ],
    "C": [(3, 4), (7, 7), (11, 11), (18, 19), (27, 27), (31, 31), (38, 38)],
}  # fmt: skip
STATES = {"works", "partly", "not yet", "left out"}


def ids(text: str) -> set[str]:
    """`F3, F5-F7` as the ids it means."""
    found: set[str] = set()
    for letter, first, last in re.findall(r"\b([FC])(\d+)(?:-[FC]?(\d+))?", text):
        found |= {f"{letter}{number}" for number in range(int(first), int(last or first) + 1)}
    return found


def rows() -> list[list[str]]:
    """The cells of every row of a table of promises: ids, promise, state, proof."""
    lines = [line for line in read("docs/features.md").splitlines() if line.startswith("| ") and " | " in line]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[-2] in STATES]


def test_every_promise_has_a_row_and_a_state() -> None:
    expected = {f"{k}{n}" for k, runs in PROMISED.items() for first, last in runs for n in range(first, last + 1)}
    assert {name for row in rows() for name in ids(row[0])} == expected


def test_no_row_of_the_features_lacks_a_state() -> None:
    lines = [line for line in read("docs/features.md").splitlines() if line.startswith("| ")]
    heads = [line for line in lines if line.endswith("proof, note |")]
    assert len(lines) - len(heads) == len(rows())


def test_what_works_names_its_test_and_every_test_named_is_there() -> None:
    for row in rows():
        tests = re.findall(r"`(tests/[\w/.-]+)`", row[-1])
        assert tests or row[-2] != "works", f"{row}: no test proves it"
        assert set(tests) <= set(tracked()), row


@functools.cache
def claimed() -> dict[str, str]:
    """The ids that begin the docstring of each test, by the test's file and name."""
    found = {}
    for path in tracked():
        if path.startswith("tests/") and path.endswith(".py"):
            for node in ast.walk(ast.parse(read(path))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                    first = (ast.get_docstring(node) or "").partition(":")[0]
                    if re.match(r"[FC]\d", first):
                        found[f"{path}::{node.name}"] = first
    return found


def test_the_ids_in_tests_are_promises() -> None:
    known = {name for row in rows() for name in ids(row[0])}
    assert not {test: first for test, first in claimed().items() if set(re.findall(r"[FC]\d+", first)) - known}


def test_a_promise_that_is_kept_is_named_by_a_test() -> None:
    proven = {name for first in claimed().values() for name in ids(first)}
    assert not [row[0] for row in rows() if row[-2] == "works" and ids(row[0]) - proven]


# Links and files


def anchors(page: str) -> set[str]:
    """GitHub's anchors of the headings."""
    titles = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent.joinpath(path).resolve().relative_to(ROOT).as_posix() if path else page
        assert (ROOT / there).exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(there), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_only_files_of_the_tree(page: str) -> None:
    named = re.findall(r"`((?:mesh|web|inference|gossip|tests|docs)/[\w./-]+)`", read(page))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_tour_of_the_code_passes_every_module() -> None:
    packages = ("mesh/", "web/", "inference/", "gossip/")
    skipped = ("mesh/cli/", "inference/hello/", "__init__.py")
    modules = [name for name in tracked() if name.startswith(packages) and name.endswith(".py")]
    stems = {name.split("/")[-1][:-3] for name in modules if not any(part in name for part in skipped)}
    named = {
        word.split("/")[-1].removesuffix(".py") for word in re.findall(r"`([\w/.]+)`", read("docs/architecture.md"))
    }
    assert stems <= named, f"docs/architecture.md does not say where these are: {sorted(stems - named)}"


def test_every_decision_has_its_number_and_is_reached_from_somewhere() -> None:
    pages = sorted(name for name in tracked() if name.startswith("docs/decisions/"))
    assert [int(name.split("/")[-1][:4]) for name in pages] == list(range(1, len(pages) + 1))


def test_the_changelog_has_the_version_of_the_package() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', read("pyproject.toml"), re.MULTILINE)
    assert f"## [{version}]" in read("CHANGELOG.md")
