"""Check the files in deploy/kubernetes, rendered by kustomize as kubectl does it; no cluster is needed.

They must match Kubernetes' schemas, the code, docker-compose.yml and docs/how-to/kubernetes.md.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from jobs.settings import ENV_PREFIX, Settings, known_variables
from labelmill.cli import load_command
from labelmill.operations.metric_families import METRICS, PREFIX
from tests.programs import need_program

PROJECT: Final = Path(__file__).parents[2]
KUBERNETES: Final = PROJECT / "deploy" / "kubernetes"
MONITORING: Final = PROJECT / "deploy" / "monitoring"
COMPOSE: Final = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())

#: The components that users add themselves; each of the others is a part of an overlay.
WANTED: Final = ("gpu", "ingress", "keda", "prometheus")

#: The one that replaces `gpu`.
SLIM: Final = "slim"

#: Each overlay with no component, and with all that go together.
INSTALLATIONS: Final = [
    *product(("local", "production"), [(), WANTED]),
    ("production", (SLIM, "keda")),
]

#: The oldest Kubernetes that docs/how-to/kubernetes.md promises, and the newest with a schema.
VERSIONS: Final = ("1.31", kubernetes_validate.latest_version())

#: The dashboard's ConfigMap. A name with a hash would leave the dashboard of an earlier version behind.
DASHBOARD: Final = "labelmill-dashboard"

#: The measured memory of a worker process on MNIST, and without TensorFlow on MobileNetV2.
PROCESS_BYTES: Final = 650 * 2**20
SLIM_PROCESS_BYTES: Final = 250 * 2**20

#: Custom resources, whose schemas are not among Kubernetes' own.
CUSTOM: Final = ("PrometheusRule", "ScaledObject", "ServiceMonitor")

Object = dict[str, Any]

# ---- rendering ----------------------------------------------------------------------------------------


def render(overlay: str, components: tuple[str, ...], folder: Path) -> list[Object]:
    """Return all objects of an installation, made by a kustomization as docs/how-to/kubernetes.md shows."""
    above = _way_to_ours(folder)
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [f"{above}/overlays/{overlay}"],
                "components": [f"{above}/components/{name}" for name in components],
            }
        )
    )
    return build(folder)


def _way_to_ours(folder: Path) -> str:
    # kustomize accepts no absolute path.
    return os.path.relpath(KUBERNETES.resolve(), folder.resolve())


def build(folder: Path) -> list[Object]:
    """Return the objects that kustomize makes of the kustomization in a folder."""
    kustomize = need_program("kustomize", package="kustomize")
    done = subprocess.run(
        [kustomize, "build", str(folder)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # no warnings about deprecated fields
    return [each for each in yaml.safe_load_all(done.stdout) if each]


@pytest.fixture(scope="module", params=INSTALLATIONS, ids=lambda made: "+".join((made[0], *made[1])))
def installation(request: pytest.FixtureRequest) -> tuple[str, tuple[str, ...]]:
    """Return an overlay's name, and the components added to it."""
    made: tuple[str, tuple[str, ...]] = request.param
    return made


@pytest.fixture(scope="module")
def objects(
    installation: tuple[str, tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory
) -> list[Object]:
    """Return all objects of an installation."""
    return render(*installation, tmp_path_factory.mktemp("installation"))


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str) -> Object:
    [found] = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def settings_map(objects: list[Object]) -> Object:
    """Return the ConfigMap of the settings; the other one is the dashboard."""
    [found] = [each for each in of_kind(objects, "ConfigMap") if each["metadata"]["name"] != DASHBOARD]
    return found


def workloads(objects: list[Object]) -> dict[str, Object]:
    """Return the pod template of each Deployment, StatefulSet and Job, by name."""
    found = of_kind(objects, "Deployment", "StatefulSet", "Job")
    return {each["metadata"]["name"]: each["spec"]["template"] for each in found}


def ours(objects: list[Object]) -> dict[str, Object]:
    """Return the workloads that run our own images."""
    return {
        name: pod
        for name, pod in workloads(objects).items()
        if pod["spec"]["containers"][0]["image"].startswith("labelmill-")
    }


