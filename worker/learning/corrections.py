"""Divide the corrected images: most are training images, the others the live set, which no model learns.

The live set shows how good a model is on the images that people submit. A picture's content decides where it
belongs, so it stays there in all training runs. No picture is in two sets: a correction replaces the same
picture among the training images, and a correction of a test image is left out.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple, cast

import numpy as np

from jobs.errors import DataUnavailable, ImageError
from jobs.ledger import Ledger
from jobs.ledger.learning.corrections import Correction, all_corrections, correction_key
from jobs.limits import ImageLimits
from jobs.models.evaluation import Part
from jobs.models.model import InputSpec
from jobs.storage.store import Store
from worker.backoff import retry
from worker.learning.data import Data, Joined, Labelled, Uint8, Uint16
from worker.predicting.decode import content_hash, decode

logger = logging.getLogger(__name__)

#: How many corrections a log line names.
_NAMED_IN_LOG: Final = 3


def add_corrections(
    data: Data,
    ledger: Ledger,
    store: Store,
    limits: ImageLimits,
    *,
    live_share: float = 0.0,
    pauses: Sequence[float] = (),
    check: Callable[[], None] = lambda: None,
) -> Data:
    """Return the data with the corrected images appended to its training images, or in its live set.

    `live_share`, 0 to 1, is the share of the live set. Both parts are sorted by hash. Corrections of the same
    picture count once, with the latest label; the same pictures among the images for training and validation
    are dropped. In the result, `corrections` counts the added images and `left_out` the corrections that
    could not be used; each reason is logged once, with their number and the first few. If the store or the
    ledger is unavailable, it is retried after each of `pauses`, in seconds. `check` is called before each
    image. Raises Unavailable, and what `check` raises.
    """

    def read() -> list[Correction]:
        with ledger.reading() as connection:
            return all_corrections(connection, data.dataset)

    corrections = retry(read, pauses)
    if not corrections:
        return data
    accepted: dict[str, _Accepted] = {}
    left_out: dict[str, list[Correction]] = {}
    evaluated = set(data.test.pictures)
    for correction in _one_per_image(corrections, data.classes):
        check()
        try:
            if correction.label not in data.classes:
                raise _Unusable(f"the label {correction.label!r} is not a class of the training data")
            content = retry(partial(_content, correction.image_sha256, store, limits), pauses)
            found = _accept(correction, content, data, limits, live_share)
            if found.picture in evaluated:
                raise _Unusable("the image is in the evaluation set")
        except _Unusable as error:
            left_out.setdefault(str(error), []).append(correction)
        else:
            accepted.setdefault(found.picture, found)
    for reason, unused in left_out.items():
        logger.warning("%s", _left_out_line(reason, unused))
    data = replace(data, left_out=sum(map(len, left_out.values())))
    return _data_with(accepted, data, store, limits) if accepted else data


def _accept(
    correction: Correction, content: bytes, data: Data, limits: ImageLimits, live_share: float
) -> _Accepted:
    """Decode a corrected image, and decide in which set it is. Raises _Unusable."""
    pixels, picture = _decoded(content, data.spec, limits)
    return _Accepted(
        correction.image_sha256,
        picture,
        pixels,
        data.classes.index(correction.label),
        is_live=int(picture[:16], 16) < live_share * 2**64,
    )


def _data_with(accepted: dict[str, _Accepted], data: Data, store: Store, limits: ImageLimits) -> Data:
    """Return the data with these corrected images added."""
    # Sorted, because the order changes the training set's fingerprint and the trained model.
    ordered = sorted(accepted.values(), key=lambda each: each.image_sha256)
    learnt = [each for each in ordered if not each.is_live]
    live = [each for each in ordered if each.is_live]
    fingerprint = hashlib.sha256(data.fingerprint.encode())
    for each in ordered:
        fingerprint.update(f"{each.image_sha256} {each.label} {each.is_live}\n".encode())
    fingerprints = dict(data.evaluation_fingerprints)
    if live:
        fingerprints[Part.LIVE] = _live_fingerprint(live, data.classes)

    def part_for(part: Part, spec: InputSpec) -> Labelled:
        if part == Part.TEST:
            return data.part_for(part, spec)
        try:
            contents = [_content(each.image_sha256, store, limits) for each in live]
            pixels = np.array([decode(content, spec, limits) for content in contents], np.uint8)
            return Labelled(pixels, _labels(live), _pictures(live))
        except (_Unusable, ImageError) as error:
            raise DataUnavailable(
                f"A corrected image of the live set cannot be read: {error}. Train again: the next run skips "
                "it."
            ) from None

    return replace(
        data,
        train=_joined(data.train, accepted, _labelled(learnt, data.spec)),
        validation=_joined(data.validation, accepted, _labelled([], data.spec)),
        corrections=len(learnt),
        live=_labelled(live, data.spec),
        fingerprint=fingerprint.hexdigest(),
        evaluation_fingerprints=fingerprints,
        part_for=part_for,
    )


def _joined(base: Labelled, dropped: Container[str], others: Labelled) -> Labelled:
    """Return the images without the dropped pictures, followed by others."""
    rows = np.flatnonzero(np.array([each not in dropped for each in base.pictures], np.bool_))
    if len(rows) == len(base) and not len(others):
        return base
    return Labelled(
        Joined(cast("Uint8", base.images), rows, cast("Uint8", others.images)),
        np.concatenate([base.labels[rows], others.labels]),
        (*(base.pictures[row] for row in rows), *others.pictures),
    )


def _live_fingerprint(live: Sequence[_Accepted], classes: Sequence[str]) -> str:
    """Return the fingerprint of the live set. It does not depend on a model's input."""
    digest = hashlib.sha256()
    for each in live:
        digest.update(f"{each.image_sha256} {classes[each.label]}\n".encode())
    return digest.hexdigest()


