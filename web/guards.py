"""Who may do what: pure decisions over the few facts of a request that matter. No I/O, no aiohttp.

Order: the Host must be one of ours (DNS rebinding), the Origin must not be foreign (a web page in a browser here must
not drive this peer), then the route's policy decides by where the caller is and which secret it holds. See
RFC 9110 section 7.2 (Host) and RFC 6454 section 7 (Origin).
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from web.errors import HttpRefusal
from web.services import Access

# Names that DNS cannot point elsewhere on a sane machine; they are allowed on every bind.
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@?#\s\\]+)(?::([0-9]{1,5}))?")
_FOREIGN_PROXY_HEADERS = ("forwarded", "x-real-ip", "via")


class Policy(enum.Enum):
    """What a route asks of its caller."""

    PUBLIC = "anybody"
    INFERENCE = "this machine, a key for inference, or the network when the listener is open"
    LOCAL = "this machine, any valid key, or a login"
    METRICS = "this machine, or a key for metrics"
    VIEW = "a login, a key that may read admin state, or the control token"
    ADMIN = "a login as admin, a key that may do everything, or the control token"
    AGENT = "a registered server with its token, which the handler checks"
    SELF = "a login"
    CONTROL = "the control token, on this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The facts of one request. Header names are lower case; `ip` is the other end of the socket."""

    ip: str
    is_http10: bool
    target: str
    headers: Mapping[str, str]
    hosts: tuple[str, ...]  # every Host header, normally one


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What the guards found: the caller is on this machine without a proxy between, or holds the control token."""

    is_local: bool
    is_control: bool


def check_host(request: Request, access: Access) -> str:
    """The host the caller meant, normalized. Raises HttpRefusal 421, or 400 when there is none or more than one."""
    if len(request.hosts) != 1:
        raise HttpRefusal(400, f"Expected one Host header, but got {len(request.hosts)}.", must_close=True)
    hosts = [hostname(request.hosts[0])]
    if not request.target.startswith(("/", "*")):  # absolute form: its authority counts, and must be ours as well
        hosts.append(hostname(_authority(request.target)))
    for host in hosts:
        if host is None or (host not in LOCAL_NAMES and host not in access.hosts):
            raise HttpRefusal(
                421,
                "This peer does not answer to that host name. If it is a name of this machine, add it to "
                "LLM_ROUTER_ALLOWED_HOSTS.",
                code="wrong_host",
            )
    return hosts[0] or ""


def check_origin(request: Request, access: Access) -> bool:
    """True when the caller is a web page of a configured origin. Raises HttpRefusal 403 for any other foreign page."""
    origin = request.headers.get("origin")
    if origin is None:
        return False
    if origin in access.origins:
        return True
    if origin in (f"http://{request.hosts[0]}", f"https://{request.hosts[0]}"):
        return False
    raise HttpRefusal(
        403,
        "Web pages of that origin may not use this peer. If you trust it, add it to LLM_ROUTER_ALLOWED_ORIGINS.",
        code="origin_not_allowed",
        error_type="permission_error",
    )


def admit(request: Request, access: Access, policy: Policy) -> Admission:
    """What the caller may be told to be. Raises HttpRefusal 401. `check_host` and `check_origin` came before."""
    secret = offered_secret(request.headers)
    is_local = is_loopback(request.ip) and not has_proxy_signs(request) and _is_local_host(request.hosts[0])
    is_control = is_local and secret is not None and _is_control_token(secret, access)
    may_without_key = is_local and access.loopback == "open"
    match policy:
        case Policy.PUBLIC | Policy.AGENT:
            is_admitted = True
        case Policy.INFERENCE:
            is_admitted = is_control or may_without_key or access.open_to_lan
        case Policy.LOCAL | Policy.METRICS:
            is_admitted = is_control or may_without_key
        case Policy.CONTROL | Policy.VIEW | Policy.ADMIN | Policy.SELF:
            is_admitted = is_control
    if not is_admitted:
        raise _unauthorized(policy, has_secret=has_credentials(request.headers))
    return Admission(is_local=is_local, is_control=is_control)


def offered_secret(headers: Mapping[str, str]) -> str | None:
    """The key in `Authorization: Bearer`, `x-api-key` or `api-key`. Raises HttpRefusal 401 when two differ."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    found = {headers.get("x-api-key", "").strip(), headers.get("api-key", "").strip()}
    if scheme.lower() == "bearer":
        found.add(bearer.strip())
    found.discard("")
    if len(found) > 1:
        raise HttpRefusal(
            401,
            "Two different API keys were sent; send one.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return found.pop() if found else None


def has_credentials(headers: Mapping[str, str]) -> bool:
    """True when the caller tried to authenticate, however badly."""
    return any(name in headers for name in ("authorization", "x-api-key", "api-key"))


def has_proxy_signs(request: Request) -> bool:
    """True when something forwarded this request: its loopback address then says nothing about the caller."""
    return request.is_http10 or any(
        name in _FOREIGN_PROXY_HEADERS or name.startswith("x-forwarded-") for name in request.headers
    )


def is_loopback(ip: str) -> bool:
    """True for 127.0.0.0/8, ::1 and IPv4-mapped forms of the former."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def hostname(authority: str) -> str | None:
    """`authority` without port, brackets and final dot, in lower case; None when it is none."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None or (match[2] and int(match[2]) > 65535):
        return None
    host = match[1].lower()
    if not host.startswith("["):
        return host[:-1] if host.endswith(".") else host
    try:
        return str(ipaddress.IPv6Address(host[1:-1]))
    except ValueError:
        return None


def _authority(target: str) -> str:
    return target.partition("://")[2].partition("/")[0].partition("?")[0]


def _is_local_host(authority: str) -> bool:
    host = hostname(authority)
    return host is not None and (host in LOCAL_NAMES or is_loopback(host))


def _is_control_token(secret: str, access: Access) -> bool:
    token = access.control_token
    return bool(token) and hmac.compare_digest(secret.encode("utf-8", "surrogateescape"), token.encode())


def _unauthorized(policy: Policy, *, has_secret: bool) -> HttpRefusal:
    if policy is Policy.CONTROL:
        way_out = "It is for the llm-router command on the same machine."
    elif policy is Policy.LOCAL:
        way_out = "It answers programs on the peer's own machine only."
    else:
        way_out = (
            "The peer answers programs on its own machine only; start it with --open to let the network use it. "
            "Keys come in a later version."
        )
    return HttpRefusal(
        401,
        ("Incorrect API key provided. " if has_secret else "You did not provide an API key. ") + way_out,
        code="invalid_api_key" if has_secret else None,
        headers={"WWW-Authenticate": "Bearer"},
    )
