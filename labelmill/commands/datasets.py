"""`labelmill datasets`: list, show, add to, export and remove datasets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from jobs.errors import UserError
from jobs.models.dataset import DatasetVersion, Split
from labelmill.client import Client
from labelmill.commands.groups import listing_group
from labelmill.commands.options import AsJson, AsJsonList
from labelmill.console.destination import STDOUT, opened, output_option, shown
from labelmill.console.progress import ProgressLine
from labelmill.console.tables import Column, field_lines, print_rows, print_table, short_time
from labelmill.console.terminal import (
    examples,
    format_time,
    pluralize,
    print_data,
    print_json,
    print_value,
    printable_lines,
    report_errors,
    say,
)
from labelmill.datasets.describing import added_lines, describe_change, found_lines, modes_line, sizes_line

app = listing_group(
    "List the datasets, show one, add to one, export one, or remove one.",
    "labelmill datasets",
    "labelmill datasets add birds photos/",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.")]
VersionOption = Annotated[
    int | None, typer.Option("--version", min=1, metavar="N", help="This version. Default: the latest.")
]

_COLUMNS: Final = (
    Column("dataset", lambda each: each["dataset"]),
    Column("version", lambda each: str(each["version"]), right=True),
    Column("images", lambda each: f"{each['images']:,}", right=True),
    Column("classes", lambda each: f"{len(each['classes']):,}", right=True),
    Column("stored", lambda each: _storage(each), leave_out=2),
    Column("created (UTC)", lambda each: short_time(each["created_at"]), leave_out=1),
)

#: A class's row in the table of `show`.
_CLASS_COLUMNS: Final = (
    Column("class", lambda each: each["name"], min_width=12),
    *(
        Column(str(split), lambda each, split=split: f"{each[split]:,}", right=True)  # type: ignore[misc]
        for split in Split
    ),
)


@app.command("list", epilog=examples("labelmill datasets list --json"))
@report_errors
def list_all(as_json: AsJsonList = False) -> None:
    """List the datasets."""
    with Client() as client:
        rows = [_to_row(each) for each in client.datasets()]
    print_rows(_COLUMNS, rows, as_json=as_json)


@app.command(
    epilog=examples(
        "labelmill datasets add birds photos/",
        "labelmill datasets add birds labels.csv more.zip",
        r"labelmill datasets add birds photos/ --group-by 'bird\d+'",
        "labelmill datasets add fashion train-images-idx3-ubyte.gz t10k-images-idx3-ubyte.gz",
    )
)
@report_errors
def add(
    name: Name,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folders with one subfolder per class, or with such folders below train, validation and "
            "test; manifests (.csv, .jsonl, .parquet) with path or url, label, and optionally split and "
            "group; ZIP and TAR archives of these; IDX files.",
        ),
    ],
    by_reference: Annotated[
        bool,
        typer.Option(
            "--by-reference",
            help="Store where the images are instead of their bytes; every trainer must reach them there.",
        ),
    ] = False,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="A regular expression: images whose names have the same match, such as the variants of one "
            "picture, are kept in one split. If the pattern has a group, only the group counts.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add labelled images to a dataset as a new version, and create the dataset if needed; prints the
    version.

    The new version also has the images of the previous one. Each image is decoded once, and only new ones are
    stored. If the sources hold nothing new, the command prints the latest version's number and stores
    nothing. If it fails, is interrupted or is killed, the dataset stays as it was. If two commands add to one
    dataset at the same time, the second ends with exit code 2. Needs the extra `worker`, and `parquet` for
    Parquet files.

    A name has at most 64 lower-case letters, digits, dots, hyphens and underscores. Refused with exit code 2:
    fewer than two classes or more than 1,000; a class without images, with only one, or with none to train
    on; a split without images; a manifest without the needed columns, with a label that is not text, or with
    a path that leads out of its folder; an archive that is encrypted, damaged or a bomb.
    """
    with Client() as client, ProgressLine("adding") as progress:
        added = client.add_dataset(
            name, *sources, by_reference=by_reference, group_by=group_by, on_progress=progress.update
        )
    version = added.version
    for line in added_lines(version, new=added.new):
        say(line)
    print_value(asdict(version) | {"new": added.new}, str(version.version), as_json=as_json)


