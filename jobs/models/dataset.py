"""A dataset: a named, versioned collection of labelled images.

`jobs.storage.dataset_list` lists a version's images, `labelmill.datasets` adds versions, and
`worker.learning` trains on them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from jobs.errors import UserError

#: The default dataset. `labelmill.datasets.mnist` adds it when a training needs it.
MNIST: Final = "mnist"

#: The maximum length of a dataset's name.
MAX_NAME: Final = 64

#: The maximum number of classes: answers and labels are two bytes each, and one value means "no answer".
MAX_CLASSES: Final = 1_000

_NAME: Final = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{MAX_NAME - 1}}}")

#: The store's folder of all datasets.
DATASETS: Final = "datasets"


class Split(StrEnum):
    """What an image of a dataset is used for."""

    TRAIN = "train"  # models learn from it
    VALIDATION = "validation"  # the best epoch is chosen by it
    TEST = "test"  # models are evaluated on it; no model learns from it


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """One version of a dataset: one row of the ledger."""

    dataset: str
    version: int  # 1, 2, ...
    fingerprint: str  # SHA-256 of all images, labels and splits, in hex
    classes: tuple[str, ...]
    summary: dict[str, Any]  # counts, for people; see `labelmill.datasets`
    manifest: str  # its key in the store
    by_reference: bool
    created_at: datetime


def check_name(name: str, what: str = "dataset") -> str:
    """Return the name if a dataset, or whatever `what` is, can have it. Raises UserError."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be the name of a {what}: use at most {MAX_NAME} lower-case letters, digits, "
            "dots, hyphens and underscores, and begin with a letter or a digit."
        )
    return name


def describe_version(dataset: str, version: int | None) -> str:
    """Return a dataset and one of its versions for people: "birds version 3"; just its name if None."""
    return dataset if version is None else f"{dataset} version {version}"


def describe_accuracy(accuracy: float | None, dataset: str, version: int | None) -> str:
    """Return an accuracy and the data it was measured on: "0.8123 on birds version 3"; a dash if None."""
    return "-" if accuracy is None else f"{accuracy:.4f} on {describe_version(dataset, version)}"


def dataset_option(dataset: str) -> str:
    """Return what to append to a command to name this dataset; nothing for the default one."""
    return "" if dataset == MNIST else f" --dataset {dataset}"


def decoded_folder(cache_dir: Path, dataset: str) -> Path:
    """Return the folder on this machine that holds the dataset's decoded images."""
    return cache_dir / DATASETS / dataset


def features_folder(dataset: str, key: str = "") -> str:
    """Return the key of the folder that holds the features of the dataset's images, or those of one body."""
    return f"{DATASETS}/{dataset}/features/{key}".rstrip("/")


def checkpoint_key(dataset: str) -> str:
    """Return the key of the file with the state of the dataset's last training."""
    return f"{DATASETS}/{dataset}/checkpoint"


def dataset_folder(dataset: str) -> str:
    """Return the key of the folder that holds all versions of a dataset."""
    return f"{DATASETS}/{dataset}"


def known_label(name: str, label: str | None) -> str:
    """Return the true label of an image as submitted: that of its manifest, otherwise its folder's name."""
    return label or folder_of(name)


def folder_of(name: str) -> str:
    """Return the name of the folder that directly contains an image; empty if there is none."""
    return name.rpartition("/")[0].rstrip("/").rpartition("/")[2]
