"""What came of the images of a source, in a form that is easily compared."""

from __future__ import annotations

from jobs.errors import ErrorCode
from producer.sources import SourceImage, Sources


def outcome(image: SourceImage) -> tuple[str, bytes | ErrorCode | None]:
    """Return an image's name with its bytes, or with its error's code."""
    assert (image.data is None) != (image.error is None)
    return image.name, image.error.code if image.error else image.data


def outcomes(sources: Sources) -> list[tuple[str, bytes | ErrorCode | None]]:
    """Return the outcomes of all images."""
    return [outcome(image) for image in sources]
