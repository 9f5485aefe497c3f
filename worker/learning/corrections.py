"""Divide the corrected images: most are learnt, the others are the live set, which no model learns.

The live set shows how good a model is on the images that people submit. A picture's content decides where it
belongs, so it stays there in all training runs. No picture is on two sides: a correction replaces the same
picture among the training images, and one of a test image is left out.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
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
from worker.predicting.decode import content_hash, decode, prepare_arrays
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
    live_share: float = 0.0,
    pauses: Sequence[float] = (),
    check: Callable[[], None] = lambda: None,
) -> Mnist:
    """Return the data with the corrected images appended to its training images, or in its live set.

    `spec` is the input of the model to be trained, in the shape of the data's images, and `live_share`, 0 to
    1, the share of the live set. Both parts are sorted by hash. Corrections with the same pixels count once,
    with the latest label; training images with the same pixels are dropped. In the result, `corrections`
    counts the added images and `left_out` the corrections that could not be used; each reason is logged once,
    with their number and the first few. If the store or the ledger is unavailable, it is retried after each
    of `pauses`, in seconds. `check` is called before each image. Raises Unavailable, and what `check` raises.
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
            content = retry(partial(_content, correction, store, limits), pauses)
            pixels, is_live = _decoded(content, spec, limits, live_share)
            if pixels.tobytes() in evaluated:
                raise _Unusable("the image is in the evaluation set")
        except _Unusable as error:
            left_out.setdefault(str(error), []).append(correction)
        else:
            found = _Accepted(correction.image_sha256, pixels, label, is_live)
            accepted.setdefault(pixels.tobytes(), found)
    for reason, unused in left_out.items():
        logger.warning("%s", _left_out_line(reason, unused))
    data = replace(data, left_out=sum(map(len, left_out.values())))
    if not accepted:
        return data
    kept = [image.tobytes() not in accepted for image in prepare_arrays(data.train_images, spec)]
    # Sorted, because the order changes the training set's fingerprint and the trained model.
    ordered = sorted(accepted.values(), key=lambda each: each.image_sha256)
    learnt = [each for each in ordered if not each.is_live]
    live = [each for each in ordered if each.is_live]
    return replace(
        data,
        train_images=np.concatenate([data.train_images[kept], _images(learnt, spec)]),
        train_labels=np.concatenate([data.train_labels[kept], _labels(learnt)]),
        corrections=len(learnt),
        live_images=_images(live, spec),
        live_labels=_labels(live),
    )


class _Accepted(NamedTuple):
    """A corrected image that can be used."""

    image_sha256: str
    pixels: Pixels
    label: int
    is_live: bool


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


def _content(correction: Correction, store: Store, limits: ImageLimits) -> bytes:
    """Return the image's bytes. Raises _Unusable, Unavailable."""
    try:
        content = store.get(correction_key(correction.image_sha256), limit=limits.max_bytes)
    except FileNotFoundError:
        raise _Unusable("the image is missing from the store") from None
    if len(content) <= limits.max_bytes and hashlib.sha256(content).hexdigest() != correction.image_sha256:
        raise _Unusable("the stored image has changed")
    return content


def _decoded(content: bytes, spec: InputSpec, limits: ImageLimits, live_share: float) -> tuple[Pixels, bool]:
    """Return the pixels as the model sees them, uint8 of `spec.shape`, and whether they are in the live set.

    Raises _Unusable.
    """
    try:
        drawn = int(content_hash(content, limits)[:16], 16)
        return decode(content, spec, limits), drawn < live_share * 2**64
    except ImageError as error:
        raise _Unusable(f"the image cannot be decoded: {error.code}") from None


def _images(chosen: Sequence[_Accepted], spec: InputSpec) -> Pixels:
    """Return their pixels, uint8 (n, *spec.shape)."""
    return np.array([each.pixels for each in chosen], np.uint8).reshape(-1, *spec.shape)


def _labels(chosen: Sequence[_Accepted]) -> Pixels:
    """Return their labels, uint8 (n,)."""
    return np.array([each.label for each in chosen], np.uint8)
