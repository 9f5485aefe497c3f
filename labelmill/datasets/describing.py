"""Describe a version of a dataset in words."""

from __future__ import annotations

from typing import Any, Final

from jobs.models.dataset import DatasetVersion, Split
from labelmill.console.terminal import pluralize
from labelmill.datasets.hints import hint_lines

#: New classes that `change_line` names.
_NAMED: Final = 5

#: What is left out of a version's sources, with the words for one image and for several.
_LEFT_OUT: Final = (
    ("duplicates", "duplicate", "duplicates"),
    ("conflicts", "label conflict", "label conflicts"),
    ("unreadable", "unreadable image", "unreadable images"),
    ("unlabelled", "image in no class", "images in no class"),
)


def added_lines(version: DatasetVersion, *, new: bool) -> list[str]:
    """Return lines that say what was added to a dataset, and what was wrong with the sources."""
    summary = version.summary
    name = f"dataset {version.dataset}"
    if not new:
        return [f"{name}, version {version.version}, has all of these images already: no new version"]
    splits = ", ".join(f"{split} {summary['splits'][split]:,}" for split in Split)
    return [
        f"{name}, version {version.version}: {pluralize(summary['images'], 'image')} of "
        f"{len(version.classes):,} classes ({splits}), {describe_change(summary)}",
        *found_lines(summary),
    ]


def describe_change(summary: dict[str, Any]) -> str:
    """Return how many images a version adds to those of the one before, or removes."""
    removed: int = summary["removed"]
    return f"{removed:,} removed" if removed else f"{summary['added']:,} of them new"


def change_line(version: DatasetVersion, before: DatasetVersion | None) -> str:
    """Return what changed since the version before, in one line."""
    summary = version.summary
    removed = summary["removed"]
    parts = [f"{pluralize(removed or summary['added'], 'image')} {'removed' if removed else 'added'}"]
    new = [name for name in version.classes if before and name not in set(before.classes)]
    if new:
        more = f" and {len(new) - _NAMED:,} more" if len(new) > _NAMED else ""
        noun = "new class" if len(new) == 1 else "new classes"
        parts.append(f"{noun}: {', '.join(new[:_NAMED])}{more}")
    if summary["relabelled"]["count"]:
        parts.append(pluralize(summary["relabelled"]["count"], "new label"))
    counts = [(summary[key]["count"], *words) for key, *words in _LEFT_OUT]
    left_out = [pluralize(count, thing, things) for count, thing, things in counts if count]
    if left_out:
        parts.append(f"left out: {', '.join(left_out)}")
    return "; ".join(parts)


def modes_line(summary: dict[str, Any]) -> str:
    """Return the modes of the images, the most frequent first."""
    modes = sorted(summary["modes"].items(), key=lambda each: -each[1])
    return ", ".join(f"{mode} {number:,}" for mode, number in modes)


def sizes_line(summary: dict[str, Any]) -> str:
    """Return the sizes of the images."""
    if summary["different_sizes"] == 1:
        return f"{summary['width']['min']} x {summary['height']['min']}"
    sides = [
        f"{side} {summary[side]['min']:,} to {summary[side]['max']:,} (median {summary[side]['median']:,})"
        for side in ("width", "height")
    ]
    most = summary["sizes"][0]
    return (
        f"{', '.join(sides)}; {summary['different_sizes']:,} sizes, most often {most['width']} x "
        f"{most['height']} ({most['images']:,})"
    )


def found_lines(summary: dict[str, Any]) -> list[str]:
    """Return a line for each thing that was wrong with the sources, with its first image, and hints."""
    codes = ", ".join(f"{code} {number:,}" for code, number in summary["unreadable"]["codes"].items())
    findings = (
        (
            "unreadable",
            "left out: {images} that cannot be decoded (" + codes + ")",
            "{name}, {error} {detail}",
        ),
        ("unlabelled", "left out: {images} in no class", "{name}"),
        ("duplicates", "left out: {images} with the pixels and the label of another", "{name} is {same_as}"),
        (
            "conflicts",
            "left out: {images} with the pixels of another, but not its label",
            "{name} is {label}, {same_as} is {other_label}",
        ),
        (
            "relabelled",
            "new label: {images} of the version before",
            "{same_as} was {other_label}, {name} is {label}",
        ),
        ("in_two_splits", "in more than one split: {images}, each kept in one", "{name} is kept in {kept}"),
        (
            "groups_in_two_splits",
            "in more than one split, by their sources or by earlier versions: {groups}",
            "{name} is in {splits}",
        ),
        (
            "look_alikes",
            "in test, although models learn from variants: {images} (`--group-by` keeps variants together)",
            "{name} looks like {same_as} in {split}",
        ),
    )
    lines = []
    for key, what, first in findings:
        found = summary[key]
        if found["count"]:
            count = found["count"]
            line = what.format(images=pluralize(count, "image"), groups=pluralize(count, "group"))
            lines.append(f"{line}; the first: {first.format(**found['first'][0]).strip()}")
    if summary["skipped"]:
        lines.append(f"skipped because of their names: {pluralize(summary['skipped'], 'file')}")
    return lines + hint_lines(summary)
