"""The client's methods for the promotion gate: what a model must reach to become a dataset's champion."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Final

from jobs.errors import UserError
from jobs.ledger.learning.gate import limits_of, own_limits, set_limits
from jobs.ledger.learning.models import check_dataset
from jobs.models.dataset import MNIST
from jobs.models.promotion import GateLimits
from labelmill.client.installation import Installation, accept_numpy_numbers

_NAMES: Final = tuple(field.name for field in fields(GateLimits))

#: Limits that cannot be off: every comparison of two models needs them.
_ALWAYS_ON: Final = ("significance", "margin", "live_margin")


class GateMethods(Installation):
    """The client's methods for the promotion gate."""

    def gate(self, dataset: str = MNIST) -> GateLimits:
        """Return what a model must reach to become the dataset's champion. Raises NotFound."""
        with self.ledger.reading() as connection:
            check_dataset(connection, dataset)
            return limits_of(connection, dataset)

    @accept_numpy_numbers
    def set_gate(self, dataset: str, *, defaults: bool = False, **limits: float | None) -> GateLimits:
        """Set limits of the dataset's gate, and return all that apply now.

        - `limits`: fields of GateLimits. None switches one off; those that are left out stay as they are.
        - `defaults`: first remove what was set for this dataset, so that the defaults apply again.

        The next training run and the next `promote` use them. Raises NotFound; UserError if a limit is
        unknown, out of its range, or cannot be switched off. Example::

            client.set_gate("birds", min_accuracy=0.9, margin=0.02)
        """
        for name, value in limits.items():
            _check(name, value)
        with self.ledger.transaction() as connection:
            check_dataset(connection, dataset)
            present = {} if defaults else own_limits(connection, dataset)
            set_limits(connection, dataset, present | limits)
        return self.gate(dataset)


def _check(name: str, value: float | None) -> None:
    """Raise UserError if the gate has no such limit, or the limit cannot be this value."""
    words = name.replace("_", " ")
    if name not in _NAMES:
        raise UserError(f"The gate has no limit {words!r}: it has {', '.join(_NAMES)}.")
    if value is None:
        if name in _ALWAYS_ON:
            raise UserError(f"{words} cannot be off: the gate needs it to compare two models.")
        return
    if name == "max_image_microseconds":
        valid, wanted = 0 < value < math.inf, "more than 0"
    elif name == "significance":
        valid, wanted = 0 < value <= 1, "more than 0 and at most 1"
    else:
        valid, wanted = 0 <= value <= 1, "from 0 to 1"
    if not valid:
        raise UserError(f"{words} must be {wanted}, got {value:g}.")
