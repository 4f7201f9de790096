"""The dashboard's files: how they are served, and that the page holds nothing that could run what somebody else wrote.

There is no browser here. What can be told from the text is told: no inline script, no way from text to markup, no
outside address, every name that a script or a page uses exists, and both languages say everything.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.fixtures.tree import ROOT, read, tracked
from web.assets import ASSETS

STATIC = "web/static/"
SCRIPTS = sorted(name for name in ASSETS if name.endswith(".js"))
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def source(name: str) -> str:
    return read(STATIC + name)


# -- how they are served


async def test_the_page_is_served_with_a_policy_that_runs_nothing_inline(surface: Any) -> None:
    status, page, headers = await surface.ask("GET", "/dashboard")
    assert (status, headers["content-type"], page) == (200, "text/html; charset=utf-8", source("dashboard.html"))
    assert headers["content-security-policy"] == PAGE_POLICY
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", sorted(ASSETS))
async def test_every_file_is_served_as_it_is_with_its_type(surface: Any, name: str) -> None:
    status, text, headers = await surface.ask("GET", f"/dashboard/{name}")
    assert (status, text) == (200, source(name))
    assert headers["content-type"] == TYPES[name[name.rindex(".") :]]
    assert headers["cache-control"] == "no-cache"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_no_file_is_forgotten() -> None:
    files = {path.name for path in (ROOT / STATIC).iterdir()}
    assert files == {*ASSETS, "dashboard.html"}
    assert {name for name in tracked() if name.startswith(STATIC)} == {STATIC + name for name in files}


async def test_somebody_in_the_network_gets_the_page_without_a_key(surface: Any) -> None:
    for path in ("/dashboard", "/dashboard/dashboard.js"):
        assert (await surface.ask("GET", path, via="1.1 proxy"))[0] == 200


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/dashboard.js"])
async def test_head_answers_the_same_without_the_body(surface: Any, path: str) -> None:
    _, _, headers = await surface.ask("GET", path)
    status, text, head = await surface.ask("HEAD", path)
    assert (status, text) == (200, "")
    for name in ("content-type", "content-length", "etag", "cache-control", "content-security-policy"):
        assert head[name] == headers[name]


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/words.js"])
async def test_who_has_the_file_is_told_so(surface: Any, path: str) -> None:
    _, _, headers = await surface.ask("GET", path)
    tag = headers["etag"]
    for held in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        status, text, again = await surface.ask("GET", path, if_none_match=held)
        assert (status, text, again["etag"], again["cache-control"]) == (304, "", tag, "no-cache"), held
    for held in ('"other"', tag[:-2] + '"', "", "nonsense"):
        assert (await surface.ask("GET", path, if_none_match=held))[0] == 200, held


@pytest.mark.parametrize(
    "name",
    [
        "nothing.js",
        "dashboard.html",
        "DASHBOARD.JS",
        "dashboard.js/",
        "",
        "static/dashboard.js",
        "../dashboard.js",
        "..%2fpages.py",
        "%2e%2e/pages.py",
        "%2e%2e%2fpages.py",
        "%2e%2e%5cpages.py",
        "..\\pages.py",
        "....//pages.py",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "dashboard.js%00",
        "dashboard.js%00.css",
        "dashboard.js%20",
        "dashboard.js::$DATA",
        "%252e%252e%252fpages.py",
        "%c0%ae%c0%ae%2fpages.py",
    ],
)
async def test_any_other_name_is_not_found(surface: Any, name: str) -> None:
    """As bytes on the socket: a client would tidy the path up."""
    request = f"GET /dashboard/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = await surface.raw(request.encode())
    assert answer.startswith(b"HTTP/1.1 404 "), answer[:200]
    assert b"import" not in answer and b"root:" not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_the_files_can_only_be_read(surface: Any, method: str) -> None:
    assert (await surface.ask(method, "/dashboard/dashboard.js"))[0] == 405


# -- the page


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """Every element with its attributes and the text right after its start."""

    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(source("dashboard.html"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements:
            self.elements[-1].text += data

    def values(self, name: str) -> list[str]:
        return [each.attributes[name] or "" for each in self.elements if name in each.attributes]


PAGE = Page()
IDS = PAGE.values("id")


def test_nothing_is_inline() -> None:
    for element in PAGE.elements:
        assert element.tag not in {"style", "base", "iframe", "object", "embed"}
        assert not [name for name in element.attributes if name.startswith("on") or name in ("style", "srcdoc")]
        if element.tag == "script":
            assert element.text.strip() == ""
            assert element.attributes == {"type": "module", "src": "/dashboard/dashboard.js"}


def test_the_page_asks_for_files_that_there_are_and_for_nothing_else() -> None:
    addresses = [*PAGE.values("src"), *PAGE.values("href"), *PAGE.values("action"), *PAGE.values("srcset")]
    assert {address.removeprefix("/dashboard/") for address in addresses} <= set(ASSETS)
    assert {address.removeprefix("/dashboard/") for address in addresses} >= {"dashboard.css", "dashboard.js"}


def test_a_form_that_no_script_handles_puts_no_password_into_an_address() -> None:
    forms = [element for element in PAGE.elements if element.tag == "form"]
    assert forms and all(form.attributes["method"] == "post" for form in forms)


def test_ids_are_unique_and_whatever_names_one_finds_it() -> None:
    assert len(IDS) == len(set(IDS))
    named = [*PAGE.values("for"), *PAGE.values("aria-labelledby"), *PAGE.values("aria-describedby")]
    assert set(named) <= set(IDS)


def test_every_field_has_a_label_and_every_button_a_type() -> None:
    labelled = set(PAGE.values("for"))
    for element in PAGE.elements:
        if element.tag == "input" and element.attributes.get("type") != "checkbox":
            assert element.attributes["id"] in labelled
        if element.tag == "button":
            assert element.attributes["type"] in ("button", "submit")


def test_errors_are_read_out() -> None:
    errors = [element for element in PAGE.elements if element.attributes.get("class") == "error"]
    assert len(errors) == 5 and all(error.attributes["role"] == "alert" for error in errors)


# -- the scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_makes_markup_or_code_of_a_text(name: str) -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|DOMParser|setHTML|document\.write|srcdoc"
        r"|\beval\b|\bFunction\(|\bimport\(|set(?:Timeout|Interval)\(\s*[\"'`]|\bon\w+\s*=[^=>]|javascript:|\.style\b"
    )
    assert forbidden.findall(source(name)) == []


@pytest.mark.parametrize("name", sorted(ASSETS))
def test_no_file_knows_an_address_outside(name: str) -> None:
    text = source(name).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+|url\(|@import", text) == []


def imported(name: str) -> set[str]:
    return set(re.findall(r"\bfrom \"\./([\w.]+)\";$", source(name), re.MULTILINE))


def test_scripts_import_what_there_is_and_every_script_is_used() -> None:
    reached, waiting = set[str](), {"dashboard.js"}
    while waiting:
        reached |= waiting
        waiting = set().union(*(imported(name) for name in waiting)) - reached
    assert reached == set(SCRIPTS)
    for name in SCRIPTS:
        assert len(re.findall(r"^import ", source(name), re.MULTILINE)) == len(imported(name))


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_imports_is_exported_there(name: str) -> None:
    for names, module in re.findall(r"^import \{([^}]+)\} from \"\./([\w.]+)\";$", source(name), re.MULTILINE):
        exported = re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", source(module), re.MULTILINE)
        assert {each.strip() for each in names.split(",")} <= set(exported)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_element_that_a_script_names_is_on_the_page(name: str) -> None:
    named = re.findall(r"\b(?:at|say|show|isFilled)\(\"([\w-]+)\"", source(name))
    assert set(named) <= set(IDS)


# -- the texts


def words() -> dict[str, dict[str, str]]:
    match = re.search(r"^const WORDS = (\{.*?^\});$", source("words.js"), re.MULTILINE | re.DOTALL)
    assert match

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), "a key stands there twice"
        return dict(pairs)

    found: dict[str, dict[str, str]] = json.loads(match[1], object_pairs_hook=once)
    return found


WORDS = words()


def test_both_languages_say_everything() -> None:
    assert list(WORDS) == ["en", "ja"]
    assert list(WORDS["en"]) == list(WORDS["ja"])
    for key, english in WORDS["en"].items():
        japanese = WORDS["ja"][key]
        assert english.strip() and japanese.strip(), key
        for pattern in (r"\{\w+\}", r"`[^`]+`"):
            assert sorted(re.findall(pattern, english)) == sorted(re.findall(pattern, japanese)), key
        assert english.count("`") % 2 == 0, key
        has_words = re.search(r"[A-Za-z]", re.sub(r"\{\w+\}", "", english)) and key != "language_other"
        assert re.search(r"[぀-ヿ一-鿿]", japanese) or not has_words, key


def test_every_text_that_is_asked_for_exists_and_none_is_left_over() -> None:
    keys = set(WORDS["en"])
    asked = set(PAGE.values("data-t"))
    assert asked <= keys
    for name in SCRIPTS:
        code = re.sub(r"^const WORDS = .*?^\};$", "", source(name), flags=re.MULTILINE | re.DOTALL)
        literal = set(re.findall(r"\bt\(\"([^\"]+)\"", code))
        assert literal <= keys, name
        asked |= literal | (keys & set(re.findall(r"\"([\w-]+)\"", code)))
    # Those whose keys are put together: states of machines, states of requests.
    assert {key for key in keys - asked if not key.startswith(("state_", "status_"))} == set()


@pytest.mark.parametrize("state", ["alive", "suspect", "dead", "left", "unknown", "draining", "wrong-version"])
def test_every_state_of_a_machine_has_a_word(state: str) -> None:
    assert f"state_{state}" in WORDS["en"]


@pytest.mark.parametrize("state", ["success", "error", "cancelled", "interrupted", "running"])
def test_every_state_of_a_request_has_a_word(state: str) -> None:
    assert f"status_{state}" in WORDS["en"]
