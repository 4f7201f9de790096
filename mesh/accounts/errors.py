"""What goes wrong with keys, users and logins, as one tree. All are InferenceErrors: the surface answers them.

AccountError
├── BadLogin          401, wrong password or unknown user: the same words for both
├── NotAllowed        403, the caller may not do that, or not so
├── WrongCode         403, the set-up code is not this one
├── NoSuchAccount     404, no user or key of that name
├── AlreadyClaimed    409, the mesh has an administrator
├── TooManyTries      429, five a minute
└── TooManyLogins     503, more passwords to check than this machine can

Above the limits of a key it is `web.errors.HttpRefusal`, which carries headers.
"""

from __future__ import annotations

from inference.errors import InferenceError


class AccountError(InferenceError):
    """Root of the tree."""

    status = 400
    type = "invalid_request_error"


class BadLogin(AccountError):
    """Says nothing about which of the two was wrong."""

    status = 401
    code = "invalid_login"


class NotAllowed(AccountError):
    """Says who may."""

    status = 403
    type = "permission_error"
    code = "not_allowed"


def not_vouched(what: str) -> NotAllowed:
    """For a machine that came by the open door and that nobody confirmed."""
    return NotAllowed(
        f"This machine came into the mesh by its open door: until somebody confirms it, it {what}. Do this on the "
        "machine that founded the mesh, or confirm this one there: `llm-router peers trust`, or the set-up."
    )


class WrongCode(AccountError):
    """Whoever has the link may set up the mesh; says where it is printed."""

    status = 403
    type = "permission_error"
    code = "wrong_setup_code"


class NoSuchAccount(AccountError):
    """Nobody is called that."""

    status = 404
    code = "not_found"


class AlreadyClaimed(AccountError):
    """The set-up is over."""

    status = 409
    code = "already_set_up"


class TooManyTries(AccountError):
    """`retry_after_s` says when the next one is looked at."""

    status = 429
    type = "rate_limit_error"
    code = "too_many_tries"


class TooManyLogins(AccountError):
    """The queue for the password hash is full."""

    status = 503
    type = "server_error"
    code = "overloaded"
