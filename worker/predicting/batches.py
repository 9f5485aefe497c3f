"""Payloads become outcomes: each image is decoded into a place of a batch, and full batches are predicted.

Of a claim, a lease or a database nothing is known here; `worker.predicting.pipeline` holds those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from jobs.errors import ErrorCode, ImageError
from jobs.ledger.outcomes import CONFIDENCE_DIGITS, Outcome
from jobs.limits import ImageLimits
from jobs.model import InputSpec
from jobs.payloads import Content, Payload
from jobs.references import Reference, Roots
from worker.predicting.deadline import Deadline
from worker.predicting.stages import Stages

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from worker.predicting.classifier import Classifier, Predictions


#: So many images are looked at together, at the most: 6 MB of digits, unpacked.
_TOGETHER: Final = 8_192


def classify_payloads(
    payloads: Iterable[Payload],
    classifier: Classifier,
    *,
    roots: Roots,
    limits: ImageLimits,
    image_seconds: float,
    between_images: Callable[[], None] = lambda: None,
    after_batch: Callable[[npt.NDArray[np.uint8], list[int], Predictions], None] = lambda *_: None,
    stages: Stages | None = None,
) -> list[Outcome]:
    """One outcome an image, in the payloads' order. An image that cannot be decoded leaves its place in the
    batch to the next one, so that the model always sees full batches but for the last; a payload that ends
    leaves the rest of it to the next payload. `after_batch` gets the pixels of each batch, which images these
    are, counted over all payloads, and the answers. `stages` gets the seconds of reading referenced images,
    of predicting, and of all the rest as decoding.

    Payloads are taken one by one, and one is held at a time. To be called from the main thread. Raises
    Unavailable where a referenced image's store is away.
    """
    # Imported here, not above: the Celery parent imports this file and must not bring in TensorFlow.
    import numpy as np

    from worker.predicting.decode import decode

    names: list[str] = []
    outcomes: list[Outcome | None] = []
    pixels = np.empty((classifier.batch, *classifier.spec.shape), np.uint8)
    places: list[int] = []
    stages = stages or Stages()

    def predict() -> None:
        with stages.timed("predict"):
            found = classifier.predict(pixels[: len(places)])
            labels = found.class_index.tolist()
            confidences = found.confidence.astype("float64").round(CONFIDENCE_DIGITS).tolist()
            for place, label, confidence in zip(places, labels, confidences, strict=True):
                name = names[place]
                if label < 0:
                    detail = "no probability came out"
                    outcomes[place] = Outcome(name, None, None, ErrorCode.MODEL_ERROR, detail)
                else:
                    outcomes[place] = Outcome(name, classifier.classes[label], confidence)
        after_batch(pixels[: len(places)], places, found)
        places.clear()

    with stages.timed("decode"), Deadline(image_seconds) as deadline:
        for payload in payloads:
            first = len(names)
            names += payload.names
            outcomes += [None] * len(payload.names)
            plain = _decoded_together(payload.contents, classifier.spec, limits)
            for place, (content, decoded) in enumerate(zip(payload.contents, plain, strict=True), first):
                between_images()
                try:
                    if decoded is not None:
                        pixels[len(places)] = decoded
                    else:
                        data = _bytes_of(content, roots, limits, stages)
                        deadline.begin()
                        pixels[len(places)] = decode(data, classifier.spec, limits)
                        deadline.end()
                except ImageError as error:
                    deadline.end()
                    outcomes[place] = Outcome(names[place], None, None, error.code, error.detail or None)
                    continue
                places.append(place)
                if len(places) == classifier.batch:
                    predict()
    if places:
        predict()
    return [outcome for outcome in outcomes if outcome is not None]


def _decoded_together(
    contents: Sequence[Content], spec: InputSpec, limits: ImageLimits
) -> Iterator[npt.NDArray[np.uint8] | None]:
    """For each image its pixels, or None: it is to be decoded by itself."""
    from worker.predicting.plain_batch import LEAST, decode_together, takes

    for start in range(0, len(contents), _TOGETHER):
        window = contents[start : start + _TOGETHER]
        found: list[npt.NDArray[np.uint8] | None] = [None] * len(window)
        if len(window) >= LEAST and takes(spec, limits):
            for place, pixels in zip(*decode_together(window, spec, limits), strict=True):
                found[place] = pixels
        yield from found


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
