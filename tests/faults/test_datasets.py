"""Adding to a dataset is killed at every step: the dataset stays as it was."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from jobs.errors import NotFound
from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.storage.dataset_list import read_manifest
from jobs.storage.payloads import read_payload
from jobs.storage.store import Store
from labelmill import Client
from labelmill.datasets import removing
from tests.faults.steps import killed_at_each_step
from tests.labelled import write_classes

#: For each dataset that is named on stdin: add to it in a process that kills itself at a step.
KILLS_ITSELF = """
import sys
from labelmill import Client
from labelmill.datasets import adding
from tests.faults.steps import begin_steps, serve

adding._PAYLOAD_IMAGES = 30

def add(dataset):
    with Client() as client:
        begin_steps((adding, "add_version"))
        client.add_dataset(dataset, sys.argv[1])

serve(add)
"""


def check_version(client: Client, store: Store, name: str, images: int) -> None:
    """Check that the latest version has this many images, and that all are stored."""
    version = client.dataset(name)
    manifest = read_manifest(store, version)
    assert len(manifest.images) == images
    payloads = [read_payload(store, file.key, file.digest) for file in manifest.payloads]
    assert all(isinstance(payloads[each.payload].contents[each.place], bytes) for each in manifest.images)


@pytest.mark.parametrize("known", [False, True], ids=["a new dataset", "a further version"])
def test_adding_that_is_killed_at_any_step_changes_nothing_and_can_be_repeated(
    settings: Settings,
    ledger: Ledger,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    # given a folder with new images, and a dataset for each step that may exist already
    first = write_classes(tmp_path / "first", each=30)
    folder = write_classes(tmp_path / "second", each=45, first=9000)
    images = 150 if known else 90
    with killed_at_each_step(KILLS_ITSELF, folder, settings=settings) as add, Client(settings) as client:
        killed = 0
        for number in count():
            name = f"pets{number}"
            if known:
                client.add_dataset(name, first)

            # when adding to it is killed at the next step
            was_killed = add(name)

            # then the dataset is as it was, unless the last COMMIT was through: then it has all images
            try:
                is_added = client.dataset(name).summary["images"] == images
            except NotFound:
                assert not known
                is_added = False
            if is_added or known:
                check_version(client, store, name, images if is_added else 60)
            if not was_killed:
                assert is_added
                break
            killed += 1

            # and adding again works
            assert client.add_dataset(name, folder).new is not is_added
            check_version(client, store, name, images)
    assert killed > 20

    # and later on nothing is left but what the versions need
    monkeypatch.setattr(removing, "_STRAY_SECONDS", -60)
    needed: set[str] = set()
    with Client(settings) as client:
        for version in client.datasets():
            removing.remove_strays(ledger, store, version.dataset)
            manifest = read_manifest(store, version)
            needed |= {version.manifest, *(file.key for file in manifest.payloads)}
            if version.version == 2:
                needed.add(client.dataset(version.dataset, version=1).manifest)
    assert _files(Path(settings.store) / "datasets") == {Path(settings.store) / key for key in needed}


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
