"""The test set of a version of a dataset: find its images by their place in it, and draw one."""

from __future__ import annotations

from typing import Final, NamedTuple

from jobs.models.dataset import DatasetVersion, Split
from jobs.network.references import Roots
from jobs.settings import Settings
from jobs.storage.dataset_list import DatasetImage, PayloadFile, read_manifest
from jobs.storage.payloads import read_payload
from jobs.storage.store import Store
from labelmill.datasets.contact_sheet import small_copy

#: The longer side of an image that is drawn, in pixels.
_SIDE: Final = 128


class TestSet(NamedTuple):
    """The images of a test set, in the order in which evaluations count them."""

    images: tuple[DatasetImage, ...]
    payloads: tuple[PayloadFile, ...]


def read_test_set(store: Store, version: DatasetVersion) -> TestSet:
    """Read the test set of a version. Raises DataUnavailable, Unavailable."""
    manifest = read_manifest(store, version)
    images = tuple(image for image in manifest.images if image.split is Split.TEST)
    return TestSet(images, manifest.payloads)


def draw_image(store: Store, settings: Settings, test_set: TestSet, index: int) -> bytes | None:
    """Return a small copy of an image as a WebP file, or None if it cannot be read any more.

    Raises PayloadDamaged, Unavailable; SettingsError if a root for references is malformed.
    """
    image = test_set.images[index]
    file = test_set.payloads[image.payload]
    content = read_payload(store, file.key, file.digest).contents[image.place]
    roots = Roots(settings.reference_roots, settings.private_hosts)
    return small_copy(content, _SIDE, settings, roots, "WEBP")
