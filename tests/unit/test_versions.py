"""Every file that names Labelmill's version names the same one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[2]

#: What names the version: its pattern in each file, and how often it is there.
NAMED: Final = {
    "docker-compose.yml": (r"image: labelmill-[a-z]+:(.+)", 3),
    "compose.gpu.yaml": (r"image: labelmill-worker-gpu:(.+)", 1),
    "compose.slim.yaml": (r"image: labelmill-worker-slim:(.+)", 1),
    "Dockerfile": (r"org\.opencontainers\.image\.version=(\S+)", 1),
    "deploy/kubernetes/base/kustomization.yaml": (r"newTag: (.+)", 3),
    "deploy/kubernetes/components/gpu/kustomization.yaml": (r"newTag: (.+)", 1),
    "deploy/kubernetes/components/slim/kustomization.yaml": (r"newTag: (.+)", 1),
    "docs/how-to/kubernetes.md": (r"labelmill-[a-z]+:(\S+)", 7),
}


def test_all_files_name_the_same_version() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    for name, (pattern, count) in NAMED.items():
        assert re.findall(pattern, (PROJECT / name).read_text()) == [version] * count, name
