"""The other input: JPEG photographs of 640x480 in colour, painted here, the same on every machine.

They cost a JPEG decoder as much as real ones: they have soft light, coarse and fine texture, objects with
edges, and the noise of a sensor. At quality 85 a file has 50 to 100 KB, like a real one of this size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from labelmill.console.progress import ProgressLine

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

#: Enough for a round of seconds, and few enough for the file cache: 0.4 GB.
ALL_PHOTOGRAPHS: Final = 5_000

SIZE: Final = (640, 480)  # width, height
QUALITY: Final = 85  # what cameras and tools write by default, or close to it

_SEED: Final = 20_261_125

#: Texture: how many random points across and down, and their standard deviation in grey levels. As in nature,
#: finer texture is weaker.
_TEXTURE: Final = (((5, 4), 48.0), ((10, 8), 24.0), ((20, 15), 16.0), ((40, 30), 10.0), ((160, 120), 7.0))

_NOISE: Final = 8.0  # of the sensor: standard deviation in grey levels
_SHAPES: Final = (10, 40)  # in one picture: at least, and fewer than
_LEVELS: Final = (
    32,
    224,
)  # of light and colours: what is lit is hardly ever all black, or as bright as can be


def paint_all(count: int, folder: Path) -> None:
    """Write the first `count` photographs into ten folders below `folder`, which must exist."""
    for tenth in range(10):
        (folder / str(tenth)).mkdir()
    with ProgressLine("painting photographs", total=count) as progress:
        for number in range(count):
            paint(number).save(folder / str(number % 10) / f"{number:05}.jpg", quality=QUALITY)
            progress.update(number + 1)


def paint(number: int) -> Image.Image:
    """Paint photograph `number`, in mode RGB; the same one each time."""
    # Imported here, because a second run does not need them.
    import numpy as np
    from PIL import Image, ImageDraw

    dice = np.random.default_rng((_SEED, number))
    width, height = SIZE
    light = Image.fromarray(dice.integers(*_LEVELS, (2, 2, 3), np.uint8)).resize(
        SIZE, Image.Resampling.BICUBIC
    )
    brush = ImageDraw.Draw(light)
    for _ in range(dice.integers(*_SHAPES)):
        corners = dice.integers(-80, (width + 80, height + 80), (dice.integers(3, 7), 2))
        colour = tuple(dice.integers(*_LEVELS, 3).tolist())
        if dice.random() < 0.5:
            brush.polygon([*map(tuple, corners.tolist())], fill=colour)
        else:
            brush.ellipse([*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()], fill=colour)
    pixels = np.asarray(light, np.float32) + _texture(dice)[:, :, np.newaxis]
    pixels += _NOISE * dice.standard_normal(pixels.shape, np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _texture(dice: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return by how many grey levels each pixel is lighter or darker: shape (height, width)."""
    import numpy as np
    from PIL import Image

    sum_of_all = np.zeros((SIZE[1], SIZE[0]), np.float32)
    for (across, down), strength in _TEXTURE:
        points = strength * dice.standard_normal((down, across), np.float32)
        sum_of_all += np.asarray(Image.fromarray(points).resize(SIZE, Image.Resampling.BICUBIC))
    return sum_of_all