def containers(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Yield each container with its pod's spec, including init containers."""
    for pod in workloads(objects).values():
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            yield pod["spec"], container


def environment(objects: list[Object], container: Object) -> dict[str, str]:
    """Return a container's settings: its own, and those of its ConfigMaps."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if reference := source.get("configMapRef"):
            found |= named(objects, "ConfigMap", reference["name"])["data"]
    return found | {each["name"]: each.get("value", "") for each in container.get("env", [])}


def quantity(text: str | int) -> float:
    """Kubernetes' numbers: cores, or bytes."""
    number, unit = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * {"": 1, "m": 0.001, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]


def texts(value: object) -> Iterator[str]:
    """Yield every text in an object."""
    if isinstance(value, dict):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str):
        yield value


# ---- schemas ------------------------------------------------------------------------------------------


def test_every_object_is_one_that_kubernetes_takes(objects: list[Object]) -> None:
    for each, version in product(objects, VERSIONS):
        if each["kind"] not in CUSTOM:
            _validate(json.dumps(each, sort_keys=True), version)


@cache
def _validate(written: str, version: str) -> None:
    """Validate an object; cached, because installations share most objects, and a schema loads slowly."""
    # Strict: a mistyped field is an error, while Kubernetes would silently drop it.
    kubernetes_validate.validate(json.loads(written), version, strict=True)


# ---- what a container may do --------------------------------------------------------------------------


