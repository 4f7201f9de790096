"""The files of the dashboard as they are in the package: the page, its scripts, style and picture. No template.

They are read once, when the peer starts, and known by name: what a caller asks for is looked up, it never forms a path.
Browsers keep them and ask each time whether they are still the same (RFC 9110 section 13.1.2, RFC 9111 section
5.2.2.4), so that after an update nobody runs scripts of two versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from aiohttp import ETag, web

from web.errors import HttpRefusal
from web.route import Answer, Operation

_SCRIPT = "text/javascript"
_TYPES = {
    "dashboard.css": "text/css",
    "favicon.svg": "image/svg+xml",
    "dashboard.js": _SCRIPT,
    "api.js": _SCRIPT,
    "entry.js": _SCRIPT,
    "feeds.js": _SCRIPT,
    "home.js": _SCRIPT,
    "keys.js": _SCRIPT,
    "page.js": _SCRIPT,
    "words.js": _SCRIPT,
}
# Everything from this peer and nothing inline: a text that became markup by mistake could still run nothing.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PAGE_HEADERS = {"Content-Security-Policy": _PAGE_POLICY, "Cross-Origin-Opener-Policy": "same-origin"}
# Opened by itself, a picture is a document too.
_ASSET_HEADERS = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One file. `tag` is that of its bytes (ETag)."""

    content_type: str
    body: bytes
    tag: str
    headers: Mapping[str, str]


def _asset(name: str, content_type: str, headers: Mapping[str, str]) -> Asset:
    body = files("web").joinpath("static", name).read_bytes()
    tag = hashlib.sha256(body).hexdigest()[:32]
    return Asset(content_type=content_type, body=body, tag=tag, headers={**_HEADERS, **headers})


PAGE = _asset("dashboard.html", "text/html", _PAGE_HEADERS)
ASSETS: Mapping[str, Asset] = MappingProxyType({name: _asset(name, of, _ASSET_HEADERS) for name, of in _TYPES.items()})
"""What `/dashboard/{name}` answers, by name."""


class AssetRoutes:
    """Handler of `/dashboard/{name}`."""

    async def asset(self, request: web.Request) -> web.Response:
        """The file of that name. Raises HttpRefusal 404."""
        name = request.match_info["name"]
        asset = ASSETS.get(name)
        if asset is None:
            raise HttpRefusal(404, f"The dashboard has no file {name[:80]!r}.", code="unknown_url")
        return answer(request, asset)


def answer(request: web.Request, asset: Asset) -> web.Response:
    """The file, or 304 when the caller has it."""
    if _is_held(request.if_none_match, asset.tag):
        response = web.Response(status=304, headers=asset.headers)
    else:
        charset = None if asset.content_type == "image/svg+xml" else "utf-8"
        response = web.Response(
            body=asset.body, content_type=asset.content_type, charset=charset, headers=asset.headers
        )
    response.etag = asset.tag
    return response


def _is_held(tags: tuple[ETag, ...] | None, tag: str) -> bool:
    """Weak comparison, as for GET: proxies that compress make tags weak."""
    return any(each.value in (tag, "*") for each in tags or ())


_NOT_CHANGED = Answer(description="The caller has it.", headers=("ETag",))
ASSET = Operation(
    summary="A file of the dashboard",
    tag="about",
    answers={200: Answer(media=tuple(sorted(set(_TYPES.values()))), headers=("ETag",)), 304: _NOT_CHANGED},
    errors=(404,),
)
PAGE_OPERATION = Operation(
    summary="The dashboard",
    tag="about",
    answers={200: Answer(media=("text/html",), headers=("ETag",)), 304: _NOT_CHANGED},
)
