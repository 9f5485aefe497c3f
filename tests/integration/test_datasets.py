"""Datasets, on both databases: what a version holds, what is refused, and that nothing is half stored."""

from __future__ import annotations

import base64
import csv
import errno
import io
import json
import os
import shutil
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from jobs import ids
from jobs.errors import Conflict, DataUnavailable, NotFound, SourceError, Unavailable, UserError
from jobs.ledger import Ledger
from jobs.ledger.learning.runs import request_run
from jobs.models.dataset import MAX_CLASSES, Split
from jobs.network.references import Reference, Roots
from jobs.settings import Settings
from jobs.storage.dataset_list import Manifest, read_manifest
from jobs.storage.payloads import read_payload
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.client.purging import Purge
from labelmill.commands.datasets import app as datasets_command
from labelmill.datasets.describing import change_line, found_lines
from tests.labelled import picture, write_classes
from tests.threads import at_once
from tests.unit.test_near_duplicates import photograph
from tests.unit.test_reporting import Page


def stored_files(store: Store) -> set[str]:
    assert store.folder is not None
    return {
        str(path.relative_to(store.folder))
        for path in (store.folder / "datasets").rglob("*")
        if path.is_file()
    }


def manifest_of(client: Client, store: Store, name: str) -> Manifest:
    return read_manifest(store, client.dataset(name))


def splits_of(client: Client, store: Store, name: str) -> dict[str, Split]:
    return {image.pixels: image.split for image in manifest_of(client, store, name).images}


# ---- what a version holds -----------------------------------------------------------------------------


def test_every_image_of_a_folder_is_stored_once_with_its_class(client, store, tmp_path) -> None:
    # given two classes of 40 images
    folder = write_classes(tmp_path / "pets")

    # when they are added
    added = client.add_dataset("pets", folder)

    # then the version lists each with its class, and its payload holds its bytes
    version = added.version
    assert (added.new, version.version, version.classes) == (True, 1, ("cat", "dog"))
    manifest = read_manifest(store, version)
    payloads = [read_payload(store, file.key, file.digest) for file in manifest.payloads]
    found = {image.name: payloads[image.payload].contents[image.place] for image in manifest.images}
    expected = {str(path): path.read_bytes() for path in folder.rglob("*.png")}
    assert found == expected
    assert {image.name.split("/")[-2] == version.classes[image.label] for image in manifest.images} == {True}
    assert version.summary["images"] == 80
    assert version.summary["width"] == {"min": 8, "median": 8, "max": 8}
    assert version.summary["modes"] == {"L": 80}


def test_adding_keeps_the_splits_and_files_of_the_images_before(client, store, tmp_path) -> None:
    # given a dataset
    folder = write_classes(tmp_path / "pets")
    client.add_dataset("pets", folder)
    before, files = splits_of(client, store, "pets"), stored_files(store)

    # when more images are added, one class of them new
    write_classes(folder, first=1000, each=20)
    write_classes(folder, first=2000, each=30, classes=("ant",))
    version = client.add_dataset("pets", folder).version

    # then the new version has all of them, the known ones in their splits and in their files
    after = splits_of(client, store, "pets")
    assert (version.version, version.classes) == (2, ("ant", "cat", "dog"))
    assert {pixels: after[pixels] for pixels in before} == before
    assert len(after) == 80 + 40 + 30
    assert version.summary["added"] == 70
    assert files < stored_files(store)
    labels = {image.name: version.classes[image.label] for image in manifest_of(client, store, "pets").images}
    assert {Path(name).parent.name == label for name, label in labels.items()} == {True}
    # and the version before is still there
    assert client.dataset("pets", version=1).summary["images"] == 80


def test_made_splits_depend_on_the_pixels_only(client, store, tmp_path) -> None:
    # given the same images in two datasets, with other names and one more class
    client.add_dataset("a", write_classes(tmp_path / "a", each=300))
    (tmp_path / "a" / "cat").rename(tmp_path / "a" / "lion")
    write_classes(tmp_path / "a", classes=("ant",), first=5000)
    client.add_dataset("b", tmp_path / "a")

    # then each image is in the same split of both, and about a tenth is in test and in validation
    first, second = splits_of(client, store, "a"), splits_of(client, store, "b")
    assert {pixels: second[pixels] for pixels in first} == first
    number = list(first.values())
    assert 30 < number.count(Split.TEST) < 95
    assert 30 < number.count(Split.VALIDATION) < 95


