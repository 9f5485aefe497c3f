"""A runtime that can compute a model: whether its answers are those of Keras, and how quick it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import Final

#: A network that takes less time per image, in microseconds, is compiled only if a person asks for it. Up to
#: this, decoding takes about as long, and other runtimes save a fifth of the network's time (`cnn`, 64x64).
MIN_IMAGE_MICROSECONDS: Final = 2000.0


class Runtime(StrEnum):
    """What computes a model. Keras is the reference, and always there."""

    KERAS = "keras"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    LITERT = "litert"
    OPENVINO_BF16 = "openvino-bf16"
    OPENVINO_INT8 = "openvino-int8"

    @property
    def is_exact(self) -> bool:
        """Return whether it computes with the precision of Keras, so that it must give the same answers."""
        return self not in (Runtime.OPENVINO_BF16, Runtime.OPENVINO_INT8)

    @property
    def package(self) -> str:
        """Return the name of the package to import, which for Keras is what computes it."""
        packages = {Runtime.KERAS: "tensorflow", Runtime.LITERT: "ai_edge_litert"}
        return packages.get(self, self.value.partition("-")[0])

    @property
    def suffix(self) -> str:
        """Return the suffix of the file that it runs, which says the file's format."""
        suffixes = {Runtime.KERAS: "keras", Runtime.LITERT: "tflite", Runtime.OPENVINO_INT8: "int8.onnx"}
        return suffixes.get(self, "onnx")


#: The runtimes that are tried unless a person names others.
EXACT_RUNTIMES: Final = tuple(each for each in Runtime if each.is_exact)


def installed_runtimes() -> list[Runtime]:
    """Return the runtimes that can compute a model here."""
    return [each for each in Runtime if find_spec(each.package) is not None]


class RuntimeState(StrEnum):
    """Whether workers may use a runtime for a model."""

    PASSED = "passed"  # its answers are those of Keras, or good enough for the gate if it is not exact
    DIFFERS = "differs"
    FAILED = "failed"  # it is not installed, the model cannot be exported to it, or does not run on it


@dataclass(frozen=True, slots=True)
class ModelRuntime:
    """One runtime of a model: one row of the ledger."""

    runtime: Runtime
    state: RuntimeState
    threads: int  # with which its speed was measured
    images: int  # on which it was compared with Keras
    reason: str | None = None  # why it differs or failed; what changes if it is not exact
    image_microseconds: float | None = None
    agreement: float | None = None  # share of the images with the same label
    confidence_difference: float | None = None  # the largest
    version: str | None = None
    sha256: str | None = None  # of the file that it runs; None for Keras
    size_bytes: int | None = None
