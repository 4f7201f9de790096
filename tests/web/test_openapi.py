"""The description of the API: it holds every route and no other, and what handlers answer is what it says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import jsonschema_rs
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InvalidRequest
from mesh.history import view
from tests.fixtures.managed import SERVER, Managed
from tests.fixtures.scripted_mesh import ATTIC
from web import history, openapi
from web.app import make_app, route_table
from web.guards import Policy
from web.inflight import InFlight
from web.route import Answer, Operation, Route
from web.shapes import Many, Number, Text, checked, checked_query, members_of, record_schema, schema_of

TOKEN = "control-token-of-the-tests"
ADMIN = {"authorization": f"Bearer {TOKEN}"}
SERVICES = Managed().services(TOKEN)
DOCUMENT = openapi.document(route_table(SERVICES), "0.3.0")


def test_every_route_of_the_table_is_described_and_nothing_else() -> None:
    table = {(route.method.lower(), route.path.replace(":.+", "")) for route in route_table(SERVICES)}
    described = {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == table
    served = {
        (route.method.lower(), route.resource.canonical)
        for route in make_app(SERVICES, InFlight()).router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert described == served


def test_a_route_that_says_nothing_of_itself_is_found_out() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    with pytest.raises(ValueError, match="GET /x does not say"):
        openapi.document([Route("GET", "/x", handler, Policy.PUBLIC)], "1")


def test_two_shapes_of_one_name_are_found_out() -> None:
    class Twice(TypedDict):
        a: int

    first = Twice

    class Twice(TypedDict):  # type: ignore[no-redef]
        b: int

    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    def route(path: str, shape: Any) -> Route:
        return Route(
            "GET", path, handler, Policy.PUBLIC, Operation(summary="", tag="x", answers={200: Answer(shape=shape)})
        )

    with pytest.raises(ValueError, match="two shapes are called Twice"):
        openapi.document([route("/a", first), route("/b", Twice)], "1")


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            return {value["$ref"]} if "$ref" in value else set().union(*map(references, value.values()), set())
        return set().union(*map(references, value), set()) if isinstance(value, list) else set()

    for reference in references(DOCUMENT):
        found: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    for name in DOCUMENT["components"]["schemas"]:
        assert jsonschema_rs.meta.is_valid(_schema({"$ref": f"#/components/schemas/{name}"}))


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


def test_what_needs_a_key_says_so_and_what_does_not_says_that() -> None:
    for route in route_table(SERVICES):
        described = DOCUMENT["paths"][route.path.replace(":.+", "")][route.method.lower()]
        assert bool(described["security"]) is (route.policy is not Policy.PUBLIC)
        assert route.policy is Policy.PUBLIC or "401" in described["responses"]
        assert ("passes it on" in described["description"]) is (route.owned is not None)


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "components": DOCUMENT["components"]} | schema


def _check(method: str, path: str, status: int, answer: Any) -> None:
    described = DOCUMENT["paths"][path][method.lower()]["responses"][str(status)]
    if "$ref" in described:
        described = DOCUMENT["components"]["responses"][described["$ref"].rpartition("/")[2]]
    schema = described["content"]["application/json"]["schema"]
    jsonschema_rs.validate(_schema(schema), answer)


ANSWERS: list[tuple[str, str, str, Any]] = [
    ("GET", "/api/mesh", "/api/mesh", None),
    ("GET", "/api/agents/{id}", "/api/agents/attic", None),
    ("GET", "/api/agents/{id}", "/api/agents/nobody", None),
    ("GET", "/api/mesh/joins", "/api/mesh/joins", None),
    ("POST", "/api/mesh/door", "/api/mesh/door", {"minutes": 5}),
    ("POST", "/api/mesh/door", "/api/mesh/door", {}),
    ("POST", "/api/mesh/invite", "/api/mesh/invite", {}),
    ("POST", "/api/mesh/approve", "/api/mesh/approve", {"who": "481920"}),
    ("POST", "/api/mesh/peers/{id}/rename", "/api/mesh/peers/attic/rename", {"name": "loft"}),
    ("GET", "/api/settings", "/api/settings", None),
    ("PUT", "/api/settings", "/api/settings", {"history_days": 1}),
    ("GET", "/api/dashboard/request-responses", "/api/dashboard/request-responses", None),
    ("GET", "/api/dashboard/request-responses/{id}", "/api/dashboard/request-responses/r1", None),
    ("GET", "/api/dashboard/overview", "/api/dashboard/overview", None),
    ("GET", "/api/audit", "/api/audit", None),
    ("GET", "/api/logs", "/api/logs", None),
    ("POST", "/api/agents/{id}/disconnect", f"/api/agents/{SERVER}/disconnect", None),
    ("PUT", "/api/nodes/{id}/settings", f"/api/nodes/{SERVER}/settings", {"tags": []}),
    ("DELETE", "/api/agents/{id}", f"/api/agents/{ATTIC}", None),
    ("GET", "/v1/models", "/v1/models", None),
    ("POST", "/v1/chat/completions", "/v1/chat/completions", {"model": 5}),
    ("GET", "/health", "/health", None),
    ("GET", "/ready", "/ready", None),
    ("GET", "/.well-known/llm-router", "/.well-known/llm-router", None),
]


@pytest.mark.parametrize(("method", "path", "url", "body"), ANSWERS)
async def test_what_a_handler_answers_is_what_the_description_says(
    aiohttp_client: Any, method: str, path: str, url: str, body: Any
) -> None:
    client = await aiohttp_client(make_app(SERVICES, InFlight()))
    headers = ADMIN | {"host": "localhost"}
    answer = await client.request(method, url, json=body, headers=headers)
    _check(method, path, answer.status, await answer.json())


def test_a_record_is_described_with_the_fields_that_the_history_makes() -> None:
    assert set(members_of(history.Record)) == set(view.FIELDS)


async def test_the_description_is_served_to_who_may_use_the_peer(aiohttp_client: Any) -> None:
    client = await aiohttp_client(make_app(SERVICES, InFlight()))
    answer = await client.get("/openapi.json", headers={"host": "localhost"})
    assert (answer.status, json.loads(await answer.text())["openapi"]) == (200, "3.1.0")
    answer = await client.get("/openapi.json", headers={"host": "localhost", "via": "1.1 proxy"})
    assert answer.status == 401


# -- shapes


class Leaf(TypedDict):
    """A leaf."""

    name: Annotated[str, Text(5, is_line=True)]


class Tree(TypedDict):
    """A tree."""

    kind: Literal["oak", "elm"]
    height: Annotated[float, Number(0, 100)]
    rings: NotRequired[Annotated[int, Number(1, 500)] | None]
    leaves: NotRequired[Annotated[list[Leaf], Many(2)]]
    parent: NotRequired[Tree | None]
    where: NotRequired[str | list[str]]
    notes: NotRequired[dict[str, bool]]
    rest: NotRequired[Any]


@dataclass
class Grove:
    """Trees."""

    trees: tuple[Tree, ...]
    name: str | None = None


def _inline(shape: Any) -> dict[str, Any]:
    definitions: dict[str, Any] = {}

    def named(record: Any) -> dict[str, Any]:
        if record.__name__ not in definitions:
            definitions[record.__name__] = {}
            definitions[record.__name__] = record_schema(record, named)
        return {"$ref": f"#/$defs/{record.__name__}"}

    return schema_of(shape, named) | {"$defs": definitions}


GOOD: dict[str, Any] = {"kind": "oak", "height": 5}


@pytest.mark.parametrize(
    "tree",
    [
        GOOD,
        GOOD | {"height": 5.5, "rings": 3, "unknown": 1},
        GOOD | {"rings": None, "parent": None, "rest": [1], "where": "here"},
        GOOD | {"leaves": [{"name": "a"}, {"name": " b "}], "where": ["a", "b"], "notes": {"x": True}},
        GOOD | {"parent": GOOD | {"parent": GOOD}},
    ],
)
def test_what_has_the_shape_passes_the_check_and_the_schema(tree: Any) -> None:
    assert checked(Tree, tree) is tree
    jsonschema_rs.validate(_inline(Tree), tree)


@pytest.mark.parametrize(
    ("tree", "word"),
    [
        ([], "the request body"),
        ({"height": 5}, "'kind'"),
        (GOOD | {"kind": "ash"}, "'oak', 'elm'"),
        (GOOD | {"kind": None}, "'kind'"),
        (GOOD | {"height": 101}, "<= 100"),
        (GOOD | {"height": "5"}, "a decimal"),
        (GOOD | {"height": True}, "a decimal"),
        (GOOD | {"rings": 0}, ">= 1"),
        (GOOD | {"rings": 1.5}, "an integer"),
        (GOOD | {"leaves": None}, "an array"),
        (GOOD | {"leaves": [{"name": "a"}] * 3}, "2"),
        (GOOD | {"leaves": [{"name": "a"}, {}]}, "'leaves[1].name'"),
        (GOOD | {"leaves": [{"name": "sixsix"}]}, "5"),
        (GOOD | {"leaves": [{"name": ""}]}, "empty"),
        (GOOD | {"parent": {"kind": "oak"}}, "'parent.height'"),
        (GOOD | {"where": 5}, "a string"),
        (GOOD | {"where": [5]}, "'where[0]'"),
        (GOOD | {"notes": {"x": 1}}, "'notes.x'"),
    ],
)
def test_what_has_not_fails_both(tree: Any, word: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        checked(Tree, tree)
    assert word in found.value.message
    assert not jsonschema_rs.is_valid(_inline(Tree), tree)


_MEMBERS = st.sampled_from([*members_of(Tree), "name"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-1e3, 1e3) | st.sampled_from(["oak", "a", "", "sixsix"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "height", "rings", "leaves", "name", "parent", "where", "notes"]), inner
        )
    ),
    max_leaves=12,
)


@given(_JSON | st.builds(lambda more: GOOD | more, st.dictionaries(_MEMBERS, _JSON)))
def test_the_check_and_the_schema_never_differ(value: Any) -> None:
    try:
        checked(Tree, value)
        passes = True
    except InvalidRequest:
        passes = False
    assert passes == jsonschema_rs.is_valid(_inline(Tree), _whole_numbers(value))


def _whole_numbers(value: Any) -> Any:
    """JSON schema calls 1.0 an integer; Python's parser made it a float because it was written so."""
    if isinstance(value, float) and value.is_integer():
        return value + 0.5
    if isinstance(value, dict):
        return {name: _whole_numbers(part) for name, part in value.items()}
    return [_whole_numbers(part) for part in value] if isinstance(value, list) else value


