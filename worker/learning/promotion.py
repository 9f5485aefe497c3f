"""Whether a new model becomes the champion. A first form of the gate: the floor, and better than before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from jobs.model import Model

#: What the plain recipe reaches on MNIST at its worst; below it something went wrong.
ACCURACY_FLOOR: Final = 0.967


@dataclass(frozen=True, slots=True)
class Verdict:
    """Promote or not, and why, for people to read."""

    promote: bool
    reason: str


def judge(accuracy: float, champion: Model | None, *, replace: bool) -> Verdict:
    """Judges a challenger by its test accuracy, 0 to 1. Without `replace` a champion stays whatever comes."""
    if champion is None:
        return Verdict(True, "promoted: there was no champion")
    if not replace:
        return Verdict(False, f"kept beside the champion {champion.id}")
    if accuracy < ACCURACY_FLOOR:
        return Verdict(False, f"refused: accuracy {accuracy:.4f} is below the floor of {ACCURACY_FLOOR}")
    before = champion.accuracy or 0.0
    if accuracy <= before:
        return Verdict(False, f"refused: accuracy {accuracy:.4f} is not above the champion's {before:.4f}")
    return Verdict(True, f"promoted: accuracy {accuracy:.4f}, the champion's was {before:.4f}")