class _Accepted(NamedTuple):
    """A corrected image that can be used."""

    image_sha256: str
    picture: str  # the hash of its upright pixels
    pixels: Uint8
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

    `corrections` come latest first. A correction for a model of other classes does not hide an earlier one
    for this model.
    """
    found: dict[str, Correction] = {}
    for correction in corrections:
        before = found.setdefault(correction.image_sha256, correction)
        if before.label not in classes and correction.label in classes:
            # It comes after later corrections of other files, which may show the same picture.
            del found[correction.image_sha256]
            found[correction.image_sha256] = correction
    return list(found.values())


def _content(image_sha256: str, store: Store, limits: ImageLimits) -> bytes:
    """Return the image's bytes. Raises _Unusable, Unavailable."""
    try:
        content = store.get(correction_key(image_sha256), limit=limits.max_bytes)
    except FileNotFoundError:
        raise _Unusable("the image is missing from the store") from None
    if len(content) <= limits.max_bytes and hashlib.sha256(content).hexdigest() != image_sha256:
        raise _Unusable("the stored image has changed")
    return content


def _decoded(content: bytes, spec: InputSpec, limits: ImageLimits) -> tuple[Uint8, str]:
    """Return the pixels as the model sees them, uint8 of `spec.shape`, and the hash of the picture.

    Raises _Unusable.
    """
    try:
        return decode(content, spec, limits), content_hash(content, limits)
    except ImageError as error:
        raise _Unusable(f"the image cannot be decoded: {error.code}") from None


def _labelled(chosen: Sequence[_Accepted], spec: InputSpec) -> Labelled:
    """Return them as a model with this input sees them."""
    pixels = np.array([each.pixels for each in chosen], np.uint8).reshape(-1, *spec.shape)
    return Labelled(pixels, _labels(chosen), _pictures(chosen))


def _pictures(chosen: Sequence[_Accepted]) -> tuple[str, ...]:
    return tuple(each.picture for each in chosen)


def _labels(chosen: Sequence[_Accepted]) -> Uint16:
    """Return their labels, uint16 (n,)."""
    return np.array([each.label for each in chosen], np.uint16)
