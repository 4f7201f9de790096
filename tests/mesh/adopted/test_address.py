"""Where a server may be registered: a table of hosts in every spelling that got past somebody's list."""

from __future__ import annotations

import pytest

from mesh.adopted.address import Origin, Rules, origin_at, origin_of, peer_ports_of, pinned
from mesh.adopted.errors import AddressRefused

LAN = "192.168.1.20"
# What the resolver says of each name; a literal is its own address.
NAMES = {
    "gpu-box.lan": [LAN],
    "both.local": ["fe80::1", LAN],
    "only-link-local.local": ["fe80::1"],
    "rebind.test": [LAN, "127.0.0.1"],
    "127.0.0.1.nip.io": ["127.0.0.1"],
    "localtest.me": ["127.0.0.1", "::1"],
    "evil.test": ["169.254.169.254"],
    "wrapped.test": ["::ffff:169.254.169.254"],
    "nothing.test": [],
    "localhost": ["127.0.0.1", "::1"],
    "localhost.localdomain": ["127.0.0.1"],
    "ip6-localhost": ["::1"],
    "anything.localhost": ["127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
    "v6.lan": ["fd12:3456::5"],
}
RULES = Rules(peer_ports=frozenset({(LAN, 8081)}), own_ports=frozenset({8080, 8081}))


def where(host: str, port: int = 11434, rules: Rules = RULES) -> str:
    origin = origin_at(host, port)
    return pinned(origin, NAMES.get(origin.host, [origin.host]), rules)


@pytest.mark.parametrize(
    "host",
    [
        # unspecified
        "0.0.0.0",
        "0.1.2.3",
        "[::]",
        "::",
        "0",
        "0:0:0:0:0:0:0:0",
        # loopback, in every spelling
        "127.0.0.1",
        "127.8.8.8",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "localhost.localdomain",
        "anything.localhost",
        "ip6-localhost",
        "[::1]",
        "0:0:0:0:0:0:0:1",
        "::ffff:127.0.0.1",
        "[::ffff:7f00:1]",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.01",
        "127.0.0.1.",
        "127.0.0.1.nip.io",
        "localtest.me",
        "１２７.0.0.1",
        "127。0。0。1",
        "ⓛocalhost",
        "%31%32%37.0.0.1",
        "127.0.0.1%00",
        "127.0.0.1\n",
        "127.0.0.1 evil",
        "0x",
        "1.2.3.0x",
        # link-local and metadata
        "169.254.169.254",
        "169.254.0.1",
        "169.254.170.2",
        "[fe80::1]",
        "fe80::1%eth0",
        "[fe80::1%25eth0]",
        "::ffff:169.254.169.254",
        "::ffff:a9fe:a9fe",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "[fd00:ec2::254]",
        "fd20:ce::254",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "metadata.google.internal",
        "METADATA.GOOGLE.INTERNAL.",
        "metadata",
        "metadata.goog",
        "instance-data",
        "evil.test",
        "wrapped.test",
        "only-link-local.local",
        # multicast, broadcast, reserved
        "224.0.0.251",
        "239.255.255.250",
        "255.255.255.255",
        "240.0.0.1",
        "[ff02::fb]",
        "fec0::1",
        "64:ff9b:1::1",
        # a name that means several things, or nothing
        "rebind.test",
        "nothing.test",
        "",
        ".",
        "-evil.test",
        "evil..test",
        "user@evil.test",
        "evil.test/path",
        "evil.test:80",
        "evil.test\\@127.0.0.1",
        "x" * 64 + ".test",
        "a." * 130 + "test",
        "[127.0.0.1]",
        "[192.168.1.20]",
        "[::1",
        "::1]",
        "1.2.3.4.5",
        "256.1.1.1",
        "g::1",
    ],
)
def test_a_host_that_no_server_may_be_at_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        where(host)
    assert caught.value.status == 400 and caught.value.message.isprintable() and len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("host", "address"),
    [
        (LAN, LAN),
        ("10.0.0.7", "10.0.0.7"),
        ("172.16.3.4", "172.16.3.4"),
        ("100.64.0.9", "100.64.0.9"),
        ("[fd12:3456::5]", "fd12:3456::5"),
        ("FD12:3456:0::5", "fd12:3456::5"),
        ("::ffff:192.168.1.20", LAN),
        ("gpu-box.lan", LAN),
        ("GPU-Box.LAN.", LAN),
        ("both.local", LAN),
        ("v6.lan", "fd12:3456::5"),
        ("8.8.8.8", "8.8.8.8"),
        ("2606:4700::1111", "2606:4700::1111"),
        (f" {LAN} ", LAN),
    ],
)
def test_a_machine_on_the_network_is_pinned_to_its_address(host: str, address: str) -> None:
    assert where(host) == address


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "anything.localhost", "::ffff:127.0.0.1"])
def test_the_machine_itself_is_for_its_own_command_line_only(host: str) -> None:
    with pytest.raises(AddressRefused, match="backend add"):
        where(host)
    here = Rules(allow_loopback=True, own_ports=frozenset({8080, 8081}))
    assert where(host, rules=here) in ("127.0.0.1", "::1")
    for port in (8080, 8081):
        with pytest.raises(AddressRefused, match="port of this peer"):
            where(host, port, here)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "169.254.169.254", "224.0.0.1", "127.1", "2130706433"])
