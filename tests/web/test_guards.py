"""Who may do what: the pure decisions, as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from web.errors import HttpRefusal
from web.guards import Policy, Request, admit, check_host, check_origin, hostname, is_loopback
from web.services import Access

TOKEN = "t" * 40
ACCESS = Access(hosts=frozenset({"attic.local", "192.168.1.5", "fd00::5"}), control_token=TOKEN)


def request(
    host: str = "localhost:8080", *, ip: str = "127.0.0.1", target: str = "/", http10: bool = False, **headers: str
) -> Request:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(ip=ip, is_http10=http10, target=target, headers=names, hosts=(host,))


def status_of(found: Request, policy: Policy, access: Access = ACCESS) -> int:
    try:
        admit(found, access, policy)
    except HttpRefusal as refusal:
        return refusal.status
    return 200


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
    found = request(host, origin=origin)
    if is_fine:
        assert check_origin(found, access) is (origin in access.origins)
    else:
        with pytest.raises(HttpRefusal) as refusal:
            check_origin(found, access)
        assert (refusal.value.status, refusal.value.code) == (403, "origin_not_allowed")


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
    assert status_of(request(ip=ip), Policy.CONTROL) == 401
    assert status_of(request(ip=ip, authorization="Bearer sk-whatever"), Policy.INFERENCE) == 200


@pytest.mark.parametrize("header", [{"authorization": f"bearer {TOKEN}"}, {"x_api_key": TOKEN}, {"api_key": TOKEN}])
def test_the_control_token_opens_everything_on_this_machine_only(header: dict[str, str]) -> None:
    strict = Access(hosts=frozenset(), loopback="key", control_token=TOKEN)
    for policy in Policy:
        assert status_of(request(**header), policy, strict) == 200  # type: ignore[arg-type]
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
