"""The steps of a compilation, each in a process of its own: `python -m worker.learning.compiling.steps`.

The folder has the model (`model.keras`), what its row says about it (`model.json`), and the images that the
runtimes are compared on (`pixels.npy`).
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jobs.models.model import InputSpec
from jobs.models.runtime import Runtime, RuntimeState
from worker.predicting.classifier import SMALL_BATCH, Classifier

#: The time limit of a step. Keras alone takes 130 s of processor time to answer for ConvNeXtTiny, and a busy
#: machine more than twice as long.
STEP_SECONDS: Final = 900

#: Labels may differ if Keras gives both classes the same probability, within this.
_TIE: Final = 1e-4

#: Maximum difference of a confidence.
_CONFIDENCE: Final = 1e-3

#: Speed is the least of several passes over a full batch, so that a disturbed pass does not count.
_TIMED_PASSES: Final = 3

#: The version of ONNX's operators that is exported.
_OPSET: Final = 18


def measure(folder: Path, runtime: Runtime) -> None:
    """Compare a runtime's answers with Keras's, measure its speed, and write both into a file.

    Keras must be the first runtime, because its answers are kept for the others.
    """
    pixels = np.load(folder / "pixels.npy")
    options = _read_options(folder)
    classifier = _load(folder, runtime, **options)
    classifier.warm_up()
    answers = classifier.probabilities(pixels)
    np.save(folder / f"{runtime}.npy", answers)
    if runtime is Runtime.KERAS:
        result: dict[str, Any] = {"state": RuntimeState.PASSED}
    else:
        result = compare(np.load(folder / f"{Runtime.KERAS}.npy"), answers)
        artefact = (folder / f"model.{runtime.suffix}").read_bytes()
        result |= {"sha256": hashlib.sha256(artefact).hexdigest(), "size_bytes": len(artefact)}
    result |= {
        "images": len(pixels),
        "image_microseconds": _image_microseconds(classifier, pixels, options["threads"]),
        "version": version(runtime.package),
    }
    (folder / f"{runtime}.json").write_text(json.dumps(result))


def compare(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Compare probabilities, float32 (n, classes), with those of Keras. Return the figures and the state."""
    labels, rows = found.argmax(axis=1), np.arange(len(found))
    same = expected[rows, labels] >= expected.max(axis=1) - _TIE
    difference = float(np.abs(expected.max(axis=1) - found.max(axis=1)).max())
    state, reason = RuntimeState.PASSED, None
    if not same.all():
        state, reason = (
            RuntimeState.DIFFERS,
            f"{(~same).sum()} of {len(same)} labels differ from those of Keras",
        )
    elif difference > _CONFIDENCE:
        state, reason = RuntimeState.DIFFERS, f"a confidence differs from that of Keras by {difference:.4f}"
    return {
        "state": state,
        "reason": reason,
        "agreement": float(same.mean()),
        "confidence_difference": difference,
    }


def export(folder: Path, runtime: Runtime) -> None:
    """Export the model as the runtime's file, with the softmax that Keras serves it with."""
    if runtime is Runtime.OPENVINO_INT8:
        _export_int8(folder)
        return
    from worker.predicting.networks.keras_network import KerasNetwork, load_model
    from worker.predicting.tensorflow_runtime import tf

    options = _read_options(folder)
    spec: InputSpec = options["spec"]
    network = KerasNetwork(
        load_model(folder / "model.keras"), options["classes"], spec, logits=options["logits"]
    )
    signature = [tf.TensorSpec((None, *spec.shape), tf.uint8)]
    computation = tf.function(network.compute, input_signature=signature, autograph=False)
    # Imported only now: before `tensorflow_runtime`, it would import Keras with matplotlib.
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    # Frozen here, because tf2onnx makes inputs of some constants, such as those of Normalization.
    frozen = convert_variables_to_constants_v2(computation.get_concrete_function())
    data = _to_tflite(frozen) if runtime.suffix == "tflite" else _to_onnx(frozen)
    (folder / f"model.{runtime.suffix}").write_bytes(data)


def _to_tflite(frozen: Any) -> bytes:
    from worker.predicting.tensorflow_runtime import tf

    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([frozen], frozen).convert())


def _to_onnx(frozen: Any) -> bytes:
    import tf2onnx
    from keras.src.export.tf2onnx_lib import patch_tf2onnx  # for NumPy 2

    patch_tf2onnx()
    exported, _ = tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(),
        input_names=[each.name for each in frozen.inputs],
        output_names=[each.name for each in frozen.outputs],
        opset=_OPSET,
    )
    return bytes(exported.SerializeToString())


def _export_int8(folder: Path) -> None:
    """Quantize the layers to 8 bits, by the range of values that training images give each of them."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    pixels = np.load(folder / "calibration.npy")
    if not len(pixels):
        raise SystemExit("int8 needs training images of the model's dataset, and there are none")
    whole, prepared = folder / f"model.{Runtime.ONNXRUNTIME.suffix}", folder / "prepared.onnx"
    if not whole.exists():
        export(folder, Runtime.ONNXRUNTIME)
    quant_pre_process(whole, prepared, skip_symbolic_shape=True)  # which needs sympy, for transformers

    name = onnx.load(prepared).graph.input[0].name
    inputs = iter([{name: pixels[row : row + 1]} for row in range(len(pixels))])

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            return next(inputs, None)

    quantize_static(
        prepared,
        folder / f"model.{Runtime.OPENVINO_INT8.suffix}",
        Pictures(),
        # With the activations: otherwise, what they cut off would take a part of each range.
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Relu", "Clip"],
        per_channel=True,
        reduce_range=True,  # with all 8 bits, sums overflow on processors without VNNI
    )


def _read_options(folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = json.loads((folder / "model.json").read_text())
    options["spec"] = InputSpec(**options.pop("input_spec"))
    return options


def _load(
    folder: Path, runtime: Runtime, *, classes: list[str], spec: InputSpec, logits: bool, threads: int
) -> Classifier:
    if runtime is Runtime.KERAS:
        from worker.predicting.tensorflow_runtime import set_threads

        set_threads(threads)
        return Classifier.load(folder / "model.keras", classes, spec, logits=logits)
    from worker.predicting.networks.loading import load_network

    data = (folder / f"model.{runtime.suffix}").read_bytes()
    return Classifier(load_network(runtime, data, threads), classes, spec)


def _image_microseconds(classifier: Classifier, pixels: npt.NDArray[np.uint8], threads: int) -> float:
    # One thread is measured by its processor time, because workers may compute alongside.
    clock = time.process_time if threads == 1 else time.perf_counter
    batch = np.resize(pixels, (max(classifier.batch, SMALL_BATCH), *pixels.shape[1:]))
    passes = []
    for _ in range(_TIMED_PASSES):
        started = clock()
        classifier.probabilities(batch)
        passes.append(clock() - started)
    return min(passes) / len(batch) * 1e6


def main(folder: str, step: str, runtime: str) -> None:
    """Run one step. The system ends this process when its time is over, even if its parent has died."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(STEP_SECONDS)
    steps = {"export": export, "measure": measure}
    steps[step](Path(folder), Runtime(runtime))


if __name__ == "__main__":
    main(*sys.argv[1:])