def test_its_own_command_line_may_not_everything_either(host: str) -> None:
    with pytest.raises(AddressRefused):
        where(host, rules=Rules(allow_loopback=True))


@pytest.mark.parametrize("host", [LAN, "gpu-box.lan", "::ffff:192.168.1.20", "both.local"])
def test_ports_of_the_mesh_are_no_servers(host: str) -> None:
    with pytest.raises(AddressRefused, match="port of a peer"):
        where(host, 8081)
    assert where(host, 8080) == LAN


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://192.168.1.20:11434", Origin(scheme="http", host=LAN, port=11434)),
        ("http://192.168.1.20:11434/", Origin(scheme="http", host=LAN, port=11434)),
        ("http://192.168.1.20:11434/v1", Origin(scheme="http", host=LAN, port=11434)),
        ("HTTPS://GPU.lan/v1/", Origin(scheme="https", host="gpu.lan", port=443)),
        ("http://gpu.lan", Origin(scheme="http", host="gpu.lan", port=80)),
        ("http://[fd00::5]:8000", Origin(scheme="http", host="fd00::5", port=8000)),
    ],
)
def test_an_origin_is_read(url: str, origin: Origin) -> None:
    assert origin_of(url) == origin
    assert origin_of(str(origin)) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "192.168.1.20:11434",
        "ftp://192.168.1.20",
        "file:///etc/passwd",
        "gopher://192.168.1.20:70",
        "http://",
        "http:///v1",
        "http://user:pass@192.168.1.20",
        "http://192.168.1.20@127.0.0.1",
        "http://192.168.1.20:99999",
        "http://192.168.1.20:0",
        "http://192.168.1.20:-1",
        "http://192.168.1.20:80:80",
        "http://192.168.1.20/v1/chat",
        "http://192.168.1.20/../v1",
        "http://192.168.1.20?x=1",
        "http://192.168.1.20#x",
        "http:\\\\192.168.1.20",
        "http://192.168.1.20\\@evil",
        "http://192.168.1.20\r\nHost: evil",
        "http://192.168.1.20 ",
        "http://１９２.168.1.20",
        "http://0x7f000001",
        "http://[fe80::1%25eth0]",
        "http://metadata.google.internal",
        "javascript:alert(1)",
    ],
)
def test_what_is_no_origin_is_refused(url: str) -> None:
    if url.endswith(" "):
        assert origin_of(url).host == LAN  # space around it is a slip of the clipboard
        return
    with pytest.raises(AddressRefused):
        origin_of(url)


@pytest.mark.parametrize(("host", "is_here"), [("127.0.0.1", True), ("localhost", True), ("::1", True), (LAN, False)])
def test_an_origin_says_whether_it_is_on_this_machine(host: str, is_here: bool) -> None:
    assert origin_at(host, 1).is_here is is_here


def test_ports_of_members_are_read_from_what_they_say_of_themselves() -> None:
    told = ["192.168.1.20:8081", "[FD00:0::5]:8081", "::ffff:10.0.0.1:9", "attic.lan:8081", "", "x", "1.2.3.4:port"]
    assert peer_ports_of(told) == {(LAN, 8081), ("fd00::5", 8081), ("10.0.0.1", 9)}
