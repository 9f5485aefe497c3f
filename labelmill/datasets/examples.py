"""Count the images that have something to report, and keep the first of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

#: How many images of each kind are listed.
_LISTED: Final = 100


@dataclass(slots=True)
class Examples:
    """Images that have one thing in common."""

    count: int = 0
    first: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **facts: Any) -> None:
        """Count an image, and list it if it is among the first."""
        self.count += 1
        if len(self.first) < _LISTED:
            self.first.append(facts)

    def to_json(self) -> dict[str, Any]:
        """Return the count and the first images, for a summary."""
        return {"count": self.count, "first": self.first}
