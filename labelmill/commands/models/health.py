"""`labelmill models health`: how a model has performed since it was evaluated."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.cells import cell_len, set_cell_size

from jobs.ledger.learning.health import RECENT_DAYS, Health
from jobs.ledger.learning.known_labels import KnownAccuracy
from jobs.models.dataset import describe_accuracy
from jobs.models.drift import Shift
from labelmill.client import Client
from labelmill.commands.options import AsJson, ChampionOfOption
from labelmill.console.tables import field_lines
from labelmill.console.terminal import (
    examples,
    pluralize,
    print_value,
    printable_lines,
    report_errors,
)
from producer.export import printable

app = typer.Typer(add_completion=False)

#: Characters of a bar that stands for all images.
_BAR_WIDTH: Final = 40


@app.command(epilog=examples("labelmill models health", "labelmill models health --dataset birds --json"))
@report_errors
def health(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The model's id. Default: the champion.")
    ] = None,
    dataset: ChampionOfOption = None,
    as_json: AsJson = False,
) -> None:
    """Show how a model, or the champion, has performed since it was evaluated.

    - accuracy is that of its evaluation, and live accuracy the share of corrected or confirmed predictions
      that were right. live set is its accuracy on corrections that training leaves out.
    - known labels is its accuracy on recent images whose manifest or folder names a class, with corrections.
      If its 95% interval is below that of the evaluation, the accuracy has fallen.
    - recent counts the images of its latest 20 jobs of the last 30 days, at most 50,000 per job.
    - labels and confidences compare the recent distribution with that of the evaluation, by the population
      stability index: below 0.1 `steady`, from 0.1 `moved`, above 0.25 `drifted`. They need 200 images and an
      evaluation.
    """
    with Client() as client:
        found = client.health(model, dataset=dataset)
    print_value(_to_json(found), printable_lines("\n".join(_format_health(found))), as_json=as_json)


def _to_json(health: Health) -> dict[str, Any]:
    return {
        "model": health.model,
        "dataset": health.dataset,
        "dataset_version": health.dataset_version,
        "accuracy": health.accuracy,
        "live_accuracy": health.live.accuracy,
        "right": health.live.right,
        "labelled": health.live.labelled,
        "live_set": _known_to_json(health.live_set),
        "known": _known_to_json(health.known),
        "jobs": health.jobs,
        "images": health.images,
        "labels": _shift_to_json(health.labels),
        "confidences": _shift_to_json(health.confidences),
        "warnings": health.warnings,
        "unknown": health.unknown,
    }


def _known_to_json(known: KnownAccuracy | None) -> dict[str, Any] | None:
    if known is None:
        return None
    low, high = known.interval
    figures = {"accuracy": known.accuracy, "accuracy_low": low, "accuracy_high": high}
    return {"right": known.right, "images": known.images, **figures}


def _shift_to_json(shift: Shift | None) -> dict[str, Any] | None:
    if shift is None:
        return None
    groups = zip(shift.groups, shift.expected, shift.actual, strict=True)
    return {
        "index": shift.index,
        "drift": shift.drift,
        "groups": [{"group": group, "expected": then, "actual": now} for group, then, now in groups],
    }


def _format_health(health: Health) -> list[str]:
    live = health.live
    said = "-" if live.accuracy is None else f"{live.accuracy:.4f}"
    recent = f"{pluralize(health.images, 'image')} of {pluralize(health.jobs, 'job')}"
    lines = field_lines(
        ("model", health.model),
        ("accuracy", describe_accuracy(health.accuracy, health.dataset, health.dataset_version)),
        ("live accuracy", f"{said}, {live.right:,} right of {live.labelled:,} labelled"),
        *_known_fields("live set", health.live_set),
        *_known_fields("known labels", health.known),
        ("recent", f"{recent} in the last {RECENT_DAYS} days"),
    )
    if health.unknown is not None:
        return [*lines, "", *health.warnings, health.unknown]
    for what, shift in (("labels", health.labels), ("confidences", health.confidences)):
        if shift is not None:
            lines += [
                "",
                f"{what}: {shift.drift}, population stability index {shift.index:.3f}",
                *_bars(shift),
            ]
    return [*lines, "", *(health.warnings or ["Recent images are like the evaluation images."])]


def _known_fields(name: str, known: KnownAccuracy | None) -> list[tuple[str, str]]:
    if known is None:
        return []
    low, high = known.interval
    between = f"{known.accuracy:.4f} ({low:.4f} to {high:.4f})"
    return [(name, f"{between}, {known.right:,} right of {pluralize(known.images, 'image')}")]


def _bars(shift: Shift) -> list[str]:
    """Draw two bars per group: its share of the evaluation images, and of the recent images."""
    groups = [printable(group) for group in shift.groups]
    width = max(map(cell_len, groups))
    lines = []
    for group, then, now in zip(groups, shift.expected, shift.actual, strict=True):
        lines.append(f"  {set_cell_size(group, width)}  then {_bar(then / sum(shift.expected))}")
        lines.append(f"  {'':<{width}}  now  {_bar(now / sum(shift.actual))}")
    return lines


def _bar(share: float) -> str:
    return f"{100 * share:5.1f} % {'#' * round(share * _BAR_WIDTH)}".rstrip()
