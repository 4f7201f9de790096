"""What values a setting can take: a kind parses a text and says what it allows. The table is `mesh.settings`."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mesh.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What values a setting takes. `parse` raises ValueError; `allowed` completes the sentence "allowed is ..."."""

    allowed: str
    parse: Callable[[str], object]
    metavar: str
    is_switch: bool = False


def integer(low: int, high: int, *, zero: str = "") -> Kind:
    """A whole number in a closed range."""

    def parse(text: str) -> int:
        number = int(text.replace("_", ""))
        if not low <= number <= high:
            raise ValueError
        return number

    return Kind(
        allowed=f"a whole number, {low} to {high}" + (f" (0: {zero})" if zero else ""), parse=parse, metavar="N"
    )


def seconds(low: float, high: float, *, zero: str = "") -> Kind:
    """A duration in seconds, fractions allowed."""

    def parse(text: str) -> float:
        number = float(text.removesuffix("s"))
        if not low <= number <= high:  # NaN fails here too
            raise ValueError
        return number

    allowed = f"a number of seconds, {low:g} to {high:g}" + (f" (0: {zero})" if zero else "")
    return Kind(allowed=allowed, parse=parse, metavar="SECONDS")


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[KMGT]B|[KMGT]IB)?", re.IGNORECASE)
_SIZE_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def size(low: int = 0, *, zero: str = "") -> Kind:
    """A size in bytes, plain or with a unit. 8GB is 8 * 1000**3, 8GiB is 8 * 1024**3."""

    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError
        unit = (match[2] or "B").upper()
        base = 1024 if unit.endswith("IB") else 1000
        scale = base ** _SIZE_POWER[unit.removesuffix("IB").removesuffix("B")]
        number = int(float(match[1]) * scale) if "." in match[1] else int(match[1]) * scale
        if not low <= number <= 2**60:
            raise ValueError
        return number

    allowed = "a size such as 1073741824, 512MiB or 8GB" + (f", at least {low} bytes" if low else "")
    return Kind(allowed=allowed + (f" (0: {zero})" if zero else ""), parse=parse, metavar="SIZE")


def choice(*values: str) -> Kind:
    """One of a few words, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in values:
            raise ValueError
        return text.lower()

    return Kind(allowed="one of " + ", ".join(values), parse=parse, metavar="|".join(values))


def _parse_switch(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError


def _parse_level(text: str) -> str:
    level = {"trace": "debug", "warn": "warning", "critical": "error"}.get(text.lower(), text.lower())
    if level not in ("debug", "info", "warning", "error"):
        raise ValueError
    return level


def _parse_host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        if re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", text) is None or text[-1].isdigit():
            raise
        return text.lower()


def _parse_url(text: str) -> str:
    url = urllib.parse.urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or (url.port is not None and url.port == 0):
        raise ValueError
    return text.rstrip("/")


def _parse_origin(text: str) -> str:
    url = urllib.parse.urlsplit(_parse_url(text))
    if url.path or url.query or url.fragment or "@" in url.netloc:
        raise ValueError
    return f"{url.scheme}://{url.netloc.lower()}"


def _parse_proxy(text: str) -> str:
    return _parse_url(text if "://" in text else "http://" + text)


def _parse_path(text: str) -> Path:
    if "\0" in text:
        raise ValueError
    return Path(text).expanduser()


def _parse_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


def _parse_name(text: str) -> str:
    if not 1 <= len(_parse_line(text)) <= 63:
        raise ValueError
    return text


def _parse_database(text: str) -> Path:
    match = re.fullmatch(r"sqlite:(?://)?(.+)", text)
    if match is None:
        raise ValueError
    return _parse_path(match[1].split("?")[0])


def _parse_optional_port(text: str) -> int | None:
    if text.lower() == "off":
        return None
    number = int(text)
    if not 1 <= number <= 65535:
        raise ValueError
    return number


def _parse_auto_model(text: str) -> str | None:
    try:
        return "true" if _parse_switch(text) else None
    except ValueError:
        return _parse_line(text)


def listed(item: Kind) -> Kind:
    """Several values with commas between; in config.toml an array does too."""

    def parse(text: str) -> tuple[object, ...]:
        return tuple(item.parse(part.strip()) for part in text.split(",") if part.strip())

    return Kind(allowed=f"a list with commas between, each {item.allowed}", parse=parse, metavar=f"{item.metavar},...")


SWITCH = Kind(allowed="true or false", parse=_parse_switch, metavar="BOOL", is_switch=True)
LEVEL = Kind(allowed="one of debug, info, warning, error", parse=_parse_level, metavar="LEVEL")
HOST = Kind(allowed="an IP address or a host name", parse=_parse_host, metavar="ADDRESS")
ADDRESS = Kind(allowed="an IP address", parse=lambda text: str(ipaddress.ip_address(text)), metavar="ADDRESS")
URL = Kind(allowed="an http:// or https:// address", parse=_parse_url, metavar="URL")
ORIGIN = Kind(allowed="an origin such as http://nas.lan:3000", parse=_parse_origin, metavar="ORIGIN")
PROXY = Kind(allowed="the http:// or https:// address of a proxy", parse=_parse_proxy, metavar="URL")
PATH = Kind(allowed="a path", parse=_parse_path, metavar="PATH")
LINE = Kind(allowed="one line of text", parse=_parse_line, metavar="TEXT")
NAME = Kind(allowed="one line of 1 to 63 characters", parse=_parse_name, metavar="NAME")
SECRET = Kind(allowed="one line of text", parse=lambda text: Secret(_parse_line(text)), metavar="SECRET")
DATABASE = Kind(allowed="sqlite://PATH or sqlite:PATH", parse=_parse_database, metavar="URL")
PORT_OR_OFF = Kind(allowed="a port, 1 to 65535, or off", parse=_parse_optional_port, metavar="PORT")
AUTO_MODEL = Kind(allowed="true, off or the name of a model", parse=_parse_auto_model, metavar="true|off|NAME")
PORT = integer(0, 65535, zero="any free one")
