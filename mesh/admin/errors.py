"""What goes wrong with the admin map, as one tree. All are InferenceErrors: the surface answers them as they are.

AdminError
├── NoSigner         403, this machine is a guest of its mesh: it signs nothing
├── KeyEnded         409, what was ended does not come back
├── ClockWrong       503, the others would refuse, or never see, what this machine writes now
├── MapFull          503, 100,000 rows or 64 MiB
├── MapReadOnly      503, admin.db was written by a newer version of this program
└── NotDurable       503, the disk did not take it; nothing changed
"""

from __future__ import annotations

from inference.errors import InferenceError


class AdminError(InferenceError):
    """Root of the tree."""

    status = 503
    code = "admin_unavailable"


class NoSigner(AdminError):
    """Guests do not write."""

    status = 403
    type = "permission_error"
    code = "guest_peer"


class KeyEnded(AdminError):
    """A write to what is over for ever."""

    status = 409
    type = "invalid_request_error"
    code = "ended"


class ClockWrong(AdminError):
    """This machine's clock differs from the others' by more than a minute, in the way of this edit."""

    code = "clock_wrong"


class MapFull(AdminError):
    """No room for more rows."""

    code = "admin_full"


class MapReadOnly(AdminError):
    """The file is of a newer version; says of which."""

    code = "admin_read_only"


class NotDurable(AdminError):
    """The disk refused; says why."""

    code = "admin_not_durable"
