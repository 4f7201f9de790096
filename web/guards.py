"""Who may do what: pure decisions over the few facts of a request that matter. No I/O, no aiohttp.

Order: the Host must be one of ours (DNS rebinding), the Origin must not be foreign (a web page in a browser here must
not drive this peer), then who is it, then the route's policy. See RFC 9110 section 7.2 (Host), RFC 6454 section 7
(Origin), RFC 6265 section 5.4 (Cookie).

Who it is: one secret, in `Authorization: Bearer`, `x-api-key` or `api-key`: the control token (on this machine only),
an API key, or the token of a login; without one the cookie of a login, on `/api/*` and `/dashboard` only, and for
anything but GET only with an Origin of our own and the CSRF token. A secret that is wrong is 401 wherever the caller
is: who meant to be somebody is never served as nobody. Without any, this machine and an open network are let in as far
as the policy says.

What each policy asks is one function, `permits`.
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from web.errors import HttpRefusal
from web.services import Access, Principal

CONTROL = "control"
"""The id of the command line's own key."""
UNCONFIRMED = "unconfirmed"
"""The id under which the command line, or a login, counts of a machine that came by the open door and that nobody
confirmed."""
COOKIE = "llm_router_session"
KEY_PREFIX = "sk-mesh-"
NO_KEY = "loopback-needs-no-key"
"""What `llm-router env` gives to programs that insist on a key: it is none, and counts as none."""
SCOPES = frozenset({"inference", "cloud", "metrics", "admin:read", "admin"})
ROLE_SCOPES: Mapping[str, frozenset[str]] = {"admin": SCOPES, "viewer": frozenset({"admin:read"})}
"""A viewer looks, and makes no tokens: what a guest of the house may do with models is a key's to say."""
LOOPBACK_SCOPES = frozenset({"inference", "cloud"})
OPEN_SCOPES = frozenset({"inference"})

# Names that DNS cannot point elsewhere on a sane machine; they are allowed on every bind.
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@?#\s\\]+)(?::([0-9]{1,5}))?")
# What proxies and tunnels add to what they forward, and no program on the same machine sends by itself. Not complete:
# one that adds nothing and keeps no Host of its own is not seen, which is what LLM_ROUTER_LOOPBACK=key is for.
_PROXY_SIGNS = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip"})
_PROXY_PREFIXES = (
    "x-forwarded",
    "x-original-",
    "x-envoy-",
    "x-arr-",
    "x-proxyuser-",
    "cf-",
    "fastly-",
    "fly-",
    "tailscale-",
)
_FOREIGN_SITES = frozenset({"cross-site", "same-site"})
_ABOUT_KEYS = (
    "Make one on a machine of the mesh with `llm-router keys create`, and send it as 'Authorization: Bearer KEY'. "
    f"Programs on the peer's own machine need none (those that insist send '{NO_KEY}')."
)


class Policy(enum.Enum):
    """What a route asks of its caller."""

    PUBLIC = "anybody"
    INFERENCE = "this machine, a key for inference, a login as admin, or the network when the listener is open"
    LOCAL = "this machine, any valid key, or a login"
    METRICS = "this machine, a key for metrics, or a login as admin"
    VIEW = "a login, a key that may read admin state, or the control token"
    ADMIN = "a login as admin, a key that may do everything, or the control token"
    PERSON = "a login as admin, or the control token: no key, for one that leaked must not make itself permanent"
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
    method: str = "GET"
    path: str = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What the guards found. `is_local`: on this machine, without a proxy between. `principal`: whose secret it showed,
    None when it showed none. `scopes`: what it may do."""

    is_local: bool
    principal: Principal | None
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Whose an API key is, and whose the token of a login; None: nobody's. As `AccountsFacet` has them."""

    of_key: Callable[[str], Principal | None]
    of_session: Callable[[str], Principal | None]


NOBODYS = Secrets(of_key=lambda secret: None, of_session=lambda token: None)
"""Of a peer that has neither keys nor users."""


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
    """True when the caller is a web page of a configured origin: those may use `/v1/*`.

    Raises HttpRefusal 403 for any other foreign page, whatever the method.
    """
    if is_own_page(request, default=True):
        return False
    if request.headers["origin"] in access.origins and request.path.startswith("/v1/"):
        return True
    raise HttpRefusal(
        403,
        "Web pages of that origin may not use this peer. If you trust it, add it to LLM_ROUTER_ALLOWED_ORIGINS: then "
        "it may use /v1.",
        code="origin_not_allowed",
        error_type="permission_error",
    )


