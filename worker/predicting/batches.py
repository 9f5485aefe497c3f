"""Images become outcomes: fetched where they are references, decoded many at a time, predicted in batches.

Nothing here knows of a claim, a lease or a database; `worker.predicting.pipeline` holds those. How one image
is decoded is in `worker.predicting.decode`, how a batch is predicted in `worker.predicting.classifier`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, wait
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from jobs.errors import ErrorCode, ImageError, Unavailable
from jobs.ledger.results import CONFIDENCE_DIGITS
from jobs.limits import ImageLimits
from jobs.model import InputSpec
from jobs.outcomes import Outcomes
from jobs.payloads import Content
from jobs.references import Reference, Roots
from worker.predicting import decode, fast_png
from worker.predicting.deadline import Deadline
from worker.predicting.timings import Timings

if TYPE_CHECKING:
    from worker.predicting.classifier import Classifier

#: Images are decoded and predicted so many at a time, or fewer if their pixels would take more bytes: memory
#: stays flat however many images a claim has.
_WINDOW_IMAGES: Final = 4_096
_WINDOW_BYTES: Final = 64 * 1024 * 1024

#: A thread fetches so many references in a row: handing one over costs as much as reading a small local file.
_FETCHED_IN_A_ROW: Final = 64

Fetched = bytes | ImageError | Unavailable


def fetch_references(
    contents: Sequence[Content],
    roots: Roots,
    threads: Executor,
    *,
    max_bytes: int,
    seconds: float,
    apart: bool = False,
) -> list[Fetched]:
    """Return each image's bytes or its error, in order; references are fetched many at a time.

    An image that cannot be reached for now, or within so many seconds, is an Unavailable in its place.
    `apart`: no image waits for another in its thread, so that one without an answer costs no other.
    """
    no_answer = Unavailable(f"There was no answer within {seconds:.3g} s.")
    found: list[Fetched] = [no_answer if isinstance(each, Reference) else each for each in contents]

    def fetch(part: Sequence[tuple[int, Reference]]) -> None:
        for place, reference in part:
            try:
                found[place] = roots.read(reference, max_bytes=max_bytes)
            except (ImageError, Unavailable) as error:
                found[place] = error

    references = [(place, each) for place, each in enumerate(contents) if isinstance(each, Reference)]
    step = 1 if apart else min(_FETCHED_IN_A_ROW, 1 + len(references) // 16)
    parts = [references[start : start + step] for start in range(0, len(references), step)]
    done, _ = wait([threads.submit(fetch, part) for part in parts], timeout=seconds)
    for each in done:
        each.result()  # raises a mistake, or a lack of memory
    return list(found)  # a thread may still be at it


def decode_many(
    contents: Sequence[bytes | ImageError], spec: InputSpec, limits: ImageLimits, *, image_seconds: float
) -> tuple[npt.NDArray[np.uint8], dict[int, ImageError]]:
    """Return the pixels, uint8 (n, *spec.shape), and the errors by an image's place; its pixels are 0 then.

    An image that takes longer than `image_seconds` of computing gets the error `timeout`. Only in the main
    thread. Raises MemoryError, and what signal handlers raise.
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
    *,
    limits: ImageLimits,
    image_seconds: float,
    timings: Timings,
) -> Outcomes:
    """Return one outcome for each image, in order.

    `timings` gets the stages `decode` and `predict`. Only in the main thread. Raises Unavailable if there is
    no memory for a batch.
    """
    labels: list[str | None] = []
    confidences: list[float | None] = []
    errors: dict[int, ImageError] = {}
    # By class index; the last is for images without an answer, whose index is -1.
    classes = np.array([*classifier.classes, None], dtype=object)
    window = max(classifier.batch, min(_WINDOW_IMAGES, _WINDOW_BYTES // prod(classifier.spec.shape)))
    for start in range(0, len(contents), window):
        part = contents[start : start + window]
        with timings.timed("decode"):
            pixels, failed = decode_many(part, classifier.spec, limits, image_seconds=image_seconds)
        with timings.timed("predict"):
            found = classifier.predict(pixels)
            labels += classes[found.class_index].tolist()
            confidences += found.confidence.astype("float64").round(CONFIDENCE_DIGITS).tolist()
        for place in np.flatnonzero(found.class_index < 0).tolist():
            errors[start + place] = ImageError(ErrorCode.MODEL_ERROR, "no probability came out")
        errors.update((start + place, error) for place, error in failed.items())
    return with_errors(names, labels, confidences, errors)


def with_errors(
    names: Sequence[str],
    labels: list[str | None],
    confidences: list[float | None],
    errors: dict[int, ImageError],
) -> Outcomes:
    """Return outcomes in which the images at these places have an error instead of a label."""
    if not errors:
        return Outcomes(names, labels, confidences)
    codes: list[str | None] = [None] * len(names)
    details: list[str | None] = [None] * len(names)
    for place, error in errors.items():
        labels[place] = confidences[place] = None
        codes[place], details[place] = error.code, error.detail or None
    return Outcomes(names, labels, confidences, codes, details)
