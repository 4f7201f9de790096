"""The peer of this machine over HTTP, as the commands use it: control.json says where, its token says who.

Over HTTPS its certificate must be the one that control.json names, whoever signed it and for whatever names; the token
is sent after that. The standard library's client: it starts in a tenth of aiohttp's time, and a command makes one
request at a time.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import urllib.parse
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from mesh import control
from mesh.cli.failure import Exit, Failure

CONNECT_S = 5.0
ANSWER_S = 60.0
"""Between two pieces of an answer. A stream carries a comment at least every 10 s."""
WORK_S = 1800.0
"""For what moves gigabytes: loading and importing a model."""
_ANSWER_BYTES_MAX = 64 * 1024 * 1024
_PIECE_BYTES = 64 * 1024


def connect(data_dir: Path) -> Peer:
    """The running peer of that data folder. Raises Failure (exit code 3) when there is none."""
    found = control.read(data_dir)
    if found is None:
        raise _not_running(f"there is no control.json in {data_dir}")
    return Peer(found)


def elsewhere(url: str, *, token: str = "", fingerprint: str = "") -> Peer:
    """The peer at that origin, on whatever machine. Raises Failure (exit code 2) for what is no URL.

    HTTPS is checked by `fingerprint` if there is one, else by the authorities that this machine trusts.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        is_origin = bool(parts.hostname) and parts.path in ("", "/") and not parts.query and "@" not in parts.netloc
    except (KeyError, ValueError):
        is_origin = False
    if not is_origin:
        raise Failure(f"{url!r} is not the address of a peer", fix="http://attic.local:8080, for one", code=Exit.USAGE)
    origin = f"{parts.scheme}://{parts.netloc}"
    found = control.Control(port=port, token=token, pid=0, url=origin, version="", fingerprint=fingerprint)
    return Peer(found, is_here=False)


class Peer:
    """Calls of the peer's API. Every method raises Failure with the peer's own words and the fitting exit code."""

    def __init__(self, found: control.Control, *, is_here: bool = True) -> None:
        """`is_here`: it is this machine's, so that it should answer, and has the certificate of control.json."""
        self.control = found
        self._is_here = is_here
        url = urllib.parse.urlsplit(found.url)
        self._host, self._port = url.hostname or "127.0.0.1", url.port or found.port
        self._is_https = url.scheme == "https"

    def get(self, path: str, *, timeout_s: float = ANSWER_S) -> Any:
        """The JSON answer of a GET."""
        return self._call("GET", path, None, timeout_s)

    def post(self, path: str, body: dict[str, Any], *, timeout_s: float = ANSWER_S) -> Any:
        """The JSON answer of a POST; None when it has no body."""
        return self._call("POST", path, body, timeout_s)

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer of a PUT."""
        return self._call("PUT", path, body, ANSWER_S)

    def delete(self, path: str) -> Any:
        """The JSON answer of a DELETE; None when it has no body."""
        return self._call("DELETE", path, None, ANSWER_S)

    def models(self) -> list[dict[str, Any]]:
        """The models that the peer knows."""
        answer = self.get("/api/models")
        models = answer.get("models") if isinstance(answer, dict) else answer
        if not isinstance(models, list):
            raise _strange(self.control.url)
        return models

    def stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The events of a streamed answer. Closing the iterator hangs up, which cancels the request."""
        connection, response = self._send("POST", path, body, ANSWER_S)
        try:
            yield from _events(response)
        except (OSError, http.client.HTTPException) as error:
            raise Failure("the answer was cut off", why=str(error) or type(error).__name__) from None
        finally:
            connection.close()

    def download(self, path: str, write: Callable[[bytes], object], *, timeout_s: float = ANSWER_S) -> int:
        """The answer of a GET, given to `write` piece by piece as it comes; answers how many bytes it had.

        `timeout_s` is between two pieces. Raises Failure when it was cut off: then what was written is no whole file.
        """
        connection, response = self._send("GET", path, None, timeout_s)
        size = 0
        try:
            while piece := _piece(response):
                size += len(piece)
                write(piece)
        finally:
            connection.close()
        return size

    def _call(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
        connection, response = self._send(method, path, body, timeout_s)
        try:
            data = response.read(_ANSWER_BYTES_MAX)
            return json.loads(data) if data else None
        except ValueError:
            raise _strange(self.control.url) from None
        except (OSError, http.client.HTTPException) as error:
            raise Failure("the answer was cut off", why=str(error) or type(error).__name__) from None
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        headers = {"Accept": "application/json"}
        if self.control.token:
            headers["Authorization"] = f"Bearer {self.control.token}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection = self._connection()
        try:
            connection.connect()
            self._check_certificate(connection)
            connection.sock.settimeout(timeout_s)
            connection.request(method, path, body=data, headers=headers)
            response = connection.getresponse()
            if response.status >= 300:
                raise _refused(response.status, response.read(65536))
        except TimeoutError:
            connection.close()
            raise Failure(f"the peer at {self.control.url} does not answer", code=Exit.UNREACHABLE) from None
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise self._not_proven(f"its certificate is not known here: {error.verify_message}") from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._silent(error) from None
        except Failure:
            connection.close()
            raise
        return connection, response

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_https:
            return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S)
        if self._is_pinned:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the fingerprint is looked at instead
        else:
            context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_S, context=context)
        connection.auto_open = 0  # it would connect anew by itself, to whoever answers then
        return connection

    def _check_certificate(self, connection: http.client.HTTPConnection) -> None:
        """Raises Failure unless this is who is meant. Before it returns nothing may be sent."""
        if not self._is_pinned:
            return
        assert isinstance(connection.sock, ssl.SSLSocket)
        certificate = connection.sock.getpeercert(binary_form=True) or b""
        if hashlib.sha256(certificate).hexdigest() != self.control.fingerprint:
            raise self._not_proven("it shows another certificate")

    @property
    def _is_pinned(self) -> bool:
        return self._is_https and (self._is_here or bool(self.control.fingerprint))

    def _not_proven(self, why: str) -> Failure:
        what = f"{self.control.url} is not the peer that is meant"
        fix = "llm-router doctor"
        if not self._is_here:
            fix = "--fingerprint, with what `llm-router tls self-signed` printed on that machine"
        return Failure(what, why=why, fix=fix, code=Exit.NOT_ALLOWED)

    def _silent(self, error: Exception) -> Failure:
        if self._is_here:
            return _not_running(f"{self.control.url} does not answer: {error}")
        return Failure(f"{self.control.url} does not answer", why=str(error), code=Exit.UNREACHABLE)


