"""Why a peer does not start, as one tree, and why a backup fails. All are the person's to solve: `str` says what is
wrong, `fix` what to do.

StartError               exit code 1
├── SettingError         exit code 2: a setting cannot be used; one line with its value, its origin, what is allowed
├── AlreadyRunning       another peer has the data folder
├── NotPrivate           a secret file or its folder is open to others
├── PortBusy             somebody else listens there
└── ForeignPackage       another distribution overwrote one of our four packages
BackupError              a backup cannot be made, or not be taken back
"""

from __future__ import annotations


class StartError(Exception):
    """The peer cannot start. One line, without a secret."""

    exit_code = 1

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


class SettingError(StartError):
    """A setting cannot be parsed, or not together with another."""

    exit_code = 2


class AlreadyRunning(StartError):
    """The data folder belongs to a running peer."""


class NotPrivate(StartError):
    """Others may read or replace a secret."""


class PortBusy(StartError):
    """The port is taken."""


class ForeignPackage(StartError):
    """`import web` (or another of the four) would run somebody else's code."""


class BackupError(Exception):
    """A backup cannot be made, or not be taken back. What was there is as it was."""

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