def is_own_page(request: Request, *, default: bool) -> bool:
    """Whether a page of this peer asks; `default` when no page says that it does."""
    origin = request.headers.get("origin")
    return default if origin is None else origin in (f"http://{request.hosts[0]}", f"https://{request.hosts[0]}")


def admit(request: Request, access: Access, policy: Policy, secrets: Secrets = NOBODYS) -> Admission:
    """Who the caller is, if it may do that. Raises HttpRefusal 401 or 403. `check_host`, `check_origin` came before."""
    is_local = (
        is_loopback(request.ip)
        and _is_local_host(request.hosts[0])
        and not has_proxy_signs(request)
        and not _is_foreign_page(request, access)
    )
    try:
        principal = _principal(request, access, secrets, is_local=is_local)
    except HttpRefusal:
        if policy not in (Policy.PUBLIC, Policy.AGENT):
            raise
        principal = None  # these ask nobody who they are
    is_here = principal is None and is_local and access.loopback == "open"
    if principal is not None:
        scopes = scopes_of(principal)
    elif is_here:
        scopes = LOOPBACK_SCOPES
    else:
        scopes = OPEN_SCOPES if access.open_to_lan else frozenset()
    if not permits(policy, principal, scopes, is_here=is_here):
        raise _unauthorized(policy) if principal is None else _forbidden(policy)
    return Admission(is_local=is_local, principal=principal, scopes=scopes)


def permits(policy: Policy, principal: Principal | None, scopes: frozenset[str], *, is_here: bool) -> bool:
    """Whether `policy` lets that caller in. `is_here`: on this machine, where no secret is needed."""
    match policy:
        case Policy.PUBLIC | Policy.AGENT:
            return True
        case Policy.INFERENCE:
            return "inference" in scopes
        case Policy.LOCAL:
            return principal is not None or is_here
        case Policy.METRICS:
            return "metrics" in scopes or is_here
        case Policy.VIEW:
            return "admin:read" in scopes
        case Policy.ADMIN:
            return "admin" in scopes
        case Policy.PERSON:
            return principal is not None and (principal.role == "admin" or principal.key_id == CONTROL)
        case Policy.SELF:
            return principal is not None and (principal.user_id is not None or principal.key_id == CONTROL)
        case Policy.CONTROL:
            return principal is not None and principal.key_id == CONTROL


def scopes_of(principal: Principal) -> frozenset[str]:
    """All that it may do: `admin` contains the other scopes."""
    scopes = principal.scopes & SCOPES
    if principal.role is not None:
        scopes |= ROLE_SCOPES[principal.role]
    return SCOPES if "admin" in scopes else scopes


def _principal(request: Request, access: Access, secrets: Secrets, *, is_local: bool) -> Principal | None:
    """Whose secret the caller shows; None when it shows none. Raises HttpRefusal when it shows a wrong one."""
    secret = offered_secret(request.headers)
    if secret is not None and secret != NO_KEY:
        if is_local and _is_control_token(secret, access):
            return Principal(key_id=CONTROL, scopes=SCOPES)
        found = secrets.of_session(secret) if secret.count(".") == 2 else secrets.of_key(secret)
        if found is None:
            if not _is_of_ours(secret) and (access.open_to_lan or (is_local and access.loopback == "open")):
                return None
            raise _wrong(f"Incorrect API key provided. {_ABOUT_KEYS}")
        if found.refusal is not None:
            raise _wrong(f"{found.refusal}.")
        return found
    token = session_cookie(request)
    if token is None:
        return None
    found = secrets.of_session(token)
    if found is None or found.refusal is not None:
        raise _wrong("That login has ended; log in again.", code="login_ended")
    if request.method not in ("GET", "HEAD"):
        _check_page(request, found)
    return found


def _is_of_ours(secret: str) -> bool:
    """Whether it could be a key or a login of a mesh, perhaps one that is over. Where none is needed any other text is
    what a client sends that insists on a key: `none`, `ollama`, `sk-no-key-required`."""
    return secret.startswith(KEY_PREFIX) or secret.count(".") == 2


