"""Who may do what: the pure decisions, as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config import PLACEHOLDER_KEY
from web.errors import HttpRefusal
from web.guards import (
    COOKIE,
    NO_KEY,
    SCOPES,
    Admission,
    Policy,
    Request,
    Secrets,
    admit,
    check_host,
    check_origin,
    hostname,
    is_loopback,
    offered_secret,
)
from web.services import Access, Principal

TOKEN = "t" * 40
ACCESS = Access(hosts=frozenset({"attic.local", "192.168.1.5", "fd00::5"}), control_token=TOKEN)
KEYS = {
    "sk-inference": Principal(key_id="k1", key_name="scripts", scopes=frozenset({"inference"}), models=("hf/*",)),
    "sk-metrics": Principal(key_id="k2", scopes=frozenset({"metrics"})),
    "sk-read": Principal(key_id="k3", scopes=frozenset({"admin:read"})),
    "sk-admin": Principal(key_id="k4", scopes=frozenset({"admin"})),
    "sk-expired": Principal(key_id="k5", refusal="API key expired"),
}
SESSIONS = {
    "admin.s.t": Principal(user_id="u1", username="ann", role="admin", session_id="s1", csrf="c" * 32),
    "viewer.s.t": Principal(user_id="u2", username="bob", role="viewer", session_id="s2", csrf="d" * 32),
}
SECRETS = Secrets(of_key=KEYS.get, of_session=SESSIONS.get)
LAN = "192.168.1.9"


def request(
    host: str = "localhost:8080",
    *,
    ip: str = "127.0.0.1",
    target: str = "/",
    http10: bool = False,
    method: str = "GET",
    path: str = "/",
    **headers: str,
) -> Request:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(ip=ip, is_http10=http10, target=target, headers=names, hosts=(host,), method=method, path=path)


def status_of(found: Request, policy: Policy, access: Access = ACCESS) -> int:
    try:
        admit(found, access, policy, SECRETS)
    except HttpRefusal as refusal:
        return refusal.status
    return 200


def refused(found: Request, policy: Policy, access: Access = ACCESS) -> HttpRefusal:
    with pytest.raises(HttpRefusal) as refusal:
        admit(found, access, policy, SECRETS)
    return refusal.value


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost.:80",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:8080",
        "[0:0:0:0:0:0:0:1]:8080",
        "attic.local:65535",
        "attic.local.",
        "192.168.1.5",
        "[fd00::5]:8080",
        "[FD00:0::5]",
    ],
)
def test_our_own_names_are_answered(host: str) -> None:
    assert check_host(request(host), ACCESS)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.nip.io",
        "localhost.evil.example",
        "attic.local.evil.example",
        "xlocalhost",
        "localhost..",
        "127.1",
        "0x7f.0.0.1",
        "2130706433",
        "0.0.0.0",
        "[::2]",
        "[::1",
        "::1",
        "localhost:99999",
        "localhost:x",
        "localhost:80:80",
        "user@localhost",
        "localhost/evil",
        "localhost#",
        " localhost",
        "",
        "[::1%lo]",
        "ⓛocalhost",
    ],
)
def test_other_names_are_misdirected(host: str) -> None:
    with pytest.raises(HttpRefusal) as refusal:
        check_host(request(host), ACCESS)
    assert (refusal.value.status, refusal.value.code) == (421, "wrong_host")


@pytest.mark.parametrize(
    ("target", "is_fine"),
    [
        ("http://localhost:8080/v1/models", True),
        ("http://attic.local/v1/models?x=http://a", True),
        ("http://evil.example/v1/models", False),
        ("http://localhost@evil.example/", False),
        ("http://evil.example", False),
        ("//", True),
        ("*", True),
    ],
)
def test_an_absolute_target_must_name_us_too(target: str, is_fine: bool) -> None:
    if is_fine:
        assert check_host(request(target=target), ACCESS) == "localhost"
    else:
        with pytest.raises(HttpRefusal):
            check_host(request(target=target), ACCESS)


@pytest.mark.parametrize("hosts", [(), ("localhost", "localhost")])
def test_no_host_or_two_are_a_bad_request(hosts: tuple[str, ...]) -> None:
    found = Request(ip="127.0.0.1", is_http10=False, target="/", headers={}, hosts=hosts)
    with pytest.raises(HttpRefusal) as refusal:
        check_host(found, ACCESS)
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    ("origin", "host", "is_fine"),
    [
        ("http://localhost:8080", "localhost:8080", True),
        ("https://attic.local", "attic.local", True),
        ("https://chat.example", "localhost:8080", True),
        ("http://localhost:3000", "localhost:8080", False),
        ("https://chat.example.evil", "localhost:8080", False),
        ("http://chat.example", "localhost:8080", False),
        ("https://evil.example", "localhost:8080", False),
        ("null", "localhost:8080", False),
        ("", "localhost:8080", False),
        ("file://", "localhost:8080", False),
    ],
)
def test_pages_of_other_origins_are_refused(origin: str, host: str, is_fine: bool) -> None:
    access = Access(hosts=frozenset({"attic.local"}), origins=frozenset({"https://chat.example"}))
    found = request(host, origin=origin, path="/v1/models")
    if is_fine:
        assert check_origin(found, access) is (origin in access.origins)
    else:
        with pytest.raises(HttpRefusal) as refusal:
            check_origin(found, access)
        assert (refusal.value.status, refusal.value.code) == (403, "origin_not_allowed")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/api/users", "/v1/models", "/dashboard", "/api/api-keys/x"])
def test_a_foreign_page_is_refused_whatever_the_method(method: str, path: str) -> None:
    """Ray's CVE-2026-27482: the browser filter listed POST and PUT, and forgot DELETE."""
    found = request(method=method, path=path, origin="https://evil.example", authorization="Bearer sk-admin")
    with pytest.raises(HttpRefusal) as refusal:
        check_origin(found, ACCESS)
    assert refusal.value.status == 403