def test_variants_of_one_thing_are_in_one_split(client, store, tmp_path) -> None:
    # given 60 things of each class, with three pictures of each thing
    folder = write_classes(tmp_path / "pets", each=180)
    for path in folder.rglob("*.png"):
        number = int(path.stem)
        path.rename(path.with_name(f"pet{number // 3}-{number}.png"))
    rows = ["path,label,group"]
    for path in sorted(folder.rglob("*.png")):
        rows.append(f"{path.relative_to(tmp_path)},{path.parent.name},{path.stem.partition('-')[0]}")
    (tmp_path / "pets.csv").write_text("\n".join(rows))

    def splits_of_things(name: str) -> dict[str, set[Split]]:
        found: dict[str, set[Split]] = defaultdict(set)
        for image in manifest_of(client, store, name).images:
            found[image.name.rpartition("-")[0].rpartition("/")[2]].add(image.split)
        return found

    # when they are added with a pattern, or in a manifest with groups, then each thing is in one split
    client.add_dataset("a", folder, group_by=r"pet\d+")
    client.add_dataset("b", tmp_path / "pets.csv")
    for name in ("a", "b"):
        assert {len(splits) for splits in splits_of_things(name).values()} == {1}
        assert client.dataset(name).summary["splits"]["test"] > 10

    # and things that an earlier version has divided are reported
    client.add_dataset("c", folder)
    write_classes(folder, first=7000, each=2)
    (folder / "cat" / "7000.png").rename(folder / "cat" / "pet0-x.png")
    version = client.add_dataset("c", folder, group_by=r"pet(\d+)").version
    assert version.summary["groups_in_two_splits"]["count"] > 10
    assert any("in more than one split, by their sources" in line for line in found_lines(version.summary))

    with pytest.raises(UserError, match="not a regular expression"):
        client.add_dataset("d", folder, group_by="(")


