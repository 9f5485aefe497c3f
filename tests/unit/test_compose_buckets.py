"""compose.s3.yaml gives buckets to every service that needs them, and shows no key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
import yaml

PROJECT: Final = Path(__file__).parents[2]
BASE: Final[dict[str, Any]] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
BUCKETS: Final[dict[str, Any]] = yaml.safe_load((PROJECT / "compose.s3.yaml").read_text())


def test_the_same_services_as_in_kubernetes_get_buckets() -> None:
    component = PROJECT / "deploy/kubernetes/components/object-store/kustomization.yaml"
    [target] = [
        patch["target"]["name"]
        for patch in yaml.safe_load(component.read_text())["patches"]
        if patch["path"] == "store.yaml"
    ]
    assert set(BUCKETS["services"]) == set(target.split("|")) <= set(BASE["services"])


@pytest.mark.parametrize("name", BUCKETS["services"])
def test_a_service_with_buckets_has_keys_and_a_way_out(name: str) -> None:
    service = BUCKETS["services"][name]
    assert service["environment"]["AWS_CONFIG_FILE"] == "/run/secrets/aws_config"
    assert service["secrets"] == ["aws_config"]
    assert [
        network for network in service["networks"] if not (BASE["networks"][network] or {}).get("internal")
    ]
    default = BASE["services"][name]["environment"]["LABELMILL_STORE_URL"]
    assert service["environment"]["LABELMILL_STORE_URL"] == f"${{LABELMILL_STORE_URL:-{default}}}"
    # The keys themselves come from the file.
    shown = {variable for variable in service["environment"] if variable.startswith("AWS_")}
    assert shown == {"AWS_CONFIG_FILE"}


def test_the_keys_are_a_file_that_git_ignores() -> None:
    assert BUCKETS["secrets"] == {"aws_config": {"file": "./secrets/aws_config"}}
    assert "secrets/" in (PROJECT / ".gitignore").read_text().splitlines()