@pytest.mark.parametrize("path", ["/api/status", "/dashboard", "/metrics", "/v1", "/api/v1/x"])
def test_a_configured_page_may_use_v1_and_nothing_else(path: str) -> None:
    access = Access(hosts=frozenset(), origins=frozenset({"https://chat.example"}))
    with pytest.raises(HttpRefusal) as refusal:
        check_origin(request(origin="https://chat.example", path=path), access)
    assert refusal.value.status == 403


@pytest.mark.parametrize(
    "found",
    [
        request(ip="192.168.1.9"),
        request(ip=""),
        request("attic.local"),
        request(http10=True),
        request(forwarded="for=1.2.3.4"),
        request(x_forwarded_for="1.2.3.4"),
        request(x_forwarded_host="a"),
        request(x_real_ip="1.2.3.4"),
        request(via="1.1 proxy"),
    ],
)
def test_what_may_come_through_a_proxy_needs_a_key(found: Request) -> None:
    assert [status_of(found, policy) for policy in (Policy.INFERENCE, Policy.LOCAL, Policy.CONTROL)] == [401] * 3
    assert status_of(found, Policy.PUBLIC) == 200


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_a_program_on_this_machine_needs_no_key(ip: str) -> None:
    assert status_of(request(ip=ip), Policy.INFERENCE) == 200
    assert status_of(request(ip=ip), Policy.LOCAL) == 200
    for policy in (Policy.CONTROL, Policy.ADMIN, Policy.VIEW, Policy.SELF):
        assert status_of(request(ip=ip), policy) == 401


@pytest.mark.parametrize("header", [{"authorization": f"bearer {TOKEN}"}, {"x_api_key": TOKEN}, {"api_key": TOKEN}])
def test_the_control_token_opens_everything_on_this_machine_only(header: dict[str, str]) -> None:
    strict = Access(hosts=frozenset(), loopback="key", control_token=TOKEN)
    for policy in Policy:
        assert status_of(request(**header), policy, strict) == 200  # type: ignore[arg-type]
    admission = admit(request(**header), strict, Policy.ADMIN, SECRETS)  # type: ignore[arg-type]
    assert admission.scopes == SCOPES and admission.principal is not None and admission.principal.key_id == "control"
    for policy in (Policy.LOCAL, Policy.CONTROL, Policy.INFERENCE):
        assert status_of(request(ip="192.168.1.9", **header), policy, strict) == 401  # type: ignore[arg-type]


def test_loopback_can_be_made_to_need_a_key() -> None:
    strict = Access(hosts=frozenset(), loopback="key", control_token=TOKEN)
    assert status_of(request(), Policy.INFERENCE, strict) == 401
    assert status_of(request(authorization="Bearer wrong"), Policy.INFERENCE, strict) == 401


