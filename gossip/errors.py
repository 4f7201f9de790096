"""Everything that can go wrong between peers, as one tree.

    GossipError
    ├── UnusableIdentity         this peer's key: damaged, not writable; a person must act
    │   └── NotPrivate           its file or folder is open to others
    ├── BadCertificate           not a certificate of a peer of ours (theirs)
    ├── BadStatement             a roster statement that cannot be read or is not signed (theirs)
    ├── NotAllowed               the roster does not let this peer do that (the caller's)
    ├── UnknownPeer              nobody of that id is a member (the caller's)
    └── JoinError                this machine did not get into a mesh; `code` is what travels on the wire
        ├── JoinUnreachable      no answer, or none that a peer gives
        ├── JoinClosed           that mesh takes nobody in this way now
        ├── JoinBusy             five ask already, or one from this address does
        ├── JoinDenied           a member said no, or did so within the hour
        ├── JoinExpired          nobody answered in ten minutes
        ├── TokenRefused         wrong, used up, or too old
        └── NotThatMesh          who answers is not who it says it is: somebody may stand in between

`str` says what is wrong and the way out, never a secret.
"""

from __future__ import annotations

from typing import ClassVar


class GossipError(Exception):
    """Root of the tree."""


class UnusableIdentity(GossipError):
    """The key of this peer cannot be used. `fix` is the command or step that helps, or empty."""

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


class NotPrivate(UnusableIdentity):
    """Others may read or replace a secret."""


class BadCertificate(GossipError):
    """A certificate that no peer of this program makes."""


class BadStatement(GossipError):
    """A roster statement that is malformed, too large, or not signed by whom it names."""


class NotAllowed(GossipError):
    """The roster does not give this peer that right."""


class UnknownPeer(GossipError):
    """No member has this id."""


class JoinError(GossipError):
    """This machine was not let in. Each kind has a `code` for the wire and the HTTP status it goes with."""

    code: ClassVar[str] = "join_failed"
    status: ClassVar[int] = 400


class JoinUnreachable(JoinError):
    """Nobody answered there, or somebody who is no peer."""

    code = "unreachable"
    status = 502


class JoinClosed(JoinError):
    """The mesh takes nobody in by this way now."""

    code = "closed"
    status = 404


class JoinBusy(JoinError):
    """Too many ask at once: try again later."""

    code = "busy"
    status = 429


class JoinDenied(JoinError):
    """A member said no; the key is blocked for an hour."""

    code = "denied"
    status = 403


class JoinExpired(JoinError):
    """The request is not there, or no longer: it took too long or was answered before."""

    code = "expired"
    status = 410


class TokenRefused(JoinError):
    """The token is wrong, used up or too old. Which of them is not told to a stranger."""

    code = "token_refused"
    status = 403


class NotThatMesh(JoinError):
    """A signature, a certificate or a roster does not fit: somebody may stand in between."""

    code = "not_that_mesh"
    status = 400
