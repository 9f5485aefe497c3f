"""`/v1/datasets/{dataset}/versions/{version}`: the images of one version of a dataset, as a contact sheet."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Annotated, Final

from anyio import to_thread
from fastapi import APIRouter, Path, Response

from jobs.errors import NotFound
from jobs.models.dataset import MAX_CLASSES, MAX_NAME, DatasetVersion
from jobs.storage.dataset_list import read_manifest
from jobs.storage.store import Store
from labelmill.datasets.contact_sheet import ClassSheet, choose_images, draw_classes
from labelmill.server.access import Session, SubmitSession
from labelmill.server.images import one_at_a_time
from labelmill.server.schemas import BINARY, NO_NUL

router = APIRouter(prefix="/datasets", tags=["models and training"])

#: Versions whose chosen images are remembered.
_REMEMBERED: Final = 16

#: For a short time, because a dataset can be removed, and added again under the same name.
_CACHED: Final = {"Cache-Control": "private, max-age=300"}

#: The largest version that the ledger can hold.
MAX_VERSION: Final = 2**31 - 1

DatasetPath = Annotated[str, Path(max_length=MAX_NAME, pattern=NO_NUL, description="the dataset's name")]
Version = Annotated[int, Path(ge=1, le=MAX_VERSION, description="the version's number")]
ClassIndex = Annotated[
    int, Path(ge=0, lt=MAX_CLASSES, description="the class, by its place in the version's classes")
]


class Chosen:
    """The images of the contact sheets that were asked for last.

    They are remembered, because reading the list of a version with a million images takes seconds.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[str, list[ClassSheet]] = OrderedDict()
        self._lock = Lock()

    def of(self, store: Store, version: DatasetVersion) -> list[ClassSheet]:
        """Return the images of a version, by class. Raises DataUnavailable, Unavailable."""
        with self._lock:
            found = self._found.pop(version.manifest, None)
            if found is None:
                found = choose_images(read_manifest(store, version), version.classes)
            self._found[version.manifest] = found
            if len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
        return found


#: Shared by all requests. No two versions have the same manifest.
chosen_images: Final = Chosen()


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
