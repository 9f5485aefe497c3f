"""Charts of bars in a table: the macro `bars` in `parts.html` draws them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Bar(NamedTuple):
    """A bar: what it counts, and the page that shows these images, if there is one."""

    name: str
    images: int
    share: float  # of the longest bar
    url: str | None


def bars_of(found: Iterable[tuple[str, int, str | None]]) -> list[Bar]:
    """Return the bars of these names, numbers of images, and URLs."""
    counted = list(found)
    longest = max((images for _, images, _ in counted), default=0) or 1
    return [Bar(name, images, images / longest, url) for name, images, url in counted]
