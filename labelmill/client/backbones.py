"""The client's methods for backbones: list, add and remove."""

from __future__ import annotations

import os
import subprocess
import sys
from os import PathLike
from pathlib import Path
from typing import Final

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
from labelmill.client.registration import read_model

#: Where the progress of a download is shown.
_STDERR: Final = 2


class BackboneMethods(Installation):
    """The client's methods for backbones."""

    def backbones(self) -> list[Backbone]:
        """Return the backbones, the latest first."""
        with self.ledger.reading() as connection:
            return list_backbones(connection)

    def add_backbone(
        self, source: str | PathLike[str], *, name: str | None = None, licence: str | None = None
    ) -> Backbone:
        """Add a pretrained network, on which training runs then build classifiers.

        - `source`: the name of a network of `keras.applications` in lower case, whose weights Keras then
          downloads; or a `.keras` file on this machine. Its network must take RGB or grey images of one size,
          as numbers from 0 to 255. Its last `Dense` layer, if it has one, is cut off.
        - `name`: its name. Default: that of the network, or of the file without its ending.
        - `licence`: the licence of its weights, for people.

        Adding a file again returns the same backbone. Needs TensorFlow. Raises UserError if the file or the
        name cannot be used or the weights cannot be downloaded, Conflict if another backbone has this name.
        Example::

            client.add_backbone("efficientnetv2b0", licence="Apache-2.0")
        """
        path = Path(source)
        name = check_name(path.stem.lower() if name is None else name, "backbone")
        require_tensorflow("Adding a backbone")
        from worker.learning.bodies import measure_body

        with temporary_folder(self.settings.cache_dir, "adding-") as folder:
            copy = folder / "backbone.keras"
            if path.suffix == ".keras":
                data = read_model(path)
                copy.write_bytes(data)
            else:
                _download(str(source), copy)
                data = copy.read_bytes()
            try:
                check_model_file(data)
                input_spec, features = measure_body(copy)
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
            source=storable(path.name if path.suffix else f"keras.applications, {path}"),
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


def _download(name: str, target: Path) -> None:
    """Save a network of keras.applications with its weights. Raises UserError."""
    from worker.learning.applications import application_names

    names = sorted(application_names())
    if name not in names:
        raise UserError(
            f"{name!r} is neither a .keras file nor a network of keras.applications: {', '.join(names)}."
        )
    # Keras keeps what it downloads, and takes a file that is there already as it is: here, nothing is.
    environment = {**os.environ, "KERAS_HOME": str(target.parent / "keras")}
    command = [sys.executable, "-m", "worker.learning.applications", name, str(target)]
    done = subprocess.run(  # noqa: S603 -- one of our own modules, with a name that was checked
        command, env=environment, stdout=_STDERR, stderr=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise UserError(
            f"The weights of {name} could not be downloaded ({reason}). Try again, or save the network on a "
            "machine where they can be, and add the .keras file."
        )
