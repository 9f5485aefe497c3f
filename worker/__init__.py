"""The worker: Celery tasks that classify chunks, and the scheduled retraining of the model."""

import os
import sys
from typing import Any

# Otherwise ONNX Runtime and OpenVINO report each process to their makers, and keep an identifier in the
# home folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
_modules: dict[str, Any] = sys.modules
_modules["openvino_telemetry"] = None  # its import fails, and OpenVINO does without
