"""What can go wrong with model files and the folder they live in, as branches of the tree in `inference.errors`.

CallerError
├── BadModelFile     400, the file is no model that can be served; says what is wrong and where
├── BadModelName     400, the name holds what a name may not
├── ModelNameTaken   409, another model has that name
└── NotOurFile       409, the file was placed in the folder by the user, who alone deletes it
CapacityError
├── DiskFull         507, states what is needed and what is free
└── StoreUnavailable 503, the folder cannot be written, or another process holds it
"""

from __future__ import annotations

from inference.errors import CallerError, CapacityError


class BadModelFile(CallerError):
    """The file is damaged, hostile or of a kind that the engine does not load. `reason` leaves out the path."""

    code = "bad_model_file"

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class BadModelName(CallerError):
    """A model's name breaks the rule of `inference.models.names.checked`."""

    code = "bad_model_name"


class ModelNameTaken(CallerError):
    """Another model already answers to that name."""

    status = 409
    code = "model_name_taken"


class NotOurFile(CallerError):
    """Removing the model would delete a file that we did not put there."""

    status = 409
    code = "not_our_file"


class DiskFull(CapacityError):
    """The file does not fit on the disk of the models folder."""

    status = 507
    code = "disk_full"


class StoreUnavailable(CapacityError):
    """The models folder cannot be written now."""

    code = "store_unavailable"