def offered_secret(headers: Mapping[str, str]) -> str | None:
    """The one secret in `Authorization: Bearer`, `x-api-key` and `api-key`; None when there is no such header.

    Raises HttpRefusal 401 when two differ, and when one holds none: `Authorization: Basic`, nothing behind `Bearer`.
    """
    found = {headers[name].strip() for name in ("x-api-key", "api-key") if name in headers}
    if "authorization" in headers:
        scheme, _, bearer = headers["authorization"].strip().partition(" ")
        if scheme.lower() != "bearer":
            raise _wrong(f"This peer takes 'Authorization: Bearer KEY' only. {_ABOUT_KEYS}")
        found.add(bearer.strip())
    if len(found) > 1:
        raise _wrong("Two different API keys were sent; send one.")
    if "" in found:
        raise _wrong("The API key that was sent is empty. `llm-router keys create` makes one.")
    return found.pop() if found else None


def session_cookie(request: Request) -> str | None:
    """The token of a login that a browser sent, where cookies count. Raises HttpRefusal 401 when two differ."""
    if not request.path.startswith("/api/") and request.path != "/dashboard":
        return None
    pairs = (part.strip().partition("=") for part in request.headers.get("cookie", "").split(";"))
    found = {value.strip() for name, _, value in pairs if name == COOKIE}
    if len(found) > 1:
        raise _wrong("Two different logins were sent.", code="login_ended")
    return found.pop() if found else None


def _check_page(request: Request, principal: Principal) -> None:
    """A browser sends cookies by itself: what changes anything must come from our own page, and know its token."""
    offered = request.headers.get("x-csrf-token", "")
    is_right = bool(principal.csrf) and hmac.compare_digest(_bytes(offered), _bytes(principal.csrf or ""))
    if not is_right or not is_own_page(request, default=False):
        raise HttpRefusal(
            403,
            "A login by cookie changes things only from the dashboard's own page: send its Origin, and the 'csrf' that "
            "the login answered as 'x-csrf-token'. Scripts send a key instead, or the token of a login.",
            code="csrf",
            error_type="permission_error",
        )


def has_proxy_signs(request: Request) -> bool:
    """True when something forwarded this request: its loopback address then says nothing about the caller."""
    return request.is_http10 or any(
        name in _PROXY_SIGNS or name.startswith(_PROXY_PREFIXES) for name in request.headers
    )


def _is_foreign_page(request: Request, access: Access) -> bool:
    """A page of another site asks, also where browsers send no Origin: for pictures, scripts, links, forms that get.

    See https://www.w3.org/TR/fetch-metadata/. Of a configured origin the Origin was looked at.
    """
    site = request.headers.get("sec-fetch-site", "").strip().lower()
    return site in _FOREIGN_SITES and request.headers.get("origin") not in access.origins


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
    return bool(token) and hmac.compare_digest(_bytes(secret), token.encode())


def _bytes(text: str) -> bytes:
    """Headers may hold any byte; aiohttp makes surrogates of what is no UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _wrong(message: str, code: str = "invalid_api_key") -> HttpRefusal:
    return HttpRefusal(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})


def _unauthorized(policy: Policy) -> HttpRefusal:
    """Nobody in particular, and that is not enough."""
    match policy:
        case Policy.CONTROL:
            message = "This is for the llm-router command on the peer's own machine."
        case Policy.SELF:
            message = "You are not logged in."
        case Policy.PERSON:
            message = "This needs a login as admin, or the llm-router command on a machine of the mesh."
        case Policy.ADMIN | Policy.VIEW:
            scope = "admin" if policy is Policy.ADMIN else "admin:read"
            message = (
                f"This needs a login, or an API key with the scope '{scope}'. On a machine of the mesh: "
                f"`llm-router users add NAME --role admin`, or `llm-router keys create NAME --scope {scope}`."
            )
        case _:
            message = f"You did not provide an API key. {_ABOUT_KEYS}"
    return HttpRefusal(401, message, headers={"WWW-Authenticate": "Bearer"})


def _forbidden(policy: Policy) -> HttpRefusal:
    """Somebody, who may not do that."""
    needed = {
        Policy.INFERENCE: "an API key with the scope 'inference'",
        Policy.METRICS: "an API key with the scope 'metrics'",
        Policy.VIEW: "a login, or an API key with the scope 'admin:read'",
        Policy.ADMIN: "a login as admin, or an API key with the scope 'admin'",
        Policy.PERSON: "a login as admin, or the llm-router command: an API key lets no machine in",
        Policy.SELF: "a login; an API key is none",
        Policy.CONTROL: "the llm-router command on the peer's own machine",
    }[policy]
    return HttpRefusal(403, f"This needs {needed}.", code="not_allowed", error_type="permission_error")
