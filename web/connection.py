"""One client connection: aiohttp's HTTP/1.1 protocol, with an end to what is slow or is not HTTP.

aiohttp waits minutes for a client that sends nothing, or one header byte now and then, and for ever for one that does
not read its answer. Here headers must arrive within `headers_s`, and an answer that is not being read ends the
connection after `body_s` without progress (the body's own time is kept where it is read, in `web.body`). An idle
connection between two requests may live `KEEPALIVE_S`. What is no HTTP/1 gets 400 and is closed.

Source: aiohttp 3.14 web_protocol.RequestHandler; overridden are its asyncio callbacks, `handle_error` and
`finish_response`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from http import HTTPStatus

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from inference.openai.answer import error_object
from web.border import request_id
from web.errors import HttpRefusal, error_response
from web.services import Limits

_log = logging.getLogger(__name__)

# Longer than the 60 s that proxies and pools commonly keep an idle connection, so that they close first.
KEEPALIVE_S = 75.0
# After an early answer the rest of a body is read and thrown away this long, so that the answer is not lost in a reset.
LINGER_S = 2.0

_NOT_HTTP = "That is not a valid HTTP/1.1 request."
_PLAIN = " This port speaks plain HTTP/1.1, without TLS."


class Connection(RequestHandler):
    """Made by the listener for each socket it accepts."""

    __slots__ = ("_header_bytes", "_headers_timer", "_limits", "_open", "_unread_bytes", "_write_timer")

    def __init__(self, server: web.Server, limits: Limits, open_connections: set[asyncio.BaseProtocol]) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp turns it off
            max_line_size=limits.header_bytes,
            max_field_size=limits.header_bytes,
            auto_decompress=False,
        )
        self._limits = limits
        self._open = open_connections
        self._header_bytes = 0  # received since the headers timer was started
        self._headers_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._open.add(self)
        if len(self._open) > self._limits.connections:
            _log.warning("connection refused, too many are open", extra={"limit": self._limits.connections})
            self._abort()
            return
        self._await_headers()

    def connection_lost(self, error: BaseException | None) -> None:
        self._open.discard(self)
        self._cancel_headers_timer()
        self._cancel_write_timer()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, and keeps the clock of a request whose headers have begun but not ended."""
        if self._request_count == 0 and self._header_bytes == 0 and not _may_be_http(data):
            self._refuse(HttpRefusal(400, self._not_http()))
            return
        messages_before = self._request_count
        super().data_received(data)
        if self._request_count > messages_before:
            self._cancel_headers_timer()
            self._fail_unfinished_body()
        elif data and not self._is_body_expected():
            if self._headers_timer is None:
                self._await_headers()
            self._header_bytes += len(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        self._cancel_write_timer()
        super().resume_writing()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to bytes that are no HTTP/1.1 request. The parser's own message may quote a header: not shown."""
        if status >= 500:
            _log.error("request failed outside its handler", exc_info=exc)
            refusal = HttpRefusal(status, "Something went wrong inside this peer.", error_type="server_error")
        else:
            _log.debug("not http", extra={"ip": request.remote, "error": type(exc).__name__})
            refusal = HttpRefusal(status, self._not_http())
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun, an error cannot follow")
        response = web.Response(
            status=refusal.status,
            body=json.dumps(error_object(refusal)).encode(),
            content_type="application/json",
            headers={"x-request-id": request_id(None)},
        )
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the answer. An error of aiohttp's own gets our shape: 417, which comes before any middleware."""
        if isinstance(resp, web.HTTPException):
            resp = error_response(HttpRefusal(resp.status, f"{resp.reason}."), request.path)
        return await super().finish_response(request, resp, start_time)

    def _not_http(self) -> str:
        is_tls = self.transport is not None and self.transport.get_extra_info("ssl_object") is not None
        return _NOT_HTTP if is_tls else _NOT_HTTP + _PLAIN

    def _fail_unfinished_body(self) -> None:
        """What follows a body that has not ended can only be the parser's error about it: tells the body's reader."""
        if len(self._messages) > 1:
            body = self._messages[-2][1]
        elif self._current_request is not None:
            body = self._current_request.content
        else:
            return
        if not body.is_eof():
            body.set_exception(web.RequestPayloadError("the body is not framed as its headers say"))

    def _is_body_expected(self) -> bool:
        """True while the bytes that arrive belong to the body of the last request that was parsed."""
        if self._messages:
            return not self._messages[-1][1].is_eof()
        return self._current_request is not None and not self._current_request.content.is_eof()

    def _await_headers(self) -> None:
        self._header_bytes = 0
        self._headers_timer = self._loop.call_later(self._limits.headers_s, self._headers_late)

    def _headers_late(self) -> None:
        self._headers_timer = None
        if self._current_request is not None:
            self.close()  # a pipelined request that never ends; the running one may finish
        elif self._header_bytes == 0:
            self._abort()
        else:
            message = f"The headers did not arrive within {self._limits.headers_s:g} s."
            self._refuse(HttpRefusal(408, message, code="headers_timeout"))

    def _refuse(self, refusal: HttpRefusal) -> None:
        """Answers past aiohttp, which has no request to answer, and ends the connection."""
        _log.debug("connection refused", extra={"status": refusal.status})
        if self.transport is not None:
            body = json.dumps(error_object(refusal)).encode()
            head = (
                f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                f"x-request-id: {request_id(None)}\r\nx-should-retry: false\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.force_close()

    def _await_reader(self) -> None:
        self._unread_bytes = self._buffered()
        self._write_timer = self._loop.call_later(self._limits.body_s, self._reader_late)

    def _reader_late(self) -> None:
        if self._buffered() < self._unread_bytes:
            self._await_reader()
        else:
            _log.debug("connection closed, its answer was not read")
            self._abort()

    def _buffered(self) -> int:
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _cancel_headers_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _may_be_http(data: bytes) -> bool:
    """False when `data`, the first bytes of a connection, hold a whole first line that is not HTTP/1's."""
    line, newline, _ = data.partition(b"\n")
    return not newline or b" HTTP/1." in line
