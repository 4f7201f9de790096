"""Everything that can go wrong while making tokens, as one tree.

    InferenceError
    ├── CallerError              the caller asked for something that cannot be (4xx)
    │   ├── InvalidRequest       400, malformed or out of range; names the parameter
    │   ├── ContextLengthExceeded 400, states both numbers
    │   └── ModelNotFound        404, names the nearest models
    ├── CapacityError            nobody's fault, try again later (429, 503, 504)
    │   ├── ModelUnavailable     503, known, but cannot be loaded or served now
    │   ├── Overloaded           503, the queue is full
    │   ├── HolderFull           429, every slot is taken; said to a peer that can ask another one
    │   └── DeadlineExceeded     504, the caller's own deadline would pass
    └── EngineError              ours (5xx)
        ├── WorkerDied           the worker process ended; the request may be continued elsewhere
        ├── LoadFailed           the worker could not load the model
        ├── StreamInterrupted    a started answer cannot be continued
        └── HolderLost           the machine that made an answer does not go on; another one may
            ├── PeerLeaving      503, it stops, and says so
            ├── PeerGone         502, the connection failed, broke or carried nonsense
            └── PeerSilent       504, it says nothing any more, or makes no token

Each error carries the HTTP status it suggests and OpenAI's `type`, `code` and `param`. The message is for
the caller: it holds the value, the limit and the way out, never a prompt or a secret.
"""

from __future__ import annotations


class InferenceError(Exception):
    """Root of the tree. `message` is shown to the caller as it is."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        self.retry_after_s = retry_after_s


class CallerError(InferenceError):
    """The request itself is at fault."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(CallerError):
    """A parameter is missing, of the wrong type, out of range, or not supported."""


class ContextLengthExceeded(CallerError):
    """Prompt and answer do not fit the model's context."""

    code = "context_length_exceeded"


class ModelNotFound(CallerError):
    """No model of that name is known."""

    status = 404
    code = "model_not_found"


class CapacityError(InferenceError):
    """It would work at another time."""

    status = 503


class ModelUnavailable(CapacityError):
    """The model is known, but cannot be loaded or served now."""

    code = "model_unavailable"


class Overloaded(CapacityError):
    """The queue of the model is full."""

    code = "overloaded"


class HolderFull(CapacityError):
    """Every slot of the model is taken on this machine, and the asking peer wanted to know instead of waiting."""

    status = 429
    code = "holder_full"


class DeadlineExceeded(CapacityError):
    """The caller's deadline passed, or is shorter than the queue."""

    status = 504
    code = "timeout"


class EngineError(InferenceError):
    """The engine failed; never the caller's fault."""

    code = "engine_error"


class WorkerDied(EngineError):
    """The worker process ended with requests running in it."""

    code = "worker_died"


class LoadFailed(EngineError):
    """The worker started, but could not load the model; says why."""

    code = "model_load_failed"
    status = 503


class StreamInterrupted(EngineError):
    """An answer that had begun cannot be continued."""

    code = "stream_interrupted"


class HolderLost(EngineError):
    """The machine that made an answer does not go on with it; what is missing may be made by another one."""

    code = "holder_lost"


class PeerLeaving(HolderLost):
    """The machine stops and hands over what it runs."""

    status = 503
    code = "peer_draining"


class PeerGone(HolderLost):
    """The connection failed, broke, or carried what no peer says."""

    status = 502
    code = "peer_gone"


class PeerSilent(HolderLost):
    """The connection is there, and nothing comes over it."""

    status = 504
    code = "peer_silent"


_BY_CODE: dict[str | None, type[InferenceError]] = {
    kind.code: kind
    for kind in (
        ContextLengthExceeded,
        ModelNotFound,
        ModelUnavailable,
        Overloaded,
        HolderFull,
        DeadlineExceeded,
        WorkerDied,
        LoadFailed,
        StreamInterrupted,
        PeerLeaving,
        PeerGone,
        PeerSilent,
    )
}


def error_in(status: int, type_: str, code: str | None, param: str | None, message: str) -> InferenceError:
    """The error that a worker or another peer answered with; keeps every field."""
    kind = _BY_CODE.get(code)
    if kind is None:
        by_status = {404: ModelNotFound, 503: ModelUnavailable, 504: DeadlineExceeded}
        kind = by_status.get(status, InvalidRequest if 400 <= status < 500 else EngineError)
    error = kind(message, param=param)
    error.status, error.type, error.code = status, type_, code
    return error
