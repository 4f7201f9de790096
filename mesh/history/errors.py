"""What can go wrong with the history, as one tree.

    HistoryUnavailable           503: it cannot be written or read now (full or locked disk, a newer file); try again
    BadEntry                     bytes that are no entry of ours (theirs), or an entry too large to be one

HistoryUnavailable is an inference.errors.CapacityError, so that a route may let it through as it is.
"""

from __future__ import annotations

from inference.errors import CapacityError

RETRY_AFTER_S = 5


class HistoryUnavailable(CapacityError):
    """The history can be neither written nor, perhaps, read now. The message says why and how to mend it."""

    code = "history_unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=RETRY_AFTER_S)


class BadEntry(Exception):
    """Bytes that are no entry that this program knows, or an entry that is too large."""