def with_query(path: str, query: Mapping[str, object]) -> str:
    """The path with those of the parameters that are set."""
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urllib.parse.urlencode(given)}" if given else path


def quoted(model_id: str) -> str:
    """A model's id as the rest of a path: ids hold slashes."""
    return urllib.parse.quote(model_id, safe="/:")


def segment(name: str) -> str:
    """Any text, a peer's name for one, as one part of a path."""
    return urllib.parse.quote(name, safe="")


def _piece(response: http.client.HTTPResponse) -> bytes:
    """The next bytes, empty at the end. Raises Failure when they end before that."""
    try:
        piece = response.read1(_PIECE_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Failure("the answer was cut off", why=str(error) or type(error).__name__) from None
    if not piece and response.length:
        raise Failure("the answer was cut off", why=f"{response.length:,} bytes are missing")
    return piece


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            response.read()  # to the very end: the peer would take a hang-up now for a client that left
            return
        event = json.loads(data)
        if "error" in event:
            raise Failure(_message(event) or "the peer reported an error")
        yield event
    raise Failure("the answer was cut off", why="the peer closed the connection before the end")


def _refused(status: int, data: bytes) -> Failure:
    code = {401: Exit.NOT_ALLOWED, 403: Exit.NOT_ALLOWED, 404: Exit.NOT_FOUND}.get(status, Exit.FAILED)
    try:
        message = _message(json.loads(data))
    except ValueError:
        message = ""
    return Failure(message or f"the peer answered HTTP {status}", code=code)


def _message(body: object) -> str:
    """OpenAI's error object, or `{"error": "text"}`."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""


def _not_running(why: str) -> Failure:
    return Failure(
        "no peer is running here", why=why, fix="start one in another terminal: llm-router", code=Exit.UNREACHABLE
    )


def _strange(url: str) -> Failure:
    return Failure(f"{url} does not answer like a peer", fix="llm-router doctor", code=Exit.UNREACHABLE)