def test_an_empty_control_token_is_no_token() -> None:
    access = Access(hosts=frozenset(), loopback="key")
    for value in ("Bearer ", "Bearer", "Bearer  "):
        assert status_of(request(authorization=value), Policy.CONTROL, access) == 401


def test_open_opens_inference_and_nothing_else() -> None:
    access = Access(hosts=frozenset(), open_to_lan=True, control_token=TOKEN)
    found = request(ip="192.168.1.9")
    assert status_of(found, Policy.INFERENCE, access) == 200
    assert status_of(found, Policy.LOCAL, access) == 401
    assert status_of(found, Policy.CONTROL, access) == 401


# -- who holds which secret

ALLOWED = {
    # PUBLIC and AGENT ask nobody; what each secret opens of the others, written down once more
    "sk-inference": {Policy.INFERENCE, Policy.LOCAL},
    "sk-metrics": {Policy.METRICS, Policy.LOCAL},
    "sk-read": {Policy.VIEW, Policy.LOCAL},
    "sk-admin": {Policy.INFERENCE, Policy.METRICS, Policy.VIEW, Policy.ADMIN, Policy.LOCAL},
    "admin.s.t": set(Policy) - {Policy.CONTROL, Policy.PUBLIC, Policy.AGENT},
    "viewer.s.t": {Policy.VIEW, Policy.LOCAL, Policy.SELF},
}


@pytest.mark.parametrize("secret", ALLOWED)
@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("ip", ["127.0.0.1", LAN])
def test_a_secret_opens_what_its_scopes_say_wherever_it_is_shown(secret: str, policy: Policy, ip: str) -> None:
    """On this machine too: who shows a key is served as that key, not as who needs none."""
    is_allowed = policy in ALLOWED[secret] or policy in (Policy.PUBLIC, Policy.AGENT)
    for header in ({"authorization": f"Bearer {secret}"}, {"x_api_key": secret}, {"api_key": secret}):
        assert status_of(request(ip=ip, **header), policy) == (200 if is_allowed else 403)  # type: ignore[arg-type]


@pytest.mark.parametrize("secret", ["none", "sk-no-key-required", "ollama", "' OR 1=1 --", "é", "k" * 10_000])
def test_what_no_mesh_gave_out_counts_as_no_key_where_none_is_needed_and_is_401_elsewhere(secret: str) -> None:
    """Many clients insist on a key, and come with one of their own."""
    is_open = Access(hosts=frozenset(), open_to_lan=True, control_token=TOKEN)
    closed = Access(hosts=frozenset(), loopback="key", control_token=TOKEN)
    shown = {"authorization": f"Bearer {secret}"}
    assert status_of(request(ip="127.0.0.1", **shown), Policy.INFERENCE) == 200  # type: ignore[arg-type]
    assert status_of(request(ip="127.0.0.1", **shown), Policy.ADMIN) == 401  # type: ignore[arg-type]
    assert status_of(request(ip=LAN, **shown), Policy.INFERENCE, is_open) == 200  # type: ignore[arg-type]
    assert status_of(request(ip=LAN, **shown), Policy.LOCAL, is_open) == 401  # type: ignore[arg-type]
    for ip, access in ((LAN, ACCESS), ("127.0.0.1", closed)):
        refusal = refused(request(ip=ip, **shown), Policy.INFERENCE, access)  # type: ignore[arg-type]
        assert (refusal.status, refusal.code) == (401, "invalid_api_key")


@pytest.mark.parametrize("secret", ["sk-mesh-wrong", "wrong.session.token", "sk-expired", "sk-mesh-' OR 1=1 --"])
@pytest.mark.parametrize("access", [ACCESS, Access(hosts=frozenset(), open_to_lan=True, control_token=TOKEN)])
@pytest.mark.parametrize("ip", ["127.0.0.1", LAN])
def test_a_wrong_secret_is_401_even_where_none_is_needed(secret: str, access: Access, ip: str) -> None:
    for policy in set(Policy) - {Policy.PUBLIC, Policy.AGENT}:
        for header in ("authorization", "x_api_key", "api_key"):
            value = f"Bearer {secret}" if header == "authorization" else secret
            refusal = refused(request(ip=ip, **{header: value}), policy, access)  # type: ignore[arg-type]
            assert (refusal.status, refusal.code, refusal.headers["WWW-Authenticate"]) == (
                401,
                "invalid_api_key",
                "Bearer",
            )
            assert len(secret) < 2 or secret not in refusal.message
    assert status_of(request(ip=ip, authorization=f"Bearer {secret}"), Policy.PUBLIC, access) == 200


