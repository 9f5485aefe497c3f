"""Payloads become outcomes: each image is decoded into a place of a batch, and full batches are predicted.

Of a claim, a lease or a database nothing is known here; `worker.predicting.pipeline` holds those.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from jobs.errors import ErrorCode, ImageError, Unavailable
from jobs.ledger.outcomes import CONFIDENCE_DIGITS
from jobs.limits import ImageLimits
from jobs.model import InputSpec
from jobs.outcomes import Outcomes
from jobs.payloads import Content, Payload
from jobs.references import Reference, Roots
from worker.predicting.deadline import Deadline
from worker.predicting.stages import Stages
from worker.predicting.time_limit import time_ran_out

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from worker.predicting.classifier import Classifier, Predictions


#: So many images are decoded together, at the most.
_TOGETHER: Final = 4_096

#: And so many of those are predicted before somebody looks at the lease again, and whether a small job waits.
_AT_A_TIME: Final = 2_048

_NO_ANSWER: Final = "no probability came out"


class OutOfReach(Unavailable):
    """The next image, by reference, is not to be had for now."""


def classify_payloads(
    payloads: Iterable[Payload],
    classifier: Classifier,
    *,
    roots: Roots,
    limits: ImageLimits,
    image_seconds: float,
    until: Callable[[int], int] = lambda _: sys.maxsize,
    may_keep: Callable[[int, Unavailable], bool] = lambda *_: False,
    after_batch: Callable[[npt.NDArray[np.uint8], list[int], Predictions], None] = lambda *_: None,
    stages: Stages | None = None,
) -> Outcomes:
    """One outcome an image, in the payloads' order. An image that cannot be decoded leaves its place in the
    batch to the next one, so that the model always sees full batches but for the last; a payload that ends
    leaves the rest of it to the next payload. `after_batch` gets the pixels of each batch, which images these
    are, counted over all payloads, and the answers. `stages` gets the seconds of reading referenced images,
    of predicting, and of all the rest as decoding.

    `until` is asked between images, with the number of those that are through, and says how many there are
    to be at the end: the others get no outcome. `may_keep` is asked where a referenced image's store is away,
    with the same number and the reason: where it says so, what is through is kept, and the others get none.

    Payloads are taken one by one, and one is held at a time. To be called from the main thread. Raises
    OutOfReach where a referenced image's store is away, and what is through may not be kept; Unavailable
    where there is no memory for a batch.
    """
    stages = stages or Stages()
    batch = _Batch(classifier, after_batch, stages)

    with stages.timed("decode"), Deadline(image_seconds) as deadline:
        decoded_alone = _decoding_alone(batch, classifier.spec, roots, limits, deadline, stages)

        together = partial(_decoded_together, spec=classifier.spec, limits=limits)
        through = _take_all(payloads, batch, decoded_alone, together, until, may_keep)
    return batch.end(through)


def _take_all(
    payloads: Iterable[Payload],
    batch: _Batch,
    decoded_alone: Callable[[int, Content], npt.NDArray[np.uint8] | None],
    decoded_together: Callable[..., Iterator[tuple[int, npt.NDArray[np.uint8]]]],
    until: Callable[[int], int],
    may_keep: Callable[[int, Unavailable], bool],
) -> int:
    """Each image's picture or error goes to the batch, until enough are through; gives back how many are."""
    first, through, end = 0, 0, sys.maxsize

    def wanted() -> int:
        return end - first

    for payload in payloads:
        first = through = batch.expect(payload.names)
        for start, pictures in decoded_together(payload.contents, wanted=wanted):
            while through < first + start:
                end = until(through)
                if end <= through:
                    return through
                try:
                    picture = decoded_alone(through, payload.contents[through - first])
                except Unavailable as error:
                    if not may_keep(through, error):
                        raise OutOfReach(str(error)) from error
                    return through
                if picture is not None:
                    batch.take(through, picture[None])
                through += 1
            pictures = pictures[: max(0, wanted() - start)]
            batch.take(through, pictures)
            through += len(pictures)
            # Before more are decoded together, for nothing.
            end = until(through)
            if end <= through:
                return through
    return through


def _decoding_alone(
    batch: _Batch, spec: InputSpec, roots: Roots, limits: ImageLimits, deadline: Deadline, stages: Stages
) -> Callable[[int, Content], npt.NDArray[np.uint8] | None]:
    # Imported here, not above: the Celery parent imports this file and must not bring in TensorFlow.
    from worker.predicting.decode import decode

    def decoded_alone(place: int, content: Content) -> npt.NDArray[np.uint8] | None:
        """Reads and decodes one image, within its time; None where it has no picture, and the batch knows
        why. Raises Unavailable.
        """
        try:
            data = _bytes_of(content, roots, limits, stages)
            deadline.begin()
            picture = decode(data, spec, limits)
            deadline.end()
        except ImageError as error:
            deadline.end()
            batch.fail(place, error)
            return None
        return picture

    return decoded_alone