def test_a_dataclass_is_described_like_a_dict() -> None:
    schema = _inline(Grove)["$defs"]["Grove"]
    assert schema["required"] == ["trees", "name"] and schema["description"] == "Trees."
    assert schema["properties"]["name"] == {"type": ["string", "null"]}
    assert schema["properties"]["trees"] == {"type": "array", "items": {"$ref": "#/$defs/Tree"}}


class Query(TypedDict, total=False):
    """A query."""

    page: Annotated[int, Number(1, 10)]
    all: bool
    kind: Literal["a", "b"]
    name: Annotated[str, Text(3)]


@pytest.mark.parametrize(
    ("query", "is_fine"),
    [
        ({}, True),
        ({"page": "10", "all": "true", "kind": "a", "name": "5", "x": "y"}, True),
        ({"page": "11"}, False),
        ({"page": "1.5"}, False),
        ({"page": "٣"}, False),
        ({"page": " 1"}, False),
        ({"page": ""}, False),
        ({"all": "1"}, False),
        ({"kind": "c"}, False),
        ({"name": "long"}, False),
    ],
)
def test_a_query_is_checked_as_what_its_texts_stand_for(query: dict[str, str], is_fine: bool) -> None:
    if is_fine:
        checked_query(Query, query)
    else:
        with pytest.raises(InvalidRequest):
            checked_query(Query, query)