def test_test_images_that_look_like_training_images_are_said(client, tmp_path) -> None:
    # given photographs in train and test, and a training image as JPEG among those for testing
    for number in range(12):
        split, name = ("train", "validation", "test")[number // 4], ("cat", "dog")[number % 2]
        path = tmp_path / "pets" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(number).save(path)
    photograph(2).save(tmp_path / "pets" / "test" / "cat" / "copy.jpg", quality=75)

    # when they are added, then it is said which looks like which
    version = client.add_dataset("pets", tmp_path / "pets").version
    [found] = version.summary["look_alikes"]["first"]
    names = [found[key].rpartition("pets/")[2] for key in ("name", "same_as")]
    assert names == ["test/cat/copy.jpg", "train/cat/2.png"]
    assert any("learn from variants: 1 image" in line for line in found_lines(version.summary))


def test_an_exported_version_is_the_same_dataset(client, tmp_path) -> None:
    # given a dataset of two versions, whose images of both classes have the same names
    client.add_dataset("pets", write_classes(tmp_path / "pets"))
    version = client.add_dataset("pets", write_classes(tmp_path / "pets", each=2, first=900)).version

    # when its first version is exported, then other programs find its splits and classes
    folder = tmp_path / "exported"
    assert client.export_dataset("pets", folder, version=1) == 0
    splits = client.dataset("pets", version=1).summary["splits"]
    assert {each.name: len(list(each.rglob("*-????????????.png"))) for each in folder.iterdir()} == splits

    # and added again, it is the same data
    first = client.dataset("pets", version=1)
    assert client.add_dataset("copy", folder).version.fingerprint == first.fingerprint != version.fingerprint

    # and a folder with files in it is left alone
    with pytest.raises(Conflict, match="is not empty"):
        client.export_dataset("pets", folder)


def test_a_dataset_loses_images_a_class_and_a_version(client, store, run_command, tmp_path) -> None:
    # given a dataset of three classes, to which version 2 has added images
    folder = write_classes(tmp_path / "pets", classes=("ant", "cat", "dog"))
    client.add_dataset("pets", folder)
    before = splits_of(client, store, "pets")
    client.add_dataset("pets", write_classes(tmp_path / "more", each=10, first=5000))

    # when a class, some images, and what version 2 added are removed
    done = run_command(datasets_command, "remove", "pets", "--class", "ant", "--name", "*/cat/000?.png")
    assert done.stdout == "3\n"
    assert "version 3: 90 images of 2 classes" in done.stderr
    assert "50 removed" in done.stderr
    version = client.drop_images("pets", added_by=2)

    # then a new version is without them, the others are in their splits, and earlier versions have all
    after = splits_of(client, store, "pets")
    assert (version.version, version.classes, len(after)) == (4, ("cat", "dog"), 70)
    assert {pixels: before[pixels] for pixels in after} == after
    assert client.dataset("pets", version=2).summary["images"] == 140
    assert change_line(version, client.dataset("pets", version=3)) == "20 images removed"

    # and what would remove nothing, or leave too little, changes nothing
    for options, words in (
        ({"names": ["*.gif"]}, "has no such image"),
        ({"classes": ["owl"]}, "has no class 'owl'"),
        ({"classes": ["cat"]}, "at least two"),
    ):
        with pytest.raises(UserError, match=words):
            client.drop_images("pets", **options)
    assert client.dataset("pets").version == 4


def test_given_splits_are_kept_and_validation_images_are_taken_from_training(client, tmp_path) -> None:
    # given images in train/ and test/
    write_classes(tmp_path / "pets" / "train", each=200)
    write_classes(tmp_path / "pets" / "test", each=20, first=5000)

    # when they are added
    version = client.add_dataset("pets", tmp_path / "pets").version

    # then test/ is the test split, and about a ninth of train/ is the validation split
    splits = version.summary["splits"]
    assert splits["test"] == 40
    assert splits["train"] + splits["validation"] == 400
    assert 20 < splits["validation"] < 75
    assert version.summary["in_two_splits"]["count"] == 0
    # and adding them again changes nothing
    assert not client.add_dataset("pets", tmp_path / "pets").new


def test_a_picture_in_two_splits_is_kept_in_test(client, tmp_path) -> None:
    # given a test image that is also a training image, under another name and in another format
    write_classes(tmp_path / "pets" / "train")
    write_classes(tmp_path / "pets" / "val", first=3000, each=5)
    write_classes(tmp_path / "pets" / "test", first=5000, each=5)
    (tmp_path / "pets" / "test" / "cat" / "copy.bmp").write_bytes(picture(0, kind="bmp"))

    # when they are added
    version = client.add_dataset("pets", tmp_path / "pets").version

    # then it is a test image only, and the summary says so
    found = version.summary["in_two_splits"]
    assert found["count"] == 1
    assert found["first"][0]["kept"] == "test"
    assert version.summary["splits"] == {"train": 79, "validation": 10, "test": 11}


def test_duplicates_conflicts_and_unreadable_images_are_reported(client, tmp_path) -> None:
    # given a duplicate, a picture of two classes, a broken image, and an image beside the classes
    folder = write_classes(tmp_path / "pets")
    (folder / "cat" / "same.gif").write_bytes(picture(0, kind="gif"))
    (folder / "dog" / "other.png").write_bytes(picture(1))
    (folder / "dog" / "broken.png").write_bytes(picture(500)[:60])
    (folder / "beside.png").write_bytes(picture(501))
    (folder / "dog" / "notes.txt").write_text("no image")

    # when they are added
    summary = client.add_dataset("pets", folder).version.summary

    # then the rest is used, and each is reported by name
    assert summary["images"] == 80
    assert summary["duplicates"]["first"] == [
        {"name": f"{folder}/cat/same.gif", "same_as": f"{folder}/cat/0000.png"}
    ]
    assert summary["conflicts"]["first"] == [
        {
            "name": f"{folder}/dog/other.png",
            "same_as": f"{folder}/cat/0001.png",
            "label": "dog",
            "other_label": "cat",
        }
    ]
    assert summary["unreadable"]["codes"] == {"corrupt": 1}
    assert summary["unreadable"]["first"][0]["name"] == f"{folder}/dog/broken.png"
    assert summary["unlabelled"] == {"count": 1, "first": [{"name": f"{folder}/beside.png"}]}
    assert summary["skipped"] == 1


def test_a_label_can_be_corrected_by_adding_the_image_again(client, tmp_path) -> None:
    # given an image in the wrong folder
    folder = write_classes(tmp_path / "pets")
    client.add_dataset("pets", folder)
    (folder / "cat" / "0003.png").rename(folder / "dog" / "from-cat.png")

    # when the corrected folder is added
    version = client.add_dataset("pets", folder).version

    # then the new version has the new label, and no new image
    assert (version.summary["added"], version.summary["relabelled"]["count"]) == (0, 1)
    totals = [each["train"] + each["validation"] + each["test"] for each in version.summary["classes"]]
    assert totals == [39, 41]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_references_are_stored_instead_of_bytes(client, store, settings, tmp_path) -> None:
    folder = write_classes(tmp_path / "pets")
    with pytest.raises(SourceError, match="LABELMILL_REFERENCE_ROOTS"):
        client.add_dataset("pets", folder, by_reference=True)
    allowed = settings.model_copy(update={"reference_roots": (str(tmp_path),)})
    with Client(allowed) as client:
        version = client.add_dataset("pets", folder, by_reference=True).version

    manifest = read_manifest(store, version)
    [file] = manifest.payloads
    payload = read_payload(store, file.key, file.digest)
    roots = Roots([str(tmp_path)])
    for image in manifest.images:
        reference = payload.contents[image.place]
        assert isinstance(reference, Reference)
        assert roots.read(reference, max_bytes=10_000) == Path(image.name).read_bytes()
    assert version.by_reference


# ---- other sources ------------------------------------------------------------------------------------


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow as pa

        parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_rows(folder: Path, number: int = 60) -> list[dict[str, Any]]:
    """Write pictures into one folder. Return the rows of a manifest about them."""
    folder.mkdir()
    rows = []
    for n in range(number):
        (folder / f"{n}.png").write_bytes(picture(n))
        split = "test" if n % 6 == 0 else "val" if n % 6 == 1 else ""
        rows.append({"path": f"{folder.name}/{n}.png", "label": str(n % 3), "split": split or "train"})
    return rows


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_manifest_names_paths_labels_and_splits(client, store, tmp_path, ending) -> None:
    # given a manifest, and an image that it names but that does not exist
    rows = write_rows(tmp_path / "images")
    rows.append({"path": "images/gone.png", "label": "0", "split": "train"})
    manifest = write_manifest(tmp_path / f"labels.{ending}", rows)

    # when it is added
    version = client.add_dataset("things", manifest).version

    # then labels and splits are those of the manifest
    assert version.classes == ("0", "1", "2")
    assert version.summary["splits"] == {"train": 40, "validation": 10, "test": 10}
    assert version.summary["unreadable"]["codes"] == {"source_missing": 1}
    found = {Path(image.name).stem: str(image.label) for image in manifest_of(client, store, "things").images}
    assert found == {str(n): str(n % 3) for n in range(60)}


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_manifest_may_name_urls(client, tmp_path) -> None:
    # given images behind URLs, one of which leads nowhere, and one that is a path
    memory = fsspec.filesystem("memory")
    rows = [{"url": f"memory://things/{n}.png", "label": "ab"[n % 2]} for n in range(80)]
    for n in range(80):
        memory.pipe_file(f"/things/{n}.png", picture(n))
    rows.append({"url": "memory://things/gone.png", "label": "a"})

    # when they are added
    version = client.add_dataset("things", write_manifest(tmp_path / "urls.csv", rows)).version

    # then those that can be read are in the dataset
    assert (version.classes, version.summary["images"]) == (("a", "b"), 80)
    assert version.summary["unreadable"]["codes"] == {"source_missing": 1}
    # and a path is not read as a URL: it could lead anywhere
    rows.append({"url": f"file://{tmp_path}/urls.csv", "label": "a"})
    with pytest.raises(UserError, match="is not a URL"):
        client.add_dataset("more", write_manifest(tmp_path / "paths.csv", rows))


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("pack", ["zip", "gztar"])
@pytest.mark.parametrize("inside", ["classes", "wrapped", "splits", "manifest"])
def test_an_archive_may_hold_any_of_these(client, tmp_path, pack, inside) -> None:
    # given an archive of folders, with or without a folder above them, or of a manifest and its images
    root = tmp_path / "root"
    if inside == "splits":
        write_classes(root / "train")
        write_classes(root / "val", first=3000, each=5)
        write_classes(root / "test", first=5000, each=5)
    elif inside == "manifest":
        root.mkdir()
        write_manifest(root / "manifest.csv", write_rows(root / "images"))
    else:
        write_classes(root / "above" if inside == "wrapped" else root)
    archive = shutil.make_archive(str(tmp_path / "packed"), pack, root)

    # when it is added
    version = client.add_dataset("packed", archive).version

    # then its classes are found
    if inside == "manifest":
        assert version.summary["splits"] == {"train": 40, "validation": 10, "test": 10}
    elif inside == "splits":
        assert version.summary["splits"] == {"train": 80, "validation": 10, "test": 10}
    else:
        assert (version.classes, version.summary["images"]) == (("cat", "dog"), 80)


def test_two_labels_for_one_path_in_an_archive_are_a_conflict(client, tmp_path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    rows = write_rows(root / "images")
    path, label = rows[0]["path"], rows[0]["label"]
    other = next(row["label"] for row in rows if row["label"] != label)
    write_manifest(root / "manifest.csv", [*rows, rows[0] | {"label": other}])
    summary = client.add_dataset(
        "packed", shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    ).version.summary
    assert summary["conflicts"]["count"] == 1
    assert summary["conflicts"]["first"][0]["name"].endswith(path)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_idx_files_bring_their_labels(client, little_mnist, tmp_path) -> None:
    folder = little_mnist.write(tmp_path / "idx")
    images = [str(path) for path in sorted(folder.iterdir()) if "images" in path.name]
    by_folder = client.add_dataset("folder", folder).version
    by_file = client.add_dataset("files", *images).version

    assert by_folder.fingerprint == by_file.fingerprint
    assert by_folder.summary["splits"]["test"] == len({image.tobytes() for image in little_mnist.test_images})
    assert by_folder.classes == tuple("0123456789")


# ---- bad input ----------------------------------------------------------------------------------------


def with_class(name: str, *images: bytes) -> Callable[[Path], Path]:
    """Return a function that writes two good classes, and one with these files."""

    def write(folder: Path) -> Path:
        write_classes(folder)
        (folder / name).mkdir()
        for number, data in enumerate(images):
            (folder / name / f"{number}.png").write_bytes(data)
        return folder

    return write


def many_classes(folder: Path) -> Path:
    for number in range(MAX_CLASSES + 1):
        (folder / str(number)).mkdir(parents=True)
    return folder


def rows_with(**changes: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        rows = write_rows(folder)
        rows[7].update(changes)
        return write_manifest(folder.parent / "labels.jsonl", rows)

    return write


def without_labels(folder: Path) -> Path:
    rows = [{"path": row["path"], "split": row["split"]} for row in write_rows(folder)]
    return write_manifest(folder.parent / "labels.csv", rows)


def symlink_outside(folder: Path) -> Path:
    rows = write_rows(folder)
    below = folder.parent / "below"
    below.mkdir()
    (below / "secret.png").symlink_to(folder / "1.png")
    return write_manifest(below / "labels.csv", [{**rows[0], "path": "secret.png"}])


def two_million_labels(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "labels.csv"
    with path.open("w") as file:
        file.write("path,label\n")
        file.writelines(f"{n}.png,{n}\n" for n in range(2_000_000))
    return path


def zip_bomb(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(40):
            archive.writestr(f"{'cat' if n % 2 else 'dog'}/{n}.png", picture(n) + bytes(10_000_000))
    return path


def outside_archive(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "outside.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.csv", "path,label\n../../etc/passwd,a\n")
        archive.writestr("1.png", picture(1))
    return path


BAD = [
    (partial(write_classes, classes=("cat",)), "one class, 'cat'"),
    (with_class("empty"), "class 'empty' is empty"),
    (with_class("emu", picture(7000)), "'emu' has only one image"),
    (with_class("emu", b"no image"), "'emu' has no image that can be used .*unidentified"),
    (many_classes, "more than 1,000 classes"),
    (partial(write_classes, classes=("",)), "no images of a class"),  # not in a folder of a class
    (rows_with(label=7), "line 8: its label is 7, which is not text"),
    (rows_with(label=["a"]), "line 8: its label .* not text"),
    (rows_with(label=""), "line 8: it has no label"),
    (rows_with(label="a\nb"), "line 8: .*without control characters"),
    (rows_with(split="dev"), "line 8: its split is 'dev'"),
    (rows_with(path="../outside.png"), "line 8: the path ../outside.png leads out"),
    (rows_with(path="/etc/passwd"), "line 8: the path /etc/passwd leads out"),
    (rows_with(path=None), "line 8: it needs a path or a url"),
    (without_labels, "no column label"),
    (symlink_outside, "line 2: the path secret.png leads out"),
    (two_million_labels, "more than 1,000 classes"),
    (zip_bomb, "zip bomb"),
    (outside_archive, "line 2: the path .* leads out"),
]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("make", "message"), BAD, ids=lambda value: getattr(value, "__name__", value))
def test_bad_input_is_refused_and_nothing_is_stored(client, store, tmp_path, make, message) -> None:
    source = make(tmp_path / "source")

    with pytest.raises(UserError, match=message):
        client.add_dataset("bad", source)

    assert stored_files(store) == set()
    assert client.datasets() == []


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", ["", "Birds", "../x", "a/b", "-x", "x" * 65])
def test_a_name_must_be_usable(client, tmp_path, name) -> None:
    with pytest.raises(UserError, match="name"):
        client.add_dataset(name, write_classes(tmp_path / "pets"))


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_sources_are_checked_before_anything_is_read(client, tmp_path) -> None:
    with pytest.raises(SourceError, match="cannot find"):
        client.add_dataset("pets", write_classes(tmp_path / "pets"), tmp_path / "gone")
    (tmp_path / "one.png").write_bytes(picture(1))
    for source in (tmp_path / "one.png", "s3://bucket/pets/"):
        with pytest.raises(SourceError, match="says nothing about classes"):
            client.add_dataset("pets", source)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_folder_that_cannot_be_listed_is_named(client, tmp_path, monkeypatch) -> None:
    def listdir(folder: str) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)

    folder = write_classes(tmp_path / "pets")
    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(SourceError, match=r"pets cannot be listed \(Permission denied\): check its perm"):
        client.add_dataset("pets", folder)


# ---- at the same time ---------------------------------------------------------------------------------


def test_of_two_at_the_same_time_the_second_is_refused_and_leaves_nothing(
    client, settings, store, tmp_path, monkeypatch
) -> None:
    # given two processes that add to one dataset and have stored their images
    first, second = (write_classes(tmp_path / name, first=first) for name, first in (("a", 0), ("b", 9000)))
    both = threading.Barrier(2)
    put = Store.put

    def put_then_wait(self: Store, key: str, *pieces: bytes) -> None:
        put(self, key, *pieces)
        if key.endswith("manifest.msgpack"):
            both.wait(30)

    monkeypatch.setattr(Store, "put", put_then_wait)

    def add(folder: Path) -> str:
        with Client(settings) as mine:
            try:
                return str(mine.add_dataset("pets", folder).version.version)
            except Conflict as error:
                return str(error)

    # when both add their rows, then one of them is told, and only the other's images are stored
    assert sorted(at_once(add, [first, second])) == [
        "1",
        "Dataset pets was added at the same time by another process: try again.",
    ]
    manifest = manifest_of(client, store, "pets")
    version = client.dataset("pets")
    assert stored_files(store) == {version.manifest, *(file.key for file in manifest.payloads)}


def test_a_dataset_that_is_removed_meanwhile_is_not_added_to(client, store, tmp_path) -> None:
    client.add_dataset("pets", write_classes(tmp_path / "pets"))

    def remove(done: int) -> None:
        if done:
            with Client(client.settings) as other:
                other.remove_dataset("pets")

    with pytest.raises(Conflict, match="removed at the same time"):
        client.add_dataset("pets", write_classes(tmp_path / "more", first=9000), on_progress=remove)

    assert (client.datasets(), stored_files(store)) == ([], set())


def test_an_interrupted_adding_stores_nothing(client, store, tmp_path) -> None:
    def interrupt(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.add_dataset("pets", write_classes(tmp_path / "pets"), on_progress=interrupt)

    assert (client.datasets(), stored_files(store)) == ([], set())


def test_a_lost_answer_to_the_last_commit_does_not_lose_the_version(
    client, store, tmp_path, monkeypatch
) -> None:
    # given a connection that breaks when the row is committed, before the answer comes
    folder = write_classes(tmp_path / "pets")
    client.add_dataset("other", folder)
    transaction = Ledger.transaction

    @contextmanager
    def losing_the_answer(ledger: Ledger) -> Iterator[Any]:
        with transaction(ledger) as connection:
            yield connection
        raise Unavailable("the connection broke")

    monkeypatch.setattr(Ledger, "transaction", losing_the_answer)

    # when a dataset is added
    added = client.add_dataset("pets", folder)

    # then the version is there, with its images
    assert (added.new, added.version) == (True, client.dataset("pets"))
    assert len(manifest_of(client, store, "pets").images) == 80


# ---- removing -----------------------------------------------------------------------------------------


def test_a_removed_dataset_is_gone_with_its_files(client, store, tmp_path) -> None:
    folder = write_classes(tmp_path / "pets")
    client.add_dataset("other", folder)
    kept = stored_files(store)
    client.add_dataset("pets", folder)
    write_classes(folder, first=1000)
    client.add_dataset("pets", folder)

    assert client.remove_dataset("pets") == 2

    assert stored_files(store) == kept
    assert [each.dataset for each in client.datasets()] == ["other"]
    with pytest.raises(NotFound):
        client.dataset("pets")
    with pytest.raises(NotFound):
        client.remove_dataset("pets")
    # and the name is free again
    assert client.add_dataset("pets", folder).version.version == 1


def test_a_dataset_with_a_champion_or_an_active_run_stays(
    client, ledger, store, tmp_path, make_model
) -> None:
    client.add_dataset("pets", write_classes(tmp_path / "pets"))
    files = stored_files(store)

    # given a training run
    run_id = ids.new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={}, dataset="pets")
    with pytest.raises(Conflict, match=f"training run {run_id} is active"):
        client.remove_dataset("pets")

    # given a champion
    client.cancel_run(run_id)
    champion = make_model(dataset="pets")
    with pytest.raises(Conflict, match=f"model {champion.id} is its champion"):
        client.remove_dataset("pets")

    assert stored_files(store) == files


def test_what_a_killed_process_left_is_removed_after_a_day(
    client, ledger, store, tmp_path, monkeypatch
) -> None:
    # given the files of an adding that was killed, and those of one that goes on
    folder = write_classes(tmp_path / "pets")
    client.add_dataset("pets", folder)
    needed = stored_files(store)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: 1_700_000_000 * 10**9)
        store.put(f"datasets/pets/{ids.new_id()}/left.msgpack", b"left")
        store.put(f"datasets/never/{ids.new_id()}/left.msgpack", b"left")
    young = f"datasets/pets/{ids.new_id()}/young.msgpack"
    store.put(young, b"young")

    # when somebody adds to the dataset
    client.add_dataset("pets", folder)

    # then the old ones are gone
    assert len(stored_files(store)) == len(needed | {young}) + 1
    # and a purge removes those of a dataset that was never there
    purge = Purge(ledger, store, dry_run=False, on_progress=lambda _purged: None)
    purge.strays()
    assert (stored_files(store), purge.purged.strays) == (needed | {young}, 1)


def test_a_damaged_manifest_is_noticed(client, store, tmp_path) -> None:
    version = client.add_dataset("pets", write_classes(tmp_path / "pets")).version
    data = store.get(version.manifest)
    for damaged in (b"", b"\xc1", data[:-1], data.replace(b"train", b"test!", 1)):
        store.put(version.manifest, damaged)
        with pytest.raises(DataUnavailable, match="restore it, or add the images as a dataset"):
            read_manifest(store, version)
    store.remove(version.manifest)
    with pytest.raises(DataUnavailable, match="missing from the store"):
        read_manifest(store, version)


# ---- the commands -------------------------------------------------------------------------------------


@pytest.fixture
def command(run_command: Callable[..., Any]) -> Callable[..., Any]:
    from labelmill.commands.datasets import app

    return lambda *arguments: run_command(app, *arguments)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_commands_add_list_show_and_remove(command, tmp_path) -> None:
    folder = write_classes(tmp_path / "pets")
    (folder / "cat" / "bad.png").write_bytes(b"bad")

    done = command("add", "pets", folder)
    assert (done.exit_code, done.stdout) == (0, "1\n"), done.stderr
    assert "80 images of 2 classes" in done.stderr
    assert "1 image that cannot be decoded (unidentified 1)" in done.stderr
    again = command("add", "pets", folder, "--json")
    assert json.loads(again.stdout)["new"] is False
    assert "no new version" in again.stderr

    listed = json.loads(command("--json").stdout)
    assert [(each["dataset"], each["version"]) for each in listed] == [("pets", 1)]
    assert "pets" in command().stdout

    shown = command("show", "pets").stdout
    assert "cat" in shown
    assert "8 x 8" in shown
    assert json.loads(command("show", "pets", "--json").stdout)["summary"]["images"] == 80
    assert command("show", "pets", "--version", 2).exit_code == 2

    assert json.loads(command("remove", "pets", "--json").stdout) == {"dataset": "pets", "versions": 1}
    assert command("show", "pets").exit_code == 2


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_report_is_one_page_without_markup_from_the_data(command, tmp_path) -> None:
    # given classes and files with hostile names, and one image that is gone
    hostile = '<img src=x onerror="alert(1)">'
    folder = write_classes(tmp_path / "pets", classes=("cat", hostile, "{{ 7 * 7 }}"))
    (folder / "cat" / "<script>alert(2)<").write_bytes(b"bad")
    (folder / "cat" / "large.jpg").write_bytes(picture(77, side=300, kind="jpeg", mode="RGB"))
    assert command("add", "pets", folder).exit_code == 0

    # when the report is written
    page = tmp_path / "pets.html"
    done = command("show", "pets", "--output", page)

    # then it shows each class with some images, names them, and nothing in it is markup from the data
    assert (done.exit_code, done.stdout) == (0, f"{page}\n"), done.stderr
    report = Page(page.read_text())
    pictures = report.all("img")
    assert len(pictures) == 3
    allowed = {"src", "alt", "title", "class", "width", "height", "loading"}
    assert all(set(each) <= allowed for each in pictures)
    for each in pictures:
        head, _, data = each["src"].partition(",")
        assert head == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as drawn:
            assert drawn.width == 2 * drawn.height  # two rows of four images
        assert each["title"].count(", ") == 7
    assert report.all("script") == []
    assert " style=" not in page.read_text()
    assert "{{ 7 * 7 }}" in report.text
    assert hostile in report.text
    # and an existing file is not overwritten without a word
    assert command("show", "pets", "--output", page).exit_code == 2


def test_nothing_is_needed_but_the_ledger_to_list(settings: Settings, monkeypatch) -> None:
    # given an installation without decoders
    monkeypatch.setattr("jobs.extras.find_spec", lambda _name: None)
    with Client(settings) as client:
        assert client.datasets() == []
        with pytest.raises(UserError, match="extra 'worker'"):
            client.add_dataset("pets", "pets/")