@app.command(
    epilog=examples(
        "labelmill datasets show birds",
        "labelmill datasets show birds --version 1 --json",
        "labelmill datasets show birds --output birds.html",
    )
)
@report_errors
def show(
    name: Name,
    version: VersionOption = None,
    output: Annotated[
        str | None,
        output_option("Write a report with a contact sheet into this HTML file or URL; - is stdout."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a version of a dataset: its images by class and split, their sizes, and problems in its sources.

    The problems are undecodable images, duplicates and conflicts in this version's sources only.
    """
    if output is not None and as_json:
        raise UserError("Give --json or --output, not both.")
    with Client() as client:
        found = client.dataset(name, version=version)
        page = client.dataset_report(name, version=found.version) if output is not None else ""
    if output is not None:
        with opened(output, force=force) as file:
            file.write(page.encode())
        if output != STDOUT:
            print_data(shown(output))
    elif as_json:
        print_json(found)
    else:
        _print_version(found)


@app.command(epilog=examples("labelmill datasets export birds birds-latest/"))
@report_errors
def export(
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder, which must be new or empty.")],
    version: VersionOption = None,
) -> None:
    """Write a version of a dataset into a folder, with its splits: as FOLDER/train/CLASS/IMAGE and so on.

    Other programs then train on the same images, and never on those of test. A file's name ends in the
    first characters of the SHA-256 of its bytes. Images that cannot be read any more are left out.
    """
    with Client() as client, ProgressLine("exporting") as progress:
        lost = client.export_dataset(name, folder, version=version, on_progress=progress.update)
    if lost:
        say(f"left out {pluralize(lost, 'image')} that cannot be read any more")
    print_data(shown(str(folder)))


@app.command(
    epilog=examples(
        "labelmill datasets remove birds",
        "labelmill datasets remove birds --class jay",
        "labelmill datasets remove birds --name '*/blurred-*.jpg'",
    )
)
@report_errors
def remove(
    name: Name,
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="CLASS", help="Remove only this class.")
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="GLOB", help="Remove only images whose whole names match."),
    ] = None,
    added_by: Annotated[
        int | None,
        typer.Option("--added-by", min=1, metavar="N", help="Remove only the images that version N added."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove a dataset with all its versions and images, or some images from its next version.

    With an option, the command adds a version without these images, and prints its number; earlier versions
    keep them. Options can be repeated and combined, except --added-by, which is given once.

    Without one, all is removed. The models that were trained on the dataset stay. A dataset cannot be removed
    while it has a champion, a challenger or an active training run.
    """
    with Client() as client:
        if classes or names or added_by is not None:
            version = client.drop_images(name, classes=classes or (), names=names or (), added_by=added_by)
            for line in added_lines(version, new=True):
                say(line)
            print_value(asdict(version), str(version.version), as_json=as_json)
            return
        versions = client.remove_dataset(name)
    say(f"dataset {name} is removed, with {pluralize(versions, 'version')}")
    if as_json:
        print_json({"dataset": name, "versions": versions})


def _to_row(version: DatasetVersion) -> dict[str, Any]:
    return {
        "dataset": version.dataset,
        "version": version.version,
        "images": version.summary["images"],
        "classes": version.classes,
        "fingerprint": version.fingerprint,
        "by_reference": version.by_reference,
        "created_at": version.created_at,
    }


def _storage(row: dict[str, Any]) -> str:
    return "by reference" if row["by_reference"] else "in the store"


def _print_version(version: DatasetVersion) -> None:
    summary = version.summary
    lines = field_lines(
        ("dataset", version.dataset),
        ("version", str(version.version)),
        ("created", format_time(version.created_at)),
        ("images", f"{summary['images']:,}, {describe_change(summary)} in this version"),
        ("stored", _storage(_to_row(version))),
        ("sizes", sizes_line(summary)),
        ("modes", modes_line(summary)),
        ("fingerprint", version.fingerprint),
    )
    print_data(printable_lines("\n".join([*lines, ""])))
    total = {"name": "all", **summary["splits"]}
    print_table(_CLASS_COLUMNS, [*summary["classes"], total])
    if found := found_lines(summary):
        print_data(printable_lines("\n".join(["", *found])))
