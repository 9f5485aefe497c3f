"""Draw small images and curves in the terminal: half blocks, two pixels per character, or shades of ASCII."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from producer.export import printable

#: Width and height of a drawing in pixels; it has half as many lines.
SIDE: Final = 16

_SHADES: Final = " .:-=+*#%@"

_HEIGHTS: Final = "▁▂▃▄▅▆▇█"

#: A curve has no more columns than this.
_CURVE_WIDTH: Final = 60


class Picture(NamedTuple):
    """An image with its caption."""

    data: bytes
    caption: str
    good: bool = True


def draw(pictures: Sequence[Picture], console: Console) -> None:
    """Draw the pictures side by side, as many as fit into a line. Needs Pillow."""
    across = max(1, console.width // (SIDE + 4))
    for start in range(0, len(pictures), across):
        row = pictures[start : start + across]
        table = Table.grid(padding=(0, 2))
        for _ in row:
            table.add_column(width=SIDE + 2)
        table.add_row(*(_blocks(picture.data, colour=console.color_system is not None) for picture in row))
        table.add_row(*map(_caption, row))
        console.print(table)


def curve(values: Sequence[float]) -> str:
    """Return the values as a line of columns, scaled from the smallest value to the largest.

    If there are too many values, only the last of each group is shown.
    """
    step = max(1, -(-len(values) // _CURVE_WIDTH))
    shown = list(values[::-1][::step][::-1])
    least, most = min(shown), max(shown)
    if most == least:
        return _HEIGHTS[0] * len(shown)
    return "".join(_HEIGHTS[round((value - least) / (most - least) * (len(_HEIGHTS) - 1))] for value in shown)


def _caption(picture: Picture) -> Text:
    return Text(printable(picture.caption), style="green" if picture.good else "red")


def _blocks(data: bytes, *, colour: bool) -> Text:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = small.tobytes()
    text = Text()
    for y in range(0, SIDE, 2):
        for x in range(SIDE):
            above, below = pixels[y * SIDE + x], pixels[(y + 1) * SIDE + x]
            if colour:
                text.append("▀", Style(color=_grey(above), bgcolor=_grey(below)))
            else:
                text.append(_SHADES[(above + below) * len(_SHADES) // 512])
        text.append("\n")
    text.rstrip()
    return text


def _grey(value: int) -> str:
    return f"rgb({value},{value},{value})"
