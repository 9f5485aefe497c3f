"""The formats that `LABELMILL_IMAGE_FORMATS` may add. Their decoders are imported only if needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from jobs.errors import SettingsError
from jobs.limits import IMAGE_FORMATS, ImageLimits
from worker.predicting.validation import HEAD_BYTES, decoded_format

if TYPE_CHECKING:
    from PIL import Image

# The formats, with Pillow's names of the libraries that decode them.
_LIBRARIES: Final = {"TIFF": "libtiff", "AVIF": "avif"}


def check_installed(formats: Iterable[str]) -> None:
    """Raise SettingsError if the installed Pillow cannot decode one of the formats."""
    added = [name for name in formats if name in _LIBRARIES]
    if not added:
        return
    from PIL import features  # only here: a worker's main process does not import Pillow

    for name in added:
        if not features.check(_LIBRARIES[name]):
            raise SettingsError(
                f"LABELMILL_IMAGE_FORMATS: names {name}, but the installed Pillow was built without it. "
                f"Install Pillow from PyPI, or remove {name}."
            )


def open_optional(data: bytes | memoryview, limits: ImageLimits) -> Image.Image | None:
    """Open a picture of an added format. Return None if it has another format.

    Nothing is decoded. Raises ImageError, and what Pillow raises.
    """
    if limits.formats == IMAGE_FORMATS:
        return None
    name = decoded_format(bytes(data[:HEAD_BYTES]))
    if name == "TIFF" and name in limits.formats:
        from worker.predicting.tiff import open_tiff

        return open_tiff(data, limits)
    if name == "AVIF" and name in limits.formats:
        from worker.predicting.avif import open_avif

        return open_avif(data, limits)
    return None