def test_no_container_may_do_more_than_it_has_to(objects: list[Object]) -> None:
    [namespace] = of_kind(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod, container in containers(objects):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not any("hostPath" in volume for volume in pod["volumes"])


def test_the_user_and_the_written_folders_are_those_of_the_image(objects: list[Object]) -> None:
    dockerfile = (PROJECT / "Dockerfile").read_text()
    [user] = re.findall(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE)
    for pod in ours(objects).values():
        assert pod["spec"]["securityContext"]["runAsUser"] == int(user)
        assert pod["spec"]["securityContext"]["fsGroup"] == int(user)  # to read the secrets
        empty = {volume["name"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume}
        [container] = pod["spec"]["containers"]
        home = environment(objects, container)[f"{ENV_PREFIX}HOME"]
        cache = str(Settings(home=Path(home)).cache_dir)
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {mounts[cache], mounts["/tmp"]} <= empty


def test_a_worker_has_a_process_a_core_and_room_for_the_largest_image_in_one(
    installation: tuple[str, tuple[str, ...]], objects: list[Object]
) -> None:
    process = SLIM_PROCESS_BYTES if SLIM in installation[1] else PROCESS_BYTES
    [container] = workloads(objects)["worker"]["spec"]["containers"]
    [processes] = [each for each in container["env"] if each["name"] == f"{ENV_PREFIX}PROCESSES"]
    limits = container["resources"]["limits"]
    if "nvidia.com/gpu" in limits:
        assert processes == {"name": f"{ENV_PREFIX}PROCESSES", "value": "1"}
        assert quantity(limits["nvidia.com/gpu"]) == 1
        count = 1.0
    else:
        # The default would be a process per core of the node, which may have far more than the limit.
        assert processes["valueFrom"]["resourceFieldRef"] == {
            "containerName": container["name"],
            "resource": "limits.cpu",
        }
        count = quantity(limits["cpu"])
    # docs/reference/settings.md: up to 20 bytes per pixel for a moment.
    largest = Settings().max_image_pixels * 20
    assert count * process + largest <= quantity(limits["memory"])
    assert count * process <= quantity(container["resources"]["requests"]["memory"])


# ---- when it starts and stops -------------------------------------------------------------------------


def test_a_worker_that_is_told_to_stop_has_time_for_its_chunk(
    objects: list[Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = workloads(objects)["worker"]["spec"]
    [container] = pod["containers"]
    lease = environment(objects, container)[f"{ENV_PREFIX}LEASE_SECONDS"]
    monkeypatch.setenv(f"{ENV_PREFIX}LEASE_SECONDS", lease)
    settings = Settings.load()
    # Five seconds for the processes to end. After the visibility timeout, another worker has the message.
    assert settings.time_limit + 5 <= pod["terminationGracePeriodSeconds"] < settings.visibility_timeout


def test_all_have_the_same_settings_and_they_are_sound(
    objects: list[Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = settings_map(objects)
    for name, value in shared["data"].items():
        monkeypatch.setenv(name, value)
    Settings.load()
    for pod in ours(objects).values():
        [container] = pod["spec"]["containers"]
        assert {"configMapRef": {"name": shared["metadata"]["name"]}} in container["envFrom"]


def test_only_what_a_restart_mends_restarts_a_process(objects: list[Object]) -> None:
    for name, pod in ours(objects).items():
        [container] = pod["spec"]["containers"]
        assert "livenessProbe" in container or name in ("migrate", "producer")
        for kind in {"startupProbe", "livenessProbe"} & container.keys():
            command = container[kind].get("exec", {}).get("command")
            assert command in (None, ["labelmill", "ready", name, "--alive"])
            # Python starts in a second, or in several seconds if all cores are busy.
            assert command is None or container[kind]["timeoutSeconds"] >= 10


def test_nobody_starts_before_the_migration(objects: list[Object]) -> None:
    for name, pod in ours(objects).items():
        first = [each["name"] for each in pod["spec"].get("initContainers", [])]
        assert first == ([] if name == "migrate" else ["wait"]), name


# ---- agreement with Compose and the code --------------------------------------------------------------


def test_images_and_commands_are_those_of_the_compose_file(
    installation: tuple[str, tuple[str, ...]], objects: list[Object]
) -> None:
    _, components = installation
    there = ours(objects)
    services = {
        name: service
        for name, service in COMPOSE["services"].items()
        if service.get("image", "").startswith("labelmill-") and "profiles" not in service
    }
    assert set(services) <= set(there)
    for name, service in services.items():
        [container] = there[name]["spec"]["containers"]
        variant = ""
        if name == "worker":
            variant = next((f"-{each}" for each in ("gpu", SLIM) if each in components), "")
        assert container["image"] == service["image"].replace(":", f"{variant}:"), name
        if name != "trainer":  # in compose, it waits for the migration itself; here an init container does
            assert container.get("command") == service.get("entrypoint"), name
        assert container.get("args") == service["command"], name
    for name in set(workloads(objects)) - set(there):
        [container] = workloads(objects)[name]["spec"]["containers"]
        assert container["image"] == COMPOSE["services"][name]["image"]


def test_every_setting_that_is_named_exists(objects: list[Object]) -> None:
    for _, container in containers(objects):
        for name in environment(objects, container):
            assert name in known_variables() or not name.startswith(ENV_PREFIX), name


def command_lines(container: Object) -> Iterator[list[str]]:
    """Yield all that Kubernetes runs in a container: its process, its probes, and its lifecycle's hooks."""
    yield container.get("command", ["labelmill"]) + container.get("args", [])
    handlers = [each for kind, each in container.items() if kind.endswith("Probe")]
    for handler in [*handlers, *container.get("lifecycle", {}).values()]:
        if "exec" in handler:
            yield handler["exec"]["command"]


def _typed(objects: list[Object]) -> Iterator[list[str]]:
    """Yield every command line of ours that runs in a pod, without `labelmill`."""
    for _, container in containers(objects):
        if not container["image"].startswith("labelmill-"):
            continue
        for line in command_lines(container):
            if line[0] == "labelmill":
                yield line[1:]
            elif line[:2] == ["sh", "-c"]:
                yield from (shlex.split(found) for found in re.findall(r"\blabelmill ([\w -]+)", line[2]))


def test_every_command_exists_and_takes_these_options(objects: list[Object]) -> None:
    lines = list(_typed(objects))
    assert ["jobs", "--limit", "1"] in lines
    for name, *options in lines:
        command = load_command(name)
        if subcommands := getattr(command, "commands", None):
            command = subcommands[options.pop(0)]
        command.make_context(name, options)  # raises if an option does not exist


# ---- secrets ------------------------------------------------------------------------------------------


def test_no_secret_is_here(objects: list[Object]) -> None:
    assert not of_kind(objects, "Secret")
    for text in texts(objects):
        assert not re.search(r"://[^/\s]*@", text), "a URL with a password"
    for _, container in containers(objects):
        for each in container.get("env", []):
            if re.search(r"PASSWORD|SECRET|KEY|TOKEN|(LEDGER|BROKER)_URL", each["name"]):
                # Not even in the environment, which everybody can see who may list pods.
                assert each["name"].endswith("_FILE"), each["name"]
                assert any(
                    each["value"].startswith(f"{mount['mountPath']}/") for mount in container["volumeMounts"]
                )


def test_no_password_is_on_a_command_line(objects: list[Object], tmp_path: Path) -> None:
    # Given the files of all secrets, and programs that record their arguments and what they read
    programs, secrets = tmp_path / "programs", tmp_path / "secrets"
    arguments, read = tmp_path / "arguments", tmp_path / "read"
    for folder in (programs, secrets):
        folder.mkdir()
    for name in ("cat", "grep", "labelmill", "redis-cli", "redis-server"):
        record = f'printf "%s\\n" "$@" >>{arguments}'
        then = 'exec /bin/cat "$@"' if name == "cat" else f"/bin/cat >>{read}"
        (programs / name).write_text(f"#!/bin/sh\n{record}\n{then}\n")
        (programs / name).chmod(0o755)
    for pod in workloads(objects).values():
        for _, key in _secret_keys(pod):
            (secrets / key).write_text("pass-word")

    # When every shell script runs
    scripts = set()
    for _, container in containers(objects):
        for line in command_lines(container):
            # Kubernetes would replace this with the variable's value, which may be a password.
            assert not re.search(r"\$\(\w+\)", " ".join(line)), line
            if line[0] == "sh":
                scripts.add(re.sub(r"/run/secrets/\w+", str(secrets), line[2]))
    for script in scripts:
        subprocess.run(
            ["/bin/sh", "-euc", script],
            env={"PATH": str(programs)},
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=30,
        )

    # Then no program got a password as an argument, and Redis got its own in another way
    assert "pass-word" not in arguments.read_text()
    assert ("requirepass pass-word" in read.read_text()) is bool(of_kind(objects, "StatefulSet"))


def _secret_keys(pod: Object) -> set[tuple[str, str]]:
    """Return the secrets and keys that a pod needs."""
    found = set()
    for volume in pod["spec"]["volumes"]:
        secrets = [each["secret"] for each in volume.get("projected", {}).get("sources", [])]
        for secret in [*secrets, *([volume["secret"]] if "secret" in volume else [])]:
            name = secret.get("secretName") or secret["name"]
            found |= {(name, item["key"]) for item in secret["items"]}
    return found


def test_every_file_that_is_named_is_a_key_of_a_secret(objects: list[Object]) -> None:
    for pod in workloads(objects).values():
        keys = {key for _, key in _secret_keys(pod)}
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            files = [each["value"] for each in container.get("env", []) if each["name"].endswith("_FILE")]
            assert {Path(file).name for file in files} <= keys


def test_who_needs_less_gets_less(installation: tuple[str, tuple[str, ...]], objects: list[Object]) -> None:
    overlay, _ = installation
    owner, reader = (
        ("labelmill-owner", "labelmill-reader") if overlay == "production" else ("labelmill", "labelmill")
    )
    urls = {("labelmill", "ledger-url"), ("labelmill", "broker-url")}
    everything = urls | ({("labelmill", "store-url")} if overlay == "production" else set())
    assert {name: _secret_keys(pod) for name, pod in ours(objects).items()} == {
        "migrate": {(owner, "ledger-url")},
        "metrics": {(reader, "ledger-url"), ("labelmill", "broker-url")},
        "webhooks": urls,
        "beat": everything,
        "worker": everything,
        "trainer": everything,
        "api": everything,
        "producer": everything,
    }


# ---- selectors and network policies -------------------------------------------------------------------


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Tell whether a label selector matches these labels."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In"
        if labels.get(each["key"]) not in each["values"]:
            return False
    return True


def pods_of(objects: list[Object], selector: Object) -> dict[str, Object]:
    return {
        name: pod for name, pod in workloads(objects).items() if selects(selector, pod["metadata"]["labels"])
    }


def test_every_selector_finds_its_pod(objects: list[Object]) -> None:
    for each in of_kind(objects, "Deployment", "StatefulSet", "PodDisruptionBudget"):
        assert set(pods_of(objects, each["spec"]["selector"])) == {each["metadata"]["name"]}
    for service in of_kind(objects, "Service"):
        [(name, pod)] = pods_of(objects, {"matchLabels": service["spec"]["selector"]}).items()
        assert name == service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            assert port["port"] == _ports(pod)[port["targetPort"]]


def _ports(pod: Object) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
    }


def reachable(objects: list[Object], name: str, direction: str) -> set[tuple[str, str | int]]:
    """Return the other ends that policies allow to a pod, each with the port.

    An end is a pod of this namespace, another namespace, or `outside`.
    """
    labels = workloads(objects)[name]["metadata"]["labels"]
    found: set[tuple[str, str | int]] = set()
    for policy in of_kind(objects, "NetworkPolicy"):
        if not selects(policy["spec"]["podSelector"], labels):
            continue
        for rule in policy["spec"].get(direction, []):
            peers = rule.get("to" if direction == "egress" else "from", [{}])
            for port, peer in product(rule["ports"], peers):
                if "namespaceSelector" in peer:
                    ends = set(peer["namespaceSelector"]["matchLabels"].values())
                elif "podSelector" in peer:
                    ends = set(pods_of(objects, peer["podSelector"]))
                else:
                    ends = {"outside"}
                found |= {(end, port["port"]) for end in ends}
    return found


def test_each_reaches_what_it_has_a_url_of_and_nothing_else(
    installation: tuple[str, tuple[str, ...]], objects: list[Object]
) -> None:
    overlay, components = installation
    assert named(objects, "NetworkPolicy", "deny")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    names = {("kube-system", 53)}
    if overlay == "local":
        ledger, broker, store = {("db", "postgresql")}, {("redis", "redis")}, set()
    else:
        ledger, broker = {("outside", 5432)}, {("outside", 6379), ("outside", 6380)}
        store = {("outside", 443)}
    ways = {"ledger-url": ledger, "broker-url": broker, "store-url": store}
    internet = {("outside", 80), ("outside", 443)}
    keys = {name: {key for _, key in _secret_keys(pod)} for name, pod in ours(objects).items()}
    for name, urls in keys.items():
        allowed = names.union(*(ways[key] for key in urls))
        allowed |= internet if name in ("trainer", "webhooks", "api") else set()
        assert reachable(objects, name, "egress") == allowed, name
    entered = {name: reachable(objects, name, "ingress") for name in workloads(objects)}
    if overlay == "local":
        assert entered.pop("db") == {(name, "postgresql") for name in keys}
        assert entered.pop("redis") == {(name, "redis") for name in keys if "broker-url" in keys[name]}
    asking = {"keda": "keda", "prometheus": "monitoring"}
    assert entered.pop("metrics") == {(asking[name], "metrics") for name in components if name in asking}
    users_of_api = {"ingress": ("ingress-nginx", "http"), "prometheus": ("monitoring", "metrics")}
    assert entered.pop("api") == {users_of_api[name] for name in components if name in users_of_api}
    assert not any(entered.values())


def test_the_api_is_served_under_the_hosts_of_its_ingress(objects: list[Object]) -> None:
    [container] = workloads(objects)["api"]["spec"]["containers"]
    hosts = {rule["host"] for each in of_kind(objects, "Ingress") for rule in each["spec"]["rules"]}
    assert set(environment(objects, container).get(f"{ENV_PREFIX}API_HOSTS", "").split(",")) - {""} == hosts


# ---- scaling and monitoring ---------------------------------------------------------------------------


def test_keda_and_prometheus_ask_the_exporter_where_it_listens(objects: list[Object]) -> None:
    [exporter] = workloads(objects)["metrics"]["spec"]["containers"]
    path = exporter["readinessProbe"]["httpGet"]["path"]
    for scaled in of_kind(objects, "ScaledObject"):
        # The reconciler runs inside the workers: without a worker, nobody sends wake-ups.
        assert scaled["spec"]["minReplicaCount"] >= 1
        [trigger] = scaled["spec"]["triggers"]
        service = named(objects, "Service", "metrics")
        [port] = service["spec"]["ports"]
        host = f"metrics.{service['metadata']['namespace']}.svc:{port['port']}"
        assert trigger["metadata"]["url"] == f"http://{host}{path}"
        assert trigger["metadata"]["valueLocation"].removeprefix(PREFIX) in METRICS
    for monitor in of_kind(objects, "ServiceMonitor"):
        [endpoint] = monitor["spec"]["endpoints"]
        assert endpoint["path"] == path
        for service in of_kind(objects, "Service"):
            pod = workloads(objects)[service["metadata"]["name"]]
            selected = selects(monitor["spec"]["selector"], service["metadata"].get("labels", {}))
            assert selected is (endpoint["port"] in _ports(pod))
        # The exporter waits five seconds for ledger and broker; the operator refuses a longer timeout.
        assert 5 < int(endpoint["scrapeTimeout"][:-1]) <= int(endpoint["interval"][:-1])


def test_alerts_and_dashboard_are_those_without_kubernetes(objects: list[Object]) -> None:
    # tests/integration/test_monitoring.py has checked the alerts, and made each of them fire.
    alerts = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    dashboard = MONITORING / "grafana" / "dashboards" / "labelmill.json"
    for rule in of_kind(objects, "PrometheusRule"):
        assert rule["spec"] == alerts, "stale: make alerts"
        assert named(objects, "ConfigMap", DASHBOARD)["data"] == {dashboard.name: dashboard.read_text()}


# ---- the document -------------------------------------------------------------------------------------


def test_the_document_names_every_secret_overlay_and_component(objects: list[Object]) -> None:
    text = (PROJECT / "docs" / "how-to" / "kubernetes.md").read_text()
    for pod in workloads(objects).values():
        for secret, key in _secret_keys(pod):
            assert f"secret generic {secret} " in text, secret
            assert f"--from-file={key}=" in text or f"\n    {key}=" in text, key
    for folder in [*(KUBERNETES / "overlays").iterdir(), *(KUBERNETES / "components").iterdir()]:
        assert f"{folder.parent.name}/{folder.name}" in text, folder
    for name in workloads(objects):
        assert f"`{name}`" in text, name


def test_the_kustomization_of_the_document_works(tmp_path: Path) -> None:
    # Given the kustomization in the document, with all patches that the document shows elsewhere
    text = (PROJECT / "docs" / "how-to" / "kubernetes.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?ms)^ *```yaml\n(.*?)^ *```$", text)]
    [shown] = [block for block in blocks if block.startswith("# kustomization.yaml")]
    patches = [block for block in blocks if block.startswith("patches:")]
    assert len(patches) == 3
    own = yaml.safe_load(shown.replace("labelmill/deploy/kubernetes", _way_to_ours(tmp_path)))
    own["patches"] = [patch for block in patches for patch in yaml.safe_load(block)["patches"]]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))

    # When kustomize builds it
    objects = build(tmp_path)

    # Then the images come from the registry, and the settings and the patches are applied
    for _, container in containers(objects):
        assert container["image"].startswith("registry.example.org/labelmill-")
    assert settings_map(objects)["data"] == {
        "LABELMILL_LEASE_SECONDS": "60",
        "LABELMILL_LOG_FORMAT": "json",
        "LABELMILL_KEEP_JOBS_DAYS": "90",
    }
    [scaled] = of_kind(objects, "ScaledObject")
    assert scaled["spec"]["triggers"][0]["metadata"]["targetValue"] == "20000"
    assert workloads(objects)["worker"]["spec"]["terminationGracePeriodSeconds"] == 270
    for custom in of_kind(objects, "ServiceMonitor", "PrometheusRule"):
        assert custom["metadata"]["labels"] == {"release": "kube-prometheus-stack"}