def test_the_reason_why_a_key_does_not_count_is_said_to_its_owner() -> None:
    assert refused(request(x_api_key="sk-expired"), Policy.INFERENCE).message == "API key expired."


@pytest.mark.parametrize(
    "value",
    ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "Bearer   ", "", "Digest x", "sk-inference", "Token sk-inference"],
)
def test_another_scheme_or_an_empty_key_is_401_and_no_caller_without_a_key(value: str) -> None:
    assert refused(request(authorization=value), Policy.INFERENCE).code == "invalid_api_key"


def test_two_secrets_that_differ_are_401_and_the_same_twice_is_one() -> None:
    """Open WebUI's CVE-2026-45339: a second spelling of the header skipped the policy."""
    for other in ({"api_key": "sk-admin"}, {"x_api_key": "sk-admin"}, {"x_api_key": ""}):
        found = request(authorization="Bearer sk-inference", **other)  # type: ignore[arg-type]
        assert status_of(found, Policy.INFERENCE) == status_of(found, Policy.ADMIN) == 401
    assert status_of(request(x_api_key="sk-inference", api_key="sk-admin"), Policy.ADMIN) == 401
    same = request(authorization="bearer sk-inference", x_api_key="sk-inference", api_key=" sk-inference ")
    assert status_of(same, Policy.INFERENCE) == 200


def test_the_key_that_programs_insist_on_is_none() -> None:
    assert NO_KEY == PLACEHOLDER_KEY
    found = request(authorization=f"Bearer {NO_KEY}")
    admission = admit(found, ACCESS, Policy.INFERENCE, SECRETS)
    assert admission == Admission(is_local=True, principal=None, scopes=frozenset({"inference", "cloud"}))
    assert status_of(request(ip=LAN, authorization=f"Bearer {NO_KEY}"), Policy.INFERENCE) == 401
    assert status_of(found, Policy.ADMIN) == 401


def test_loopback_may_use_clouds_and_an_open_network_may_not() -> None:
    access = Access(hosts=frozenset(), open_to_lan=True)
    assert admit(request(), access, Policy.INFERENCE).scopes == {"inference", "cloud"}
    assert admit(request(ip=LAN), access, Policy.INFERENCE).scopes == {"inference"}


def test_the_control_token_is_a_wrong_key_from_anywhere_else() -> None:
    for found in (request(ip=LAN, x_api_key=TOKEN), request(via="1.1 proxy", x_api_key=TOKEN)):
        assert refused(found, Policy.INFERENCE).code == "invalid_api_key"


def test_what_a_refusal_says_can_be_done() -> None:
    assert "llm-router keys create" in refused(request(ip=LAN), Policy.INFERENCE).message
    assert "llm-router users add" in refused(request(), Policy.ADMIN).message
    assert "'admin'" in refused(request(x_api_key="sk-read"), Policy.ADMIN).message
    for policy in (Policy.ADMIN, Policy.VIEW, Policy.METRICS, Policy.CONTROL, Policy.SELF):
        found = refused(request(x_api_key="sk-inference"), policy)
        assert (found.status, found.code, found.type) == (403, "not_allowed", "permission_error")


@given(st.dictionaries(st.sampled_from(["authorization", "x-api-key", "api-key"]), st.text(max_size=40)))
def test_any_headers_hold_one_secret_none_or_are_refused(headers: dict[str, str]) -> None:
    try:
        secret = offered_secret(headers)
    except HttpRefusal as refusal:
        assert refusal.status == 401
    else:
        assert (secret is None) == (not headers)
        assert secret is None or all(secret in value for value in headers.values())


# -- cookies