class _Batch:
    """Pictures that are predicted together as soon as they are enough, and what has come of all so far."""

    def __init__(
        self,
        classifier: Classifier,
        after_batch: Callable[[npt.NDArray[np.uint8], list[int], Predictions], None],
        stages: Stages,
    ) -> None:
        import numpy as np

        self._classifier = classifier
        self._after_batch = after_batch
        self._stages = stages
        self._pixels = np.empty((classifier.batch, *classifier.spec.shape), np.uint8)
        #: By the place of a class; the last is for the images without an answer, whose place is -1.
        self._classes = (*classifier.classes, None)
        self._places: list[int] = []  # of the images whose pictures are in the batch
        self._names: list[str] = []
        self._labels: list[str | None] = []
        self._confidences: list[float | None] = []
        self._errors: dict[int, ImageError] = {}

    def expect(self, names: Sequence[str]) -> int:
        """Images that are to come: the place of the first."""
        first = len(self._names)
        self._names += names
        self._labels += [None] * len(names)
        self._confidences += [None] * len(names)
        return first

    def fail(self, place: int, error: ImageError) -> None:
        """An image that has no picture, or no answer."""
        self._labels[place] = self._confidences[place] = None
        self._errors[place] = error

    def take(self, place: int, pictures: npt.NDArray[np.uint8]) -> None:
        """The pictures of images that follow one another, from that place on."""
        batch = self._classifier.batch
        while len(pictures):
            filled = len(self._places)
            fitting = pictures[: batch - filled]
            self._places += range(place, place + len(fitting))
            if len(fitting) == batch:  # as they are
                self._predict(fitting)
            else:
                self._pixels[filled : filled + len(fitting)] = fitting
                if len(self._places) == batch:
                    self._predict(self._pixels)
            place, pictures = place + len(fitting), pictures[len(fitting) :]

    def end(self, through: int) -> Outcomes:
        """What came of the first images, of which so many are through."""
        if self._places:
            self._predict(self._pixels[: len(self._places)])
        found = Outcomes(self._names[:through], self._labels[:through], self._confidences[:through])
        if not self._errors:
            return found
        errors: list[str | None] = [None] * through
        details: list[str | None] = [None] * through
        for place, error in self._errors.items():
            errors[place], details[place] = error.code, error.detail or None
        return replace(found, errors=errors, details=details)

    def _predict(self, pixels: npt.NDArray[np.uint8]) -> None:
        """What is in the batch."""
        places = self._places
        with self._stages.timed("predict"):
            found = self._classifier.predict(pixels)
            labels = map(self._classes.__getitem__, found.class_index.tolist())
            confidences = found.confidence.astype("float64").round(CONFIDENCE_DIGITS).tolist()
            start, end = places[0], places[-1] + 1
            if end - start == len(places):  # in one step, as nearly always
                self._labels[start:end] = labels
                self._confidences[start:end] = confidences
            else:
                for place, label, confidence in zip(places, labels, confidences, strict=True):
                    self._labels[place], self._confidences[place] = label, confidence
            for number in (found.class_index < 0).nonzero()[0].tolist():
                self.fail(places[number], ImageError(ErrorCode.MODEL_ERROR, _NO_ANSWER))
        self._after_batch(pixels, places, found)
        self._places = []


def _decoded_together(
    contents: Sequence[Content], *, spec: InputSpec, limits: ImageLimits, wanted: Callable[[], int]
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Pictures of images that follow one another, and the place of the first; all between them are to be
    decoded one by one. Never more than are predicted at a time, and of no more images than are `wanted` by
    then. What comes last are the pictures at the end, of which there may be none.
    """
    import numpy as np

    from worker.predicting.plain_batch import LEAST, decode_together, takes

    if takes(spec, limits):
        for start in range(0, len(contents), _TOGETHER):
            window = contents[start : min(start + _TOGETHER, wanted())]
            if len(window) < LEAST:
                break
            found, decoded = decode_together(window, spec, limits)
            places = np.array(found, np.int64)
            # Where another one is missing between two.
            gaps = np.flatnonzero(np.diff(places) != 1) + 1
            cuts = np.union1d(gaps, np.arange(_AT_A_TIME, len(places), _AT_A_TIME))
            for run, picture in zip(np.split(places, cuts), np.split(decoded, cuts), strict=True):
                if len(run):
                    yield start + int(run[0]), picture
    yield len(contents), np.empty((0, *spec.shape), np.uint8)


def another_is_there(payload: Payload, roots: Roots, limits: ImageLimits, stages: Stages) -> bool:
    """Whether one of the other referenced images can be asked for where the first is out of reach: any of
    them, as those that are not to be had may lie side by side. Raises Unavailable where the time limit
    struck.
    """
    others = [content for content in payload.contents[1:] if isinstance(content, Reference)]
    if not others:
        return False
    try:
        _bytes_of(random.choice(others), roots, limits, stages)  # noqa: S311 -- any will do
    except ImageError:
        pass  # its store answers
    except Unavailable as error:
        if time_ran_out(error):
            raise
        return False
    return True


def _bytes_of(
    content: bytes | Reference | ImageError, roots: Roots, limits: ImageLimits, stages: Stages
) -> bytes:
    """Of an image in a payload. Raises ImageError, Unavailable."""
    if isinstance(content, ImageError):
        raise content
    if isinstance(content, Reference):
        with stages.timed("read"):
            return roots.read(content, max_bytes=limits.max_bytes)
    return content
