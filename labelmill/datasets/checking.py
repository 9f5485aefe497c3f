"""Check that a model can be trained and evaluated on the images of a version."""

from __future__ import annotations

from jobs.errors import UserError
from jobs.models.dataset import Split
from jobs.storage.dataset_list import Manifest
from labelmill.datasets.labels import check_class_count
from labelmill.datasets.merging import Merging
from labelmill.datasets.sources import Skipped


def check_usable(manifest: Manifest, classes: tuple[str, ...], merging: Merging, skipped: Skipped) -> None:
    """Raise UserError if no model could be trained and evaluated on these images."""
    first = merging.unreadable.first[0] if merging.unreadable.count else None
    example = f" (the first unreadable image: {first['name']}, {first['error']})" if first else ""
    if not manifest.images:
        raise UserError(f"The sources contain no images of a class{example}: name other sources.")
    if lost := sorted(skipped.classes.difference(classes)):
        raise UserError(f"The class {lost[0]!r} has no image that can be used{example}: add images of it.")
    check_class_count(classes, "The dataset")
    if len(classes) == 1:
        raise UserError(
            f"All images are of one class, {classes[0]!r}, and a dataset needs at least two: name the folder "
            "above the folders of the classes. If it is in an archive, no image may be directly in it."
        )
    totals = [0] * len(classes)
    train = [0] * len(classes)
    splits = dict.fromkeys(Split, 0)
    for image in manifest.images:
        totals[image.label] += 1
        train[image.label] += image.split is Split.TRAIN
        splits[image.split] += 1
    for name, total, to_train in zip(classes, totals, train, strict=True):
        if total == 1:
            raise UserError(f"The class {name!r} has only one image: add more images of it, or leave it out.")
        if not to_train:
            raise UserError(
                f"The class {name!r} has no training images: all {total} are in other splits. Add more "
                "images of it."
            )
    for split, number in splits.items():
        if not number:
            raise UserError(
                f"No image is in the split {split}: add more images, or divide them into all three splits."
            )