def page(method: str = "GET", **headers: str) -> Request:
    """What a browser sends from the dashboard's own page, with the cookie of an admin's login."""
    found = {"cookie": f"theme=dark; {COOKIE}=admin.s.t", "origin": "http://attic.local:8080", "x-csrf-token": "c" * 32}
    kept = {name: value for name, value in (found | headers).items() if value}
    return Request(
        ip=LAN, is_http10=False, target="/", headers=kept, hosts=("attic.local:8080",), method=method, path="/api/users"
    )


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_the_dashboards_own_page_does_what_its_login_may(method: str) -> None:
    admission = admit(page(method), ACCESS, Policy.ADMIN, SECRETS)
    assert admission.principal is not None and admission.principal.username == "ann"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT"])
@pytest.mark.parametrize(
    "change",
    [
        {"x-csrf-token": ""},
        {"x-csrf-token": "d" * 32},
        {"x-csrf-token": "c" * 31},
        {"origin": ""},
        {"origin": "http://attic.local:3000"},
        {"origin": "https://chat.example"},
        {"origin": "null"},
    ],
)
def test_a_cookie_alone_changes_nothing(method: str, change: dict[str, str]) -> None:
    access = Access(hosts=frozenset({"attic.local"}), origins=frozenset({"https://chat.example"}), control_token=TOKEN)
    refusal = refused(page(method, **change), Policy.ADMIN, access)
    assert (refusal.status, refusal.code) == (403, "csrf")


def test_reading_needs_neither_origin_nor_token() -> None:
    assert status_of(page("GET", **{"origin": "", "x-csrf-token": ""}), Policy.VIEW) == 200


def test_a_cookie_never_makes_this_machine_more_than_its_login() -> None:
    """A viewer's browser on the peer's own machine stays a viewer, and without the CSRF token it posts nothing."""
    viewer = {"cookie": f"{COOKIE}=viewer.s.t", "x-csrf-token": "d" * 32, "origin": "http://localhost:8080"}
    found = Request(
        ip="127.0.0.1", is_http10=False, target="/", headers=viewer, hosts=("localhost:8080",), method="POST",
        path="/api/chat",
    )  # fmt: skip
    assert status_of(found, Policy.INFERENCE) == 403
    assert status_of(found, Policy.LOCAL) == 200


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/", "/dashboards", "/api", "/openapi.json"])
def test_cookies_count_on_api_and_dashboard_only(path: str) -> None:
    found = request("attic.local", ip=LAN, path=path, cookie=f"{COOKIE}=admin.s.t")
    assert status_of(found, Policy.VIEW) == 401
    assert (
        status_of(request("attic.local", ip=LAN, path="/dashboard", cookie=f"{COOKIE}=admin.s.t"), Policy.VIEW) == 200
    )


@pytest.mark.parametrize(
    "cookie", [f"{COOKIE}=gone.s.t", f"{COOKIE}=", COOKIE, f"{COOKIE}=admin.s.t; {COOKIE}=viewer.s.t"]
)
def test_a_login_that_has_ended_is_401_on_this_machine_too(cookie: str) -> None:
    found = request(path="/api/status", cookie=cookie)
    refusal = refused(found, Policy.LOCAL)
    assert (refusal.status, refusal.code) == (401, "login_ended")
    assert status_of(found, Policy.PUBLIC) == 200


def test_a_secret_in_a_header_counts_before_a_cookie() -> None:
    found = page("POST", **{"x-csrf-token": "", "authorization": "Bearer sk-inference"})
    assert status_of(found, Policy.INFERENCE) == 200
    assert status_of(found, Policy.ADMIN) == 403


@pytest.mark.parametrize("cookie", ["", "x", ";;;", "=", f"x{COOKIE}=admin.s.t", f"{COOKIE.upper()}=admin.s.t"])
def test_other_cookies_are_nobodys_business(cookie: str) -> None:
    assert admit(request(path="/api/status", cookie=cookie), ACCESS, Policy.LOCAL, SECRETS).principal is None


@given(st.text(max_size=30))
def test_any_text_as_host_is_a_name_or_nothing(text: str) -> None:
    host = hostname(text)
    assert host is None or (host == host.lower() and not set(host) & set("/@[]"))


@given(st.ip_addresses())
def test_loopback_is_what_the_standard_library_calls_so(address: object) -> None:
    assert is_loopback(str(address)) == (
        str(address).startswith("127.") or str(address) == "::1" or str(address).startswith("::ffff:127.")
        or (":" in str(address) and str(address).startswith("::ffff:7f"))
    )  # fmt: skip
