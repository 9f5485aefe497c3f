"""Add corrected images to the training images, but never to the evaluation set.

A correction of an image of the evaluation set is left out: a model that is trained on it would be evaluated
on an image it has seen.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from jobs.errors import ImageError
from jobs.ledger import Ledger
from jobs.ledger.corrections import Correction, all_corrections, correction_key
from jobs.limits import ImageLimits
from jobs.model import InputSpec
from jobs.store import Store
from worker.learning.mnist import Mnist
from worker.predicting.decode import decode, prepare_arrays
from worker.retry import retry

logger = logging.getLogger(__name__)

#: How many corrections a log line names.
_NAMED_IN_LOG: Final = 3

Pixels = npt.NDArray[np.uint8]


def add_corrections(
    data: Mnist,
    ledger: Ledger,
    store: Store,
    limits: ImageLimits,
    spec: InputSpec,
    *,
    pauses: Sequence[float] = (),
    check: Callable[[], None] = lambda: None,
) -> Mnist:
    """Return the data with all corrected images appended to its training images, sorted by hash.

    `spec` is the input of the model to be trained, in the shape of the data's images. Corrections with the
    same pixels count once, with the latest label. A training image with the same pixels and another label is
    dropped. In the result, `corrections` counts the added images and `left_out` the corrections that could
    not be used; each reason is logged once, with their number and the first few. If the store or the ledger
    is unavailable, it is retried after each of `pauses`, in seconds. `check` is called before each image.
    Raises Unavailable, and what `check` raises.
    """

    def read() -> list[Correction]:
        with ledger.reading() as connection:
            return all_corrections(connection)

    corrections = retry(read, pauses)
    if not corrections:
        return data
    accepted: dict[bytes, _Accepted] = {}
    left_out: dict[str, list[Correction]] = {}
    evaluated = {image.tobytes() for image in prepare_arrays(data.test_images, spec)}
    for correction in _one_per_image(corrections, data.classes):
        check()
        try:
            if correction.label not in data.classes:
                raise _Unusable(f"the label {correction.label!r} is not a class of the training data")
            label = data.classes.index(correction.label)
            pixels = retry(partial(_pixels, correction, store, limits, spec), pauses)
            if pixels.tobytes() in evaluated:
                raise _Unusable("the image is in the evaluation set")
        except _Unusable as error:
            left_out.setdefault(str(error), []).append(correction)
        else:
            accepted.setdefault(pixels.tobytes(), _Accepted(correction.image_sha256, pixels, label))
    for reason, unused in left_out.items():
        logger.warning("%s", _left_out_line(reason, unused))
    data = replace(data, left_out=sum(map(len, left_out.values())))
    if not accepted:
        return data
    kept = _not_contradicted(data, accepted, spec)
    # Sorted, because the order changes the training set's fingerprint and the trained model.
    added = sorted(accepted.values(), key=lambda each: each.image_sha256)
    return replace(
        data,
        train_images=np.concatenate([data.train_images[kept], np.stack([each.pixels for each in added])]),
        train_labels=np.append(data.train_labels[kept], np.array([each.label for each in added], np.uint8)),
        corrections=len(added),
    )


class _Accepted(NamedTuple):
    """A corrected image for training."""

    image_sha256: str
    pixels: Pixels
    label: int


class _Unusable(Exception):
    """The reason why a correction cannot be used for training."""


def _left_out_line(reason: str, corrections: Sequence[Correction]) -> str:
    """Return one log line for a reason, which may concern thousands of corrections."""
    named = [f"image {each.index} of job {each.job_id}" for each in corrections[:_NAMED_IN_LOG]]
    if len(corrections) == 1:
        return f"the correction of {named[0]} is left out: {reason}"
    more = ", ..." if len(corrections) > _NAMED_IN_LOG else ""
    return f"{len(corrections):,} corrections are left out: {reason} ({', '.join(named)}{more})"


def _one_per_image(corrections: Iterable[Correction], classes: Sequence[str]) -> list[Correction]:
    """Return one correction per image: the latest whose label is one of these classes, else the latest.

    `corrections` are in the order latest first. So a correction for a model of other classes does not hide an
    earlier one for this model.
    """
    found: dict[str, Correction] = {}
    for correction in corrections:
        before = found.setdefault(correction.image_sha256, correction)
        if before.label not in classes and correction.label in classes:
            found[correction.image_sha256] = correction
    return list(found.values())


def _pixels(correction: Correction, store: Store, limits: ImageLimits, spec: InputSpec) -> Pixels:
    """Return the pixels as the model sees them, uint8 of `spec.shape`. Raises _Unusable, Unavailable."""
    try:
        content = store.get(correction_key(correction.image_sha256), limit=limits.max_bytes)
    except FileNotFoundError:
        raise _Unusable("the image is missing from the store") from None
    if len(content) <= limits.max_bytes and hashlib.sha256(content).hexdigest() != correction.image_sha256:
        raise _Unusable("the stored image has changed")
    try:
        return decode(content, spec, limits)
    except ImageError as error:
        raise _Unusable(f"the image cannot be decoded: {error.code}") from None


def _not_contradicted(
    data: Mnist, accepted: Mapping[bytes, _Accepted], spec: InputSpec
) -> npt.NDArray[np.bool_]:
    """Return which training images are kept, bool (n,): those that no correction labels differently."""
    kept = np.ones(len(data.train_labels), np.bool_)
    for place, image in enumerate(prepare_arrays(data.train_images, spec)):
        corrected = accepted.get(image.tobytes())
        if corrected is not None:
            kept[place] = corrected.label == data.train_labels[place]
    return kept
