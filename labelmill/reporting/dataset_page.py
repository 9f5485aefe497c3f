"""Render the report on a dataset as one HTML page with a contact sheet, which fetches nothing.

`dataset.html` is the template.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from PIL import Image

from jobs.errors import ImageError
from jobs.models.dataset import DatasetVersion, Split
from jobs.models.model import InputSpec
from jobs.network.references import Reference, Roots
from jobs.settings import Settings
from jobs.storage.dataset_list import DatasetImage, Manifest, read_manifest
from jobs.storage.payloads import Content, read_payload
from jobs.storage.store import Store
from labelmill.datasets.describing import found_lines, modes_line, sizes_line
from labelmill.reporting.rendering import render_template
from worker.predicting.decode import decode

#: Images of one class on the contact sheet, and of all classes together: about 2 MB.
_IMAGES_PER_CLASS: Final = 8
_IMAGES: Final = 1_000

#: The longest side of a thumbnail, in pixels: sharp at twice the resolution of the page.
_SIDE: Final = 144

#: A smaller image is shown enlarged, with its pixels visible, and stored without loss.
_TINY: Final = 48


@dataclass(frozen=True, slots=True)
class Picture:
    """A thumbnail."""

    name: str
    kind: str  # png or jpeg
    data: str  # in base64
    tiny: bool


@dataclass(slots=True)
class SheetClass:
    """The thumbnails of one class."""

    name: str
    pictures: list[Picture] = field(default_factory=list)


def render(store: Store, settings: Settings, version: DatasetVersion) -> str:
    """Return the page as HTML. Raises DataUnavailable, PayloadDamaged, Unavailable."""
    summary = version.summary
    most = max(map(_total, summary["classes"]))
    classes = [
        {
            "name": each["name"],
            "splits": each,
            "images": _total(each),
            "width": round(100 * _total(each) / most, 1),
        }
        for each in summary["classes"]
    ]
    sheet = _contact_sheet(store, settings, version)
    return render_template(
        "dataset.html",
        version=version,
        summary=summary,
        classes=classes,
        splits=tuple(Split),
        sizes=sizes_line(summary),
        modes=modes_line(summary),
        lines=found_lines(summary),
        sheet=sheet,
        left_out=len(sheet) < len(version.classes),
    )


def _total(counts: dict[str, Any]) -> int:
    return sum(counts[split] for split in Split)


def _contact_sheet(store: Store, settings: Settings, version: DatasetVersion) -> list[SheetClass]:
    manifest = read_manifest(store, version)
    sheet = [SheetClass(name) for name in version.classes[:_IMAGES]]
    each = max(1, min(_IMAGES_PER_CLASS, _IMAGES // len(sheet)))
    roots = Roots(settings.reference_roots, settings.private_hosts)
    for number, images in _by_payload(manifest, len(sheet), each).items():
        file = manifest.payloads[number]
        contents = read_payload(store, file.key, file.digest).contents
        for image in images:
            picture = _thumbnail(contents[image.place], image, settings, roots)
            if picture is not None:
                sheet[image.label].pictures.append(picture)
    return sheet


def _by_payload(manifest: Manifest, classes: int, each: int) -> dict[int, list[DatasetImage]]:
    """Choose images of each class, by the payload that holds them.

    Those of a class come from the payload that has the most of them, so that few payloads are read.
    """
    found: list[dict[int, list[DatasetImage]]] = [defaultdict(list) for _ in range(classes)]
    for image in manifest.images:
        if image.label < classes and len(images := found[image.label][image.payload]) < each:
            images.append(image)
    chosen: dict[int, list[DatasetImage]] = defaultdict(list)
    for payloads in found:
        if payloads:
            number = max(payloads, key=lambda number: len(payloads[number]))
            chosen[number] += payloads[number]
    return chosen


def _thumbnail(content: Content, image: DatasetImage, settings: Settings, roots: Roots) -> Picture | None:
    """Return a small copy of the image, or None if it cannot be read any more."""
    scale = min(1.0, _SIDE / max(image.width, image.height))
    width, height = (max(1, round(side * scale)) for side in (image.width, image.height))
    try:
        if isinstance(content, Reference):
            content = roots.read(content, max_bytes=settings.max_image_bytes)
        if isinstance(content, ImageError):
            return None
        pixels = decode(content, InputSpec(width, height, "RGB"), settings.image_limits)
    except ImageError:
        return None
    is_tiny = max(image.width, image.height) <= _TINY
    kind = "png" if is_tiny else "jpeg"
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind)
    return Picture(image.name, kind, b64encode(out.getvalue()).decode(), is_tiny)
