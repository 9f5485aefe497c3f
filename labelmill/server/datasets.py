"""`/v1/datasets/{dataset}/versions/{version}`: the images of one version of a dataset, to look at."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Annotated, Final, Generic, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Path, Response

from jobs.errors import NotFound
from jobs.models.dataset import MAX_CLASSES, MAX_NAME, DatasetVersion
from jobs.storage.dataset_list import read_manifest
from jobs.storage.store import Store
from labelmill.datasets.contact_sheet import choose_images, draw_classes
from labelmill.datasets.test_set import draw_image, read_test_set
from labelmill.server.access import Session, SubmitSession
from labelmill.server.images import one_at_a_time
from labelmill.server.schemas import BINARY, MAX_NUMBER, NO_NUL

T = TypeVar("T")

router = APIRouter(prefix="/datasets", tags=["models and training"])

#: For a short time, because a dataset can be removed, and added again under the same name.
_CACHED: Final = {"Cache-Control": "private, max-age=300"}

#: The largest version that the ledger can hold.
MAX_VERSION: Final = 2**31 - 1

DatasetPath = Annotated[str, Path(max_length=MAX_NAME, pattern=NO_NUL, description="the dataset's name")]
Version = Annotated[int, Path(ge=1, le=MAX_VERSION, description="the version's number")]
ClassIndex = Annotated[
    int, Path(ge=0, lt=MAX_CLASSES, description="the class, by its place in the version's classes")
]
TestIndex = Annotated[
    int, Path(ge=0, le=MAX_NUMBER, description="the image, by its place in the test set, from 0")
]


class Remembered(Generic[T]):
    """What was read of the lists of some versions last.

    It is remembered, because reading the list of a version with a million images takes seconds.
    """

    def __init__(self, read: Callable[[Store, DatasetVersion], T], *, versions: int) -> None:
        self._read = read
        self._versions = versions
        self._found: OrderedDict[str, T] = OrderedDict()
        self._lock = Lock()

    def of(self, store: Store, version: DatasetVersion) -> T:
        """Return what was read of a version. Raises DataUnavailable, Unavailable."""
        with self._lock:
            # No two versions have the same manifest.
            if version.manifest not in self._found:
                self._found[version.manifest] = self._read(store, version)
                if len(self._found) > self._versions:
                    self._found.popitem(last=False)
            self._found.move_to_end(version.manifest)
            return self._found[version.manifest]


#: Shared by all requests: the images of contact sheets by class, and test sets, which can be large.
chosen_images: Final = Remembered(
    lambda store, version: choose_images(read_manifest(store, version), version.classes), versions=16
)
test_sets: Final = Remembered(read_test_set, versions=2)


@router.get(
    "/{dataset}/versions/{version}/classes/{index}/sheet",
    response_class=Response,
    responses={200: {"content": {"image/webp": {"schema": BINARY}}}},
)
async def read_class_sheet(
    dataset: DatasetPath, version: Version, index: ClassIndex, session: SubmitSession
) -> Response:
    """Return up to eight images of a class, in rows of four, as one WebP."""
    content = await to_thread.run_sync(_draw, session, dataset, version, index, limiter=one_at_a_time)
    return Response(content, media_type="image/webp", headers=_CACHED)


def _draw(session: Session, dataset: str, version: int, label: int) -> bytes:
    """Return the picture of a class. Raises NotFound, and what reading the images does."""
    client = session.client
    found = chosen_images.of(client.store, client.dataset(dataset, version=version))
    wanted = [sheet for sheet in found if sheet.label == label]
    for _, content in draw_classes(client.store, client.settings, wanted):
        if content is not None:
            return content
    raise NotFound(f"Dataset {dataset} version {version} has no images of class {label} that can be shown.")


@router.get(
    "/{dataset}/versions/{version}/test/{index}",
    response_class=Response,
    responses={200: {"content": {"image/webp": {"schema": BINARY}}}},
)
async def read_test_image(
    dataset: DatasetPath, version: Version, index: TestIndex, session: SubmitSession
) -> Response:
    """Return an image of a version's test set as a small WebP."""
    content = await to_thread.run_sync(_draw_image, session, dataset, version, index, limiter=one_at_a_time)
    return Response(content, media_type="image/webp", headers=_CACHED)


def _draw_image(session: Session, dataset: str, version: int, index: int) -> bytes:
    """Return an image of the test set. Raises NotFound, and what reading the images does."""
    client = session.client
    found = test_sets.of(client.store, client.dataset(dataset, version=version))
    if index < len(found.images):
        content = draw_image(client.store, client.settings, found, index)
        if content is not None:
            return content
    raise NotFound(f"Dataset {dataset} version {version} has no test image {index} that can be shown.")
