"""`python -m benchmarks.networks`: known networks on photographs, beside the best bare loop, in turns.

The bare loop first tries each runtime with several batches, processes and threads on a part of the images,
and then takes the quickest. `benchmarks` measures our own small networks.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.bare_loop import BareLoop, Way, plans
from benchmarks.efficiency import measure
from benchmarks.harness.databases import Work
from benchmarks.harness.images import Pictures
from benchmarks.harness.known_networks import compile_champion, known_network
from benchmarks.harness.report import RESULTS, write_result
from benchmarks.harness.setup import PROCESSES, Json, Setup, WorkDir, kept_folder, prepare, run
from jobs.models.runtime import Runtime
from jobs.storage.artefacts import fetch_artefact
from jobs.storage.store import Store
from labelmill.console.terminal import say

NETWORKS: Final = ("MobileNetV2", "EfficientNetB0", "ResNet50")

#: The bare loop is raised on every tenth image.
_PART: Final = 10

#: How the bare loop may compute, with each runtime: a process per core, one more, and one for all cores,
#: which decodes in threads.
_WAYS: Final = tuple(
    Way(runtime, batch, processes, threads, decoders)
    for runtime in (Runtime.ONNXRUNTIME, Runtime.OPENVINO, Runtime.LITERT)
    for processes, threads, decoders in (
        (PROCESSES, 1, 0),
        (PROCESSES + 1, 1, 0),
        (1, PROCESSES, PROCESSES),
    )
    for batch in (1, 4, 16)
)


def main(
    networks: Annotated[list[str] | None, typer.Argument(help="Names in keras.applications.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How many pairs count; one more comes first.")] = 3,
    images: Annotated[int, typer.Option(min=100, help="How many photographs.")] = 1_000,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Measure images per second from JPEG files to rows in PostgreSQL, beside the best bare loop."""
    found = {name: _measure(name, work_dir, images, rounds) for name in networks or NETWORKS}
    write_result("networks", {"work": "networks", "networks": found}, json)


def _measure(name: str, work_dir: Path | None, images: int, rounds: int) -> dict[str, Any]:
    pictures = Pictures.PHOTOGRAPHS
    with prepare(work_dir, images=images, pictures=pictures) as setup:
        setup = replace(setup, model=known_network(name, setup.folder, kept_folder(work_dir)))
        table = _compile(setup)
        say(f"{name}: {table}")
        way = _best_way(setup)
        say(f"{name}: the best bare loop: {way}")
        result = measure(
            setup, work=Work.POSTGRESQL, pictures=pictures, images=images, rounds=rounds, way=way
        )
    result.print()
    return result.to_json() | {"runtimes_ms": table, "bare_loop": asdict(way)}


def _compile(setup: Setup) -> dict[str, float]:
    """Compile the model, and give the bare loop its artefacts. Return the milliseconds by runtime."""
    runtimes = compile_champion(setup)
    store = Store(setup.settings.store)
    for each in runtimes:
        if each.reason:
            say(f"{each.runtime}: {each.state}: {each.reason}")
        if each.sha256:
            path = fetch_artefact(store, each, setup.settings.cache_dir)
            shutil.copyfile(path, setup.model.path.with_suffix(f".{each.runtime.suffix}"))
    return {each.runtime: round((each.image_microseconds or 0) / 1000, 2) for each in runtimes}


def _best_way(setup: Setup) -> Way:
    part = setup.home / "part"
    for path in islice(sorted(setup.folder.rglob("*.jpg")), 0, None, _PART):
        link = part / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
    seconds: dict[Way, float] = {}
    for way in _WAYS:
        with BareLoop(plans(setup.databases.other, setup.model, PROCESSES, way)) as loop:
            seconds[way] = min(loop.classify(part).seconds for _ in range(2))
        say(f"{way}: {seconds[way]:.2f} s")
    return min(seconds, key=lambda way: seconds[way])


if __name__ == "__main__":
    run(main)
