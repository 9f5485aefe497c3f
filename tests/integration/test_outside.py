"""A stack writes only into its state folder, and connects only to its own broker."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs.models.model import MNIST_INPUT
from jobs.models.runtime import Runtime
from jobs.settings import ENV_PREFIX, Settings
from jobs.storage.store import Store
from labelmill import Client
from tests.console import COMMAND_SECONDS, LABELMILL
from tests.harness import digits
from tests.registering import register_digits

#: Python runs this at the start of each process. It notes connections and look-ups, and imports of
#: TensorFlow, which prove that the worker's child is observed too.
HOOK = """\
import json, os, sys

_EVENTS = {
    "socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1,
    "socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0, "socket.getnameinfo": 0,
    "import": 0,
}


def _note(event, arguments):
    if event in _EVENTS and (event != "import" or arguments[0] == "tensorflow"):
        said = [event, str(arguments[_EVENTS[event]]), os.getpid()]
        with open(os.environ["NOTED_IN"], "ab", buffering=0) as file:
            file.write(json.dumps(said).encode() + b"\\n")


sys.addaudithook(_note)
"""


@functools.cache
def without_a_network() -> list[str]:
    """Return a command prefix that removes the network, or [] if that is not permitted.

    The hook does not see connections made by libraries in C.
    """
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--net", "true"], timeout=60, check=False).returncode:
        return []
    return [unshare, "--net"]


@pytest.mark.slow
def test_a_stack_writes_into_its_home_alone_and_reaches_nobody_else(
    short_folder: Path, model_file: bytes, tmp_path: Path
) -> None:
    # Given a home with a real model, and empty folders elsewhere
    home = short_folder / "home"
    with Client(Settings.load(home=home)) as client:
        register_digits(client.ledger, Store(client.settings.store), model_file, champion=True)
    image = tmp_path / "digit.png"
    image.write_bytes(digits(8)[7])
    others = [tmp_path / name for name in ("persons_home", "temporary", "here")]
    for folder in others:
        folder.mkdir()
    hook, noted_in = tmp_path / "hook", tmp_path / "noted.jsonl"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)

    # When a stack starts, loads TensorFlow, and classifies
    done = subprocess.run(
        [*without_a_network(), LABELMILL, "classify", str(image), "--json"],
        cwd=others[2],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "NOTED_IN": str(noted_in),
            "HOME": str(others[0]),
            "TMPDIR": str(others[1]),
            ENV_PREFIX + "HOME": str(home),
            ENV_PREFIX + "PROCESSES": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] in tuple("0123456789")

    # Then those folders are still empty, except for a temporary folder of Celery's pool, which a killed
    # worker leaves behind.
    left = [path for folder in others for path in folder.rglob("*")]
    assert [path for path in left if path.parent != others[1] or not path.name.startswith("pymp-")] == []

    # And the only connections are to the broker's socket
    noted: list[tuple[str, str, int]] = [json.loads(line) for line in noted_in.read_text().splitlines()]
    asked = [each for each in noted if each[0] != "import"]
    broker = str(Settings.load(home=home).broker_socket)
    assert {(event, whom) for event, whom, _ in asked} == {("socket.connect", broker)}
    # by the command and the worker; the child, which imported TensorFlow, connected to nothing.
    [child] = {pid for event, _, pid in noted if event == "import"}
    assert child not in {pid for _, _, pid in asked}
    assert len({pid for _, _, pid in asked}) == 2


#: Computes something with a runtime, without a test's environment: in CI, runtimes do not report themselves.
_COMPUTES = """
import sys
import numpy as np
from jobs.models.runtime import Runtime
from tests.onnxfile import onnx_file
from worker.predicting.networks.loading import load_network

network = load_network(Runtime(sys.argv[1]), onnx_file(), 1)
print(network.run(np.ones((2, 4), np.float32)).sum())
"""


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtime_keeps_no_identifier_of_its_user(runtime: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*without_a_network(), sys.executable, "-c", _COMPUTES, runtime],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=True,
    )
    assert done.stdout == "8.0\n"
    # It makes one before it reports anything.
    assert list(tmp_path.rglob("*")) == []


def test_an_export_writes_nothing_into_the_home_folder(model_file: bytes, tmp_path: Path) -> None:
    # Given a model to export, and an empty home folder
    folder, home = tmp_path / "compiling", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "model.keras").write_bytes(model_file)
    options = {"classes": [*"0123456789"], "input_spec": asdict(MNIST_INPUT), "logits": False, "threads": 1}
    (folder / "model.json").write_text(json.dumps(options))
    # When it is exported
    subprocess.run(
        [sys.executable, "-m", "worker.learning.compiling.steps", folder, "export", Runtime.LITERT],
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        timeout=COMMAND_SECONDS,
        check=True,
    )
    # Then matplotlib, which Keras imports where it is installed, has written no font cache
    assert (folder / "model.tflite").exists()
    assert list(home.rglob("*")) == []
