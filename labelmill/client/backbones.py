"""The client's methods for backbones: list, add and remove."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from jobs.errors import ModelRefused, UserError
from jobs.extras import require_tensorflow
from jobs.files import temporary_folder
from jobs.ledger.learning.backbones import list_backbones
from jobs.ledger.learning.datasets import list_datasets
from jobs.models.backbone import Backbone
from jobs.models.dataset import check_name, features_folder
from jobs.models.model_file import check_model_file
from jobs.storage.backbones import remove_backbone, store_backbone
from jobs.storage.store_identity import check_store
from jobs.text import storable
from labelmill.client.installation import Installation


class BackboneMethods(Installation):
    """The client's methods for backbones."""

    def backbones(self) -> list[Backbone]:
        """Return the backbones, the latest first."""
        with self.ledger.reading() as connection:
            return list_backbones(connection)

    def add_backbone(
        self, file: str | PathLike[str], *, name: str | None = None, licence: str | None = None
    ) -> Backbone:
        """Add a pretrained network, on which training runs then build classifiers.

        - `file`: a `.keras` file on this machine, such as a network of `keras.applications` that was saved
          with its weights. It must take RGB or grey images of one size, as numbers from 0 to 255. Its last
          `Dense` layer is cut off.
        - `name`: its name. Default: the file's, without its ending.
        - `licence`: the licence of its weights, for people.

        Adding a file again returns the same backbone. Needs TensorFlow. Raises UserError if the file or the
        name cannot be used, Conflict if another backbone has this name. Example::

            keras.applications.EfficientNetV2B0().save("efficientnetv2b0.keras")
            client.add_backbone("efficientnetv2b0.keras", licence="Apache-2.0")
        """
        path = Path(file)
        name = check_name(path.stem.lower() if name is None else name, "backbone")
        require_tensorflow("Adding a backbone")
        from worker.learning.bodies import measure_body

        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}): check the path and its permissions."
            ) from error
        try:
            check_model_file(data)
            with temporary_folder(self.settings.cache_dir, "adding-") as folder:
                (folder / "backbone.keras").write_bytes(data)
                input_spec, features = measure_body(folder / "backbone.keras")
        except ModelRefused as error:
            raise UserError(f"{path} cannot be used: {error}") from error
        check_store(self.ledger, self.store)
        return store_backbone(
            self.ledger,
            self.store,
            name,
            data,
            input_spec=input_spec,
            features=features,
            source=storable(path.name),
            licence=licence,
        )

    def remove_backbone(self, name: str) -> Backbone:
        """Remove a backbone and the features that it computed; return what it was.

        The models that were trained on it stay. Raises NotFound.
        """
        check_store(self.ledger, self.store)
        removed = remove_backbone(self.ledger, self.store, name)
        with self.ledger.reading() as connection:
            datasets = [each.dataset for each in list_datasets(connection)]
        for dataset in datasets:
            for key in self.store.folders(features_folder(dataset)):
                if key.startswith(removed.sha256[:24]):
                    self.store.remove_folder(features_folder(dataset, key))
        return removed
