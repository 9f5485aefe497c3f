"""Count what a version of a dataset holds, for people."""

from __future__ import annotations

from collections import Counter
from statistics import median_low
from typing import Any, Final

from jobs.models.dataset import Split
from jobs.storage.dataset_list import Manifest
from labelmill.datasets.merging import Merging
from labelmill.datasets.sources import Skipped

#: How many of the most frequent sizes are listed.
_SIZES: Final = 10


def summarize(
    manifest: Manifest, classes: tuple[str, ...], merging: Merging, skipped: Skipped
) -> dict[str, Any]:
    """Return the counts of a version, and what was found when it was added."""
    images = manifest.images
    counts = Counter((image.label, image.split) for image in images)
    sizes = Counter((image.width, image.height) for image in images)
    return {
        "images": len(images),
        "splits": {split: sum(counts[label, split] for label in range(len(classes))) for split in Split},
        "classes": [
            {"name": name, **{split: counts[label, split] for split in Split}}
            for label, name in enumerate(classes)
        ],
        "width": _range([image.width for image in images]),
        "height": _range([image.height for image in images]),
        "sizes": [
            {"width": width, "height": height, "images": number}
            for (width, height), number in sizes.most_common(_SIZES)
        ],
        "different_sizes": len(sizes),
        "modes": dict(Counter(image.mode for image in images).most_common()),
        "added": merging.added,
        "unreadable": {**merging.unreadable.to_json(), "codes": dict(merging.error_codes.most_common())},
        "duplicates": merging.duplicates.to_json(),
        "conflicts": merging.conflicts.to_json(),
        "relabelled": merging.relabelled.to_json(),
        "in_two_splits": merging.in_two_splits.to_json(),
        "groups_in_two_splits": merging.groups_in_two_splits.to_json(),
        "look_alikes": merging.look_alikes.to_json(),
        "unlabelled": skipped.unlabelled.to_json(),
        "skipped": skipped.files,
    }


def _range(values: list[int]) -> dict[str, int]:
    return {"min": min(values), "median": median_low(values), "max": max(values)}
