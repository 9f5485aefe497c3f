"""`python -m benchmarks.architectures [NAME...]`: which runtimes compute `keras.applications`.

Each network is registered in a home of its own, which compiles it.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer

from benchmarks.harness.known_networks import CLASSES, SPEC, build_network
from benchmarks.harness.producer import in_fresh_process
from benchmarks.harness.report import RESULTS, write_result
from benchmarks.harness.setup import Json, run
from jobs.models.runtime import ModelRuntime, Runtime, RuntimeState
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.console.terminal import say

_NAMES: Final = (
    *("MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0", "EfficientNetV2B0"),
    *("ResNet50", "ResNet50V2", "DenseNet121", "Xception", "InceptionV3", "NASNetMobile", "ConvNeXtTiny"),
)

#: The sides of pictures for networks that do not take 224 by 224.
_SIDES: Final = {"Xception": 299, "InceptionV3": 299}


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: twelve.")] = None,
    json: Json = RESULTS,
) -> None:
    """Register and compile each network, and print a table for Markdown."""
    found = {}
    print(f"| ms per image | {' | '.join(Runtime)} |\n| --- |{' ---: |' * len(Runtime)}")
    for name in names or _NAMES:
        # In a process of its own: TensorFlow keeps the memory of each network.
        runtimes = {each.runtime: each for each in in_fresh_process(_compile, name)}
        found[name] = [asdict(each) for each in runtimes.values()]
        print(f"| {name} | {' | '.join(_cell(runtimes[runtime]) for runtime in Runtime)} |", flush=True)
    if names is None:
        write_result("architectures", {"networks": found}, json)


def _cell(found: ModelRuntime) -> str:
    if found.state is RuntimeState.PASSED:
        return f"{(found.image_microseconds or 0) / 1000:.1f}"
    return f"{found.state}: {found.reason}"


def _compile(name: str) -> list[ModelRuntime]:
    from worker.learning.compiling.compile import make_pictures

    with TemporaryDirectory() as folder, Client(Settings(home=Path(folder) / "home")) as client:
        file = Path(folder) / f"{name}.keras"
        side = _SIDES.get(name, SPEC.width)
        build_network(name, make_pictures(replace(SPEC, width=side, height=side))).save(file)
        model = client.register(file, classes=CLASSES, logits=True, on_message=say).model
        return client.runtimes(model.id)


if __name__ == "__main__":
    run(main)
