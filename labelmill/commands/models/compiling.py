"""`labelmill models compile`: find out which runtime computes a model quickest."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from jobs.models.runtime import ModelRuntime, Runtime
from labelmill.client import Client
from labelmill.commands.options import AliasOfOption, AsJsonList
from labelmill.console.tables import Column, print_rows
from labelmill.console.terminal import examples, report_errors, say

app = typer.Typer(add_completion=False)

RuntimesOption = Annotated[
    list[Runtime] | None,
    typer.Option(
        "--runtime",
        help="A runtime to try beside Keras; repeatable. With `keras` alone, workers use Keras.",
    ),
]


def _figure(value: float | None, text: str) -> str:
    return "-" if value is None else format(value, text)


def milliseconds(runtime: ModelRuntime) -> str:
    """Return the time per image, in milliseconds."""
    return "-" if runtime.image_microseconds is None else f"{runtime.image_microseconds / 1000:.2f}"


_COLUMNS: Final = (
    Column("runtime", lambda each: each.runtime),
    Column("state", lambda each: each.state),
    Column("ms per image", milliseconds, right=True),
    Column("threads", lambda each: f"{each.threads}", right=True, leave_out=2),
    Column("same label", lambda each: _figure(each.agreement, ".4f"), right=True),
    Column(
        "confidence differs by",
        lambda each: _figure(each.confidence_difference, ".1e"),
        right=True,
        leave_out=1,
    ),
    Column("version", lambda each: each.version or "-", leave_out=3),
    Column("reason", lambda each: each.reason or "-", min_width=12),
)


@app.command(
    "compile",
    epilog=examples(
        "labelmill models compile 06h0w4r0rf0dkckt",
        "labelmill models compile 06h0w4r0rf0dkckt --runtime keras",
        "labelmill models compile 06h0w4r0rf0dkckt --runtime openvino --runtime openvino-bf16",
    ),
)
@report_errors
def compile_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id, or an alias.")],
    dataset: AliasOfOption = None,
    runtimes: RuntimesOption = None,
    as_json: AsJsonList = False,
) -> None:
    """Find out which runtime computes a model quickest. Workers then use it.

    The model is exported for ONNX Runtime, OpenVINO and LiteRT. A runtime passes if its labels are those of
    Keras and its confidences differ by at most 0.001, on images of the model's dataset and on made-up ones.
    The speed is measured with as many threads as a process of a worker has. If no other runtime passes,
    Keras is used.

    `openvino-bf16` and `openvino-int8` compute with less precision, and are tried only if you name them.
    They pass if the gate would let them: on up to 2,000 test images of the model's dataset, they keep its
    limits and are not worse than Keras by more than its margin. The reason says how many labels change.

    Networks that take more than two milliseconds per image are compiled when they are registered or
    trained. A worker that has loaded another runtime keeps it until it restarts. Needs TensorFlow.
    """
    with Client() as client:
        found = client.model(model, dataset=dataset)
        say(f"trying which runtime is the quickest for model {found.id}: this takes a minute")
        tried = client.compile_model(found.id, runtimes=runtimes or ())
    print_rows(_COLUMNS, tried, as_json=as_json)
