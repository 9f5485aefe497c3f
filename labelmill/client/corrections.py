"""The client's methods for corrections: choose images to review, store their true labels, and undo that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from jobs.ledger.learning.corrections import Correction, all_corrections
from labelmill.client.installation import Installation, accept_numpy_numbers

if TYPE_CHECKING:
    from labelmill.labels.correcting import Corrector
    from labelmill.labels.correction_files import CorrectionRequest
    from labelmill.labels.reviewing import Review


class CorrectionMethods(Installation):
    """The client's methods for corrections."""

    @accept_numpy_numbers
    def correct(self, job_id: str, index: int, label: str) -> Correction:
        """Store the true label of an image. The next training run learns from it.

        A later correction of the same image replaces the label. Raises NotFound if the image does not exist
        or has no prediction yet, UserError if the label is not a class of the job's model, Conflict if the
        image was purged, cannot be decoded, or stopped its worker.
        """
        from labelmill.labels.correction_files import CorrectionRequest

        return self._corrector().correct(CorrectionRequest(job_id, index, label))

    def correct_from(
        self,
        lines: Iterable[str],
        *,
        jsonl: bool = False,
        job_id: str | None = None,
        confirm_unchanged: bool = False,
        on_skip: Callable[[int], None] = lambda _rows: None,
        on_unchanged: Callable[[int], None] = lambda _rows: None,
    ) -> list[Correction]:
        """Store the corrections in these lines: all of them, or none if any row is wrong.

        - `lines`: CSV with a header row and the columns job, index and label. Instead of its index, a row can
          name an image by its custom_id.
        - `jsonl`: the lines are JSON objects with these fields instead of CSV.
        - `job_id`: the job of all rows; the rows then need not name it.
        - `confirm_unchanged`: also store rows whose label is that of the prediction, which they confirm, or
          of the image's correction. By default they are ignored, unless they have a column `predicted`: it
          shows that a person has given the labels.
        - `on_skip`: called with the number of rows whose label is empty; they are skipped.
        - `on_unchanged`: called with the number of unchanged rows that were ignored.

        Raises UserError with one line for each wrong row.
        """
        from labelmill.labels.correction_files import requests_in

        rows = requests_in(
            lines, self.predictions, jsonl=jsonl, job_id=job_id, confirm_unchanged=confirm_unchanged
        )
        return self._corrector().correct_rows(rows, on_skip=on_skip, on_unchanged=on_unchanged)

    def correct_all(self, requests: Iterable[CorrectionRequest]) -> list[Correction]:
        """Store all of these corrections, or none if any is wrong.

        Raises UserError with one line for each wrong one.
        """
        return self._corrector().correct_rows((request.line, request) for request in requests)

    @accept_numpy_numbers
    def undo_correction(self, job_id: str, index: int) -> Correction:
        """Remove the correction of an image, and return the removed correction. Raises NotFound."""
        return self._corrector().undo(job_id, index)

    def undo_corrections(self, images: Iterable[tuple[str, int]]) -> list[Correction]:
        """Remove the corrections that these images have, each by its job and index, and return them."""
        return self._corrector().undo_all(images)

    def undo_all(self, requests: Iterable[CorrectionRequest]) -> list[Correction]:
        """Take back what `correct_all` stored of these, and return it.

        Corrections that have a different label by now stay.
        """
        return self._corrector().undo_all(stored=requests)

    @accept_numpy_numbers
    def review(
        self,
        job_id: str,
        *,
        limit: int = 20,
        near_duplicates: bool = False,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Review:
        """Return the images of a job that are most worth checking, lowest confidence first.

        Images with an error or a correction are left out, and those that look the same as one with the same
        label and a lower confidence. Needs Pillow, and reads the images from the store.

        - `limit`: at most this many images.
        - `near_duplicates`: also return images that look the same.
        - `on_progress`: called with the number of images looked at, and the number of all images.

        Raises NotFound, Conflict if the job's images were purged, UserError if Labelmill is
        installed without decoders.
        """
        from labelmill.labels.reviewing import review

        return review(
            self.ledger,
            self.store,
            self.settings,
            job_id,
            limit=limit,
            near_duplicates=near_duplicates,
            on_progress=on_progress,
        )

    def corrections(self, *, dataset: str | None = None) -> list[Correction]:
        """Return the corrections of a dataset's models, by default of all models, latest first."""
        with self.ledger.reading() as connection:
            return all_corrections(connection, dataset)

    def _corrector(self) -> Corrector:
        from labelmill.labels.correcting import Corrector

        return Corrector(self.ledger, self.store, self.settings, self.on_change)
