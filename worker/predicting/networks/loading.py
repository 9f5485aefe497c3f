"""Load a network for a runtime other than Keras, from the file that a compilation made."""

from __future__ import annotations

from jobs.models.runtime import Runtime
from worker.predicting.networks.network import Network


def load_network(runtime: Runtime, data: bytes, threads: int) -> Network:
    """Load a network that computes with this many threads. The caller has checked the SHA-256 of `data`.

    Raises ImportError if the runtime is not installed, and the runtime's own errors.
    """
    if runtime.package == "openvino":
        from worker.predicting.networks.openvino_network import OpenVinoNetwork

        return OpenVinoNetwork(data, threads, precision="bf16" if runtime is Runtime.OPENVINO_BF16 else "f32")
    if runtime is Runtime.LITERT:
        from worker.predicting.networks.litert_network import LiteRtNetwork

        return LiteRtNetwork(data, threads)
    from worker.predicting.networks.onnx_network import OnnxNetwork

    return OnnxNetwork(data, threads)
