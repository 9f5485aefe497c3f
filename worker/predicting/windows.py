"""Turn images into outcomes: decode many of them at a time, and predict in batches.

`worker.predicting.pipeline` handles claims, leases and the database. `worker.predicting.decode` decodes one
image, `worker.predicting.classifier` predicts one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from jobs.errors import ErrorCode, ImageError
from jobs.ledger.jobs.outcomes import Alternative, Outcomes
from jobs.ledger.jobs.results import CONFIDENCE_DIGITS
from jobs.limits import ImageLimits
from jobs.models.model import InputSpec
from jobs.settings import Settings
from worker.predicting import decode, fast_png
from worker.predicting.deadline import Deadline
from worker.predicting.timings import Timings

if TYPE_CHECKING:
    from worker.predicting.classifier import Classifier

#: Maximum images, and bytes of their pixels, that are decoded and predicted at a time, so that memory does
#: not grow with the size of a claim.
_WINDOW_IMAGES: Final = 4_096
_WINDOW_BYTES: Final = 64 * 1024 * 1024


def decode_many(
    contents: Sequence[bytes | ImageError], spec: InputSpec, limits: ImageLimits, *, image_seconds: float
) -> tuple[npt.NDArray[np.uint8], dict[int, ImageError]]:
    """Return the pixels, uint8 (n, *spec.shape), and the errors by position.

    The pixels of an image with an error are 0. An image that takes longer than `image_seconds` of CPU time
    gets the error `timeout`. Call it in the main thread only. Raises MemoryError, and what signal handlers
    raise.
    """
    places, decoded = fast_png.decode_together(contents, spec, limits)
    if len(places) == len(contents):
        return decoded, {}
    pixels = np.zeros((len(contents), *spec.shape), np.uint8)
    pixels[places] = decoded
    left = np.ones(len(contents), np.bool_)
    left[places] = False
    errors: dict[int, ImageError] = {}
    with Deadline(image_seconds) as deadline:
        for place in np.flatnonzero(left).tolist():
            content = contents[place]
            try:
                if isinstance(content, ImageError):
                    raise content
                deadline.begin()
                pixels[place] = decode.decode(content, spec, limits)
                deadline.end()
            except ImageError as error:
                deadline.end()
                errors[place] = error
    return pixels, errors


def classify_images(
    names: Sequence[str],
    contents: Sequence[bytes | ImageError],
    classifier: Classifier,
    settings: Settings,
    timings: Timings,
    *,
    top_k: int | None = None,
) -> Outcomes:
    """Return one outcome for each image, in order; with `top_k`, with that many alternatives.

    `timings` gets the stages `decode` and `predict`. Call it in the main thread only. Raises Unavailable if
    there is no memory for a batch.
    """
    labels: list[str | None] = []
    confidences: list[float | None] = []
    alternatives: list[list[Alternative] | None] = []
    errors: dict[int, ImageError] = {}
    # Indexed by class; the last entry serves index -1, an image without an answer.
    classes = np.array([*classifier.classes, None], dtype=object)
    window = max(classifier.batch, min(_WINDOW_IMAGES, _WINDOW_BYTES // prod(classifier.spec.shape)))
    for start in range(0, len(contents), window):
        part = contents[start : start + window]
        with timings.timed("decode"):
            pixels, failed = decode_many(
                part, classifier.spec, settings.image_limits, image_seconds=settings.image_seconds
            )
        with timings.timed("predict"):
            found = classifier.predict(pixels, top_k)
            labels += classes[found.class_index].tolist()
            confidences += _rounded(found.confidence)
            if found.top is not None:
                index, confidence = found.top
                alternatives += map(_to_alternatives, classes[index].tolist(), _rounded(confidence))
        for place in np.flatnonzero(found.class_index < 0).tolist():
            errors[start + place] = ImageError(ErrorCode.MODEL_ERROR, "the model returned no probabilities")
        errors.update((start + place, error) for place, error in failed.items())
    top = None if top_k is None else alternatives
    if not errors:
        return Outcomes(names, labels, confidences, alternatives=top)
    codes: list[str | None] = [None] * len(names)
    details: list[str | None] = [None] * len(names)
    for place, error in errors.items():
        labels[place] = confidences[place] = None
        codes[place], details[place] = error.code, error.detail or None
        if top is not None:
            top[place] = None
    return Outcomes(names, labels, confidences, codes, details, top)


def _rounded(confidence: npt.NDArray[np.float32]) -> list[Any]:
    """Return confidences as they are stored, as nested lists."""
    rounded: list[Any] = confidence.astype("float64").round(CONFIDENCE_DIGITS).tolist()
    return rounded


def _to_alternatives(labels: list[str], confidences: list[float]) -> list[Alternative]:
    return [{"label": label, "confidence": each} for label, each in zip(labels, confidences, strict=True)]
