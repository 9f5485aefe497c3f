"""What OpenVINO does to the process that it computes in."""

from __future__ import annotations

from tests.programs import run_python

#: Drops a network in another thread than the one that loaded it, and is then sent a signal.
_DROPS_ITS_NETWORK = """
import signal, threading
import numpy as np
from tests.onnxfile import onnx_file
from worker.predicting.networks.openvino_network import OpenVinoNetwork

held = [OpenVinoNetwork(onnx_file(), threads=1)]
print(held[0].run(np.ones((2, 4), np.float32)).shape)
dropping = threading.Thread(target=held.clear)
dropping.start()
dropping.join()
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_network_that_another_thread_drops_leaves_the_process_able_to_hear_signals() -> None:
    assert run_python(_DROPS_ITS_NETWORK).stdout.split("\n") == ["(2, 4)", "heard", ""]
