"""Choose the images of a job that are most worth checking: lowest confidence first, no near-duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from jobs.errors import Conflict, ImageError
from jobs.extras import require_decoders
from jobs.ledger import Ledger
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import job_status
from jobs.ledger.jobs.review import least_confident
from jobs.ledger.learning.corrections import correction_key, latest_corrected_images
from jobs.settings import Settings
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store
from labelmill.labels.job_images import THUMBNAIL_SIDE, read_images

if TYPE_CHECKING:
    from labelmill.datasets.near_duplicates import Look

#: Candidates that are read for each image wanted: the others make up for near-duplicates.
_CANDIDATES_PER_IMAGE: Final = 4

#: The number of latest corrected images whose near-duplicates are left out, too.
_CORRECTED_IMAGES: Final = 1_000


@dataclass(frozen=True, slots=True)
class ReviewImage:
    """An image that is worth checking."""

    index: int
    name: str
    label: str  # the predicted one
    confidence: float
    thumbnail: bytes  # a PNG file


@dataclass(frozen=True, slots=True)
class Review:
    """The images of a job that are most worth checking, lowest confidence first."""

    job: str
    model: str
    images: tuple[ReviewImage, ...]
    #: Images with a low confidence that look like one of these with the same label, or like a corrected one.
    duplicates: int
    unreadable: int  # images with a low confidence that could not be read again


class _Preview(NamedTuple):
    """How an image looks, and a small copy of it."""

    look: Look
    thumbnail: bytes


def review(
    ledger: Ledger,
    store: Store,
    settings: Settings,
    job_id: str,
    *,
    limit: int,
    near_duplicates: bool = False,
    on_progress: Callable[[int, int], None],
) -> Review:
    """Return at most `limit` images of a job to check, lowest confidence first.

    Images with an error or a correction are left out. Unless `near_duplicates`, so are images that look like
    another one of the list with the same label, or like one that was corrected lately: otherwise each call
    would list the next of many equal images. The list is shorter if most candidates are near-duplicates.

    Raises NotFound, Conflict if the job's images were purged, UserError without decoders, Unavailable.
    """
    require_decoders("Reviewing")
    from labelmill.datasets.near_duplicates import look_the_same

    with ledger.reading() as connection:
        status = job_status(connection, job_id)
        corrected = latest_corrected_images(
            connection, job_id, limit=0 if near_duplicates else _CORRECTED_IMAGES
        )
    if status.purged_at is not None:
        raise Conflict(
            f"The images of job {job_id} were purged on {status.purged_at:%Y-%m-%d}: there is nothing "
            f"left to look at. `labelmill predictions {job_id} --below 0.6` lists its unsure labels."
        )
    check_store(ledger, store)
    candidates = least_confident(ledger, job_id, limit=limit * _CANDIDATES_PER_IMAGE, on_progress=on_progress)
    looks = _looks_of_copies(store, settings, corrected)
    images: list[ReviewImage] = []
    duplicates = unreadable = 0
    while candidates and len(images) < limit:
        part, candidates = candidates[:limit], candidates[limit:]
        previews = _previews(ledger, store, settings, job_id, part)
        for each in part:
            if len(images) == limit:
                break
            if each.index not in previews:
                unreadable += 1
                continue
            look, thumbnail = previews[each.index]
            if not near_duplicates and any(look_the_same(look, other) for other in looks[each.label]):
                duplicates += 1
            else:
                looks[each.label].append(look)
                images.append(_to_review_image(each, thumbnail))
    return Review(job_id, status.model, tuple(images), duplicates, unreadable)


def _looks_of_copies(
    store: Store, settings: Settings, corrected: list[tuple[str, str | None]]
) -> defaultdict[str | None, list[Look]]:
    """Return the looks of these corrected images, by predicted label. Images whose copy is gone are left out.

    Raises Unavailable.
    """
    from labelmill.datasets.near_duplicates import look_of

    looks: defaultdict[str | None, list[Look]] = defaultdict(list)
    for sha256, predicted in corrected:
        with suppress(FileNotFoundError, ImageError):
            looks[predicted].append(look_of(store.get(correction_key(sha256)), settings.image_limits))
    return looks


def _previews(
    ledger: Ledger, store: Store, settings: Settings, job_id: str, candidates: list[Prediction]
) -> dict[int, _Preview]:
    """Return a preview of each image, by index. Images that cannot be read are left out.

    Raises Unavailable.
    """
    from labelmill.datasets.near_duplicates import look_of
    from worker.predicting.pictures import thumbnail

    previews = {}
    limits = settings.image_limits
    for index, data in read_images(ledger, store, settings, job_id, [each.index for each in candidates]):
        try:
            previews[index] = _Preview(look_of(data, limits), thumbnail(data, THUMBNAIL_SIDE, limits))
        except ImageError:
            continue
    return previews


def _to_review_image(prediction: Prediction, thumbnail: bytes) -> ReviewImage:
    assert prediction.label is not None  # noqa: S101 -- `least_confident` returns only images with a label
    assert prediction.confidence is not None  # noqa: S101
    return ReviewImage(prediction.index, prediction.name, prediction.label, prediction.confidence, thumbnail)
