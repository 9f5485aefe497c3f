"""The client's methods for datasets: list, show, add, export and remove."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobs.extras import require_decoders
from jobs.ledger.learning.datasets import get_version, list_datasets, list_versions
from jobs.models.dataset import DatasetVersion, decoded_folder
from labelmill.client.installation import Installation, accept_numpy_numbers
from labelmill.datasets.removing import remove

if TYPE_CHECKING:
    from labelmill.datasets.adding import Added


#: Versions that a report lists.
LISTED_VERSIONS: Final = 20


class DatasetMethods(Installation):
    """The client's methods for datasets."""

    def datasets(self) -> list[DatasetVersion]:
        """Return the latest version of each dataset, in the order of their names."""
        with self.ledger.reading() as connection:
            return list_datasets(connection)

    @accept_numpy_numbers
    def dataset(self, name: str, *, version: int | None = None) -> DatasetVersion:
        """Return a version of a dataset, by default its latest. Raises NotFound."""
        with self.ledger.reading() as connection:
            return get_version(connection, name, version)

    def add_dataset(
        self,
        name: str,
        *sources: str | PathLike[str],
        by_reference: bool = False,
        group_by: str | None = None,
        on_progress: Callable[[int], None] = lambda _images: None,
    ) -> Added:
        """Add labelled images to a dataset as a new version, and return the version and whether it is new.

        The dataset is created if it does not exist. A new version also has the images of the one before.

        - `sources`: folders with one subfolder per class, or with such folders below `train`, `validation`
          (or `val`) and `test`; ZIP and TAR archives of such folders; manifests (.csv, .jsonl, .parquet) with
          `path` or `url`, `label` and optionally `split` and `group`; IDX files.
        - `by_reference`: store where the images are instead of their bytes. Trainers then read them there,
          below LABELMILL_REFERENCE_ROOTS.
        - `group_by`: a regular expression. Images are kept in one split if it finds the same in their names;
          if it has a group, only that counts. A manifest's `group` comes first.
        - `on_progress`: called with the number of images read so far.

        Images that cannot be decoded are left out and listed in the version's summary. After any exception,
        nothing is stored. Raises UserError if the name or the images cannot be used, or Labelmill is
        installed without decoders; SourceError if a source cannot be read; Conflict if another process added
        to the dataset at the same time. Example::

            added = client.add_dataset("birds", "photos/")
            print(added.version.summary["images"])
        """
        require_decoders("Adding a dataset")
        from labelmill.datasets.adding import add_dataset

        return add_dataset(
            self.ledger,
            self.store,
            self.settings,
            name,
            [fspath(source) for source in sources],
            by_reference=by_reference,
            group_by=group_by,
            on_progress=on_progress,
        )

    @accept_numpy_numbers
    def export_dataset(
        self,
        name: str,
        folder: str | PathLike[str],
        *,
        version: int | None = None,
        on_progress: Callable[[int], None] = lambda _images: None,
    ) -> int:
        """Write a version of a dataset, by default its latest, into a new folder, as SPLIT/CLASS/IMAGE.

        Return how many images could not be read any more. `on_progress` is called with the number of images
        written so far. Raises NotFound; Conflict if the folder is not empty; UserError if it cannot be
        written, or a class cannot be the name of a folder; DataUnavailable. Example::

            client.export_dataset("birds", "birds-3", version=3)
        """
        from labelmill.datasets.exporting import export_version

        found = self.dataset(name, version=version)
        return export_version(self.store, self.settings, found, Path(folder), on_progress)

    def dataset_report(self, name: str, *, version: int | None = None) -> str:
        """Return an HTML report on a version of a dataset, by default its latest.

        The page needs no other file. It shows the images by class and split, some images of each class, what
        was wrong with the sources, and what changed in each of the latest versions. Raises NotFound;
        DataUnavailable if the list of images is missing from the store or damaged; UserError if Labelmill is
        installed without decoders. Example::

            Path("birds.html").write_text(client.dataset_report("birds"), encoding="utf-8")
        """
        require_decoders("A report on a dataset")
        from labelmill.reporting.dataset_page import render

        with self.ledger.reading() as connection:
            found = get_version(connection, name, version)
            versions = list_versions(connection, name, limit=LISTED_VERSIONS)
        return render(self.store, self.settings, found, versions)

    @accept_numpy_numbers
    def drop_images(
        self,
        name: str,
        *,
        classes: Collection[str] = (),
        names: Sequence[str] = (),
        added_by: int | None = None,
    ) -> DatasetVersion:
        """Add a version of a dataset without some of its images, and return it. Earlier versions keep them.

        - `classes`: without the images of these classes.
        - `names`: without the images whose whole names match one of these globs.
        - `added_by`: without the images that this version added.

        Raises NotFound; UserError if there is no such class or image, or if too few images would be left;
        Conflict if another process added to the dataset at the same time. Example::

            client.drop_images("birds", classes=["jay"])
        """
        require_decoders("Changing a dataset")
        from labelmill.datasets.dropping import drop_images

        return drop_images(self.ledger, self.store, name, classes=classes, names=names, added_by=added_by)

    def remove_dataset(self, name: str) -> int:
        """Remove a dataset with all its images, and return the number of its versions.

        The models that were trained on it stay.

        Raises NotFound; Conflict if it has a champion or a challenger, or is being trained on.
        """
        removed = remove(self.ledger, self.store, name)
        shutil.rmtree(decoded_folder(self.settings.cache_dir, name), ignore_errors=True)
        return removed
