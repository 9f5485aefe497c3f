"""The deployment as its users bring it up, with real containers: `make test-compose`.

The tests are one story and run in order: what an earlier one brought about, a later one finds.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from openai import OpenAI

from jobs.ledger.database import REVISION
from tests.browser import started_browser
from tests.compose.deployment import BUILD_SECONDS, NEWER, TARPIT, VERSION, Container, Deployment, docker
from tests.console import stop, until, write_digits
from tests.digits import read_digits
from tests.main_path import GATE_OFF, WEAK, champion, make_archive, walk_main_path
from tests.neighbours import attacked, health_checked, work
from worker.children import MANY_DEATHS

#: MNIST's test images.
IMAGES: Final = 10_000

#: What the project's images are built on.
BASE: Final = "python:3.13-slim-trixie"

#: So many times over they take long enough to be caught in the middle.
COPIES: Final = 10

#: How long Redis is away.
OUTAGE_SECONDS: Final = 60

#: What is logged about each chunk and each message.
WORK_LINE: Final = re.compile(
    r'"logger": "(worker.predicting.telemetry|celery.app.trace|celery.worker.strategy)"|missing wake-ups'
)

#: How long one project attacks while another one works.
NOISE_SECONDS: Final = 60

#: Bytes of memory that the API needs at most. Its container has room for four times as many.
API_MEMORY: Final = 512 * 1024 * 1024

#: A day's job has 70,000 images.
DAY_COPIES: Final = 7


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, mnist_dir: Path) -> Path:
    """The 10,000 test images of MNIST, as PNG files in a folder a class."""
    folder = tmp_path_factory.mktemp("images")
    data = read_digits(mnist_dir)
    write_digits(folder, data.test_images, data.test_labels)
    folder.chmod(0o755)  # the containers' user is nobody here: it reads what everybody may
    return folder


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, mnist_dir: Path, images: Path
) -> Iterator[Deployment]:
    """Built and brought up once; every test leaves it running."""
    readable = tmp_path_factory.mktemp("data") / "mnist"
    shutil.copytree(mnist_dir, readable)
    readable.chmod(0o755)
    deployment = Deployment(tmp_path_factory.mktemp("deployment"), mnist=readable, images=images)
    deployment.clean_up()
    deployment.compose("--profile", "producer", "build", timeout=BUILD_SECONDS)
    try:
        began = time.monotonic()
        deployment.up()
        print(f"\nup after {time.monotonic() - began:.0f} s")  # noqa: T201 -- for who reads the run
        yield deployment
    finally:
        deployment.clean_up()


def wait_for(deployment: Deployment, job: str, state: str = "done", *, seconds: float = 240) -> None:
    """The job has come to that state. The ledger is asked: a command takes a container and seconds."""
    query = f"SELECT state FROM jobs WHERE id = '{job}'"
    until(lambda: deployment.ask(query) == [[state]], f"job {job} is {state}", seconds=seconds)


def submit(deployment: Deployment, *, copies: int = 1, chunk: int = 500) -> str:
    """Submit all images this many times, in chunks of this many images. Return the job's id."""
    run = ("run", "--rm", "--no-TTY", "--env", f"LABELMILL_CHUNK_IMAGES={chunk}")
    return deployment.compose(*run, "producer", "submit", *["/images"] * copies).stdout.split()[-1]


@contextlib.contextmanager
def job_in_work(deployment: Deployment) -> Iterator[str]:
    """A job of many copies of all images, of which some chunks are done and some are claimed: its id. At the
    end it is done, and every outcome is right.
    """
    producer = deployment.start("submit", *["/images"] * COPIES)
    try:
        until(lambda: in_work(deployment), "chunks are being worked on", seconds=60)
        [[job]] = deployment.ask("SELECT max(id) FROM jobs")
        yield job
        assert producer.wait(240) == 0
    finally:
        if producer.poll() is None:  # told to end, Compose tells its container
            stop(producer, seconds=60)
    wait_for(deployment, job)
    check_outcomes(deployment, job, copies=COPIES)


def check_outcomes(deployment: Deployment, job: str, *, copies: int = 1) -> None:
    """Each image has one outcome, and as many are right as when the model was evaluated on the same ones."""
    text = deployment.labelmill("predictions", job, "--format", "csv").stdout
    [champion] = [model for model in deployment.told("models", "list") if "champion" in model["aliases"]]
    check_rows(text, champion, copies=copies)


def check_rows(text: str, champion: Mapping[str, Any], *, copies: int = 1) -> None:
    """Check the CSV of a job's outcomes against the champion's evaluation on the same images."""
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [int(row["index"]) for row in rows] == list(range(IMAGES * copies))
    assert Counter(row["error"] for row in rows) == {"": IMAGES * copies}
    right = sum(row["label"] == Path(row["name"]).parent.name for row in rows)
    assert right / IMAGES / copies == pytest.approx(champion["accuracy"], abs=1e-9)
    assert {row["model"] for row in rows} == {champion["id"]}


# ---- the deployment -------------------------------------------------------------------------------------


def test_the_main_path_in_a_browser(deployment: Deployment, mnist_dir: Path, tmp_path: Path) -> None:
    # Given a champion that has hardly learnt anything, and a key
    trained = deployment.compose("exec", "--no-TTY", "trainer", "labelmill", "train", *WEAK).stdout.split()[
        -1
    ]
    # If it is worse than guessing, it is not the champion yet.
    deployment.labelmill("models", "promote", trained, "--force", check=False)
    deployment.labelmill("gate", "mnist", *GATE_OFF)
    archive = make_archive(read_digits(mnist_dir), tmp_path)

    def corrections() -> dict[int, str]:
        rows = deployment.ask('SELECT "index", label FROM corrections')
        return {int(index): label for index, label in rows}

    # When a person goes the whole way in a browser
    with started_browser() as browser, browser.test():
        browser.sign_in(url_of_api(deployment), make_key(deployment, "admin"))
        walk_main_path(browser, archive, corrections)

        # Then the model that they trained is a good one, and becomes the champion again
        [better] = [each for each in deployment.told("models", "list") if "champion" not in each["aliases"]]
        assert better["accuracy"] >= 0.98
        browser.open(f"/models/{better['id']}")
        browser.click("button", "Promote")
        browser.answer("New jobs will use it")
        browser.until(lambda: not browser.find_all("button", "Promote"), "it is the champion")
        assert champion(browser) == better["id"]

        # When they add labelled images to a new dataset, then the trainer stores them before it trains
        browser.open("/datasets")
        browser.driver.find_element("id", "files").send_keys(str(archive))
        browser.find("#dataset").send_keys("own")
        browser.click("button", "Add and train")
        browser.until(lambda: browser.path.startswith("/runs/"), "the run is shown")
        query = "SELECT version FROM dataset_versions WHERE dataset = 'own'"
        browser.until(lambda: deployment.ask(query) == [["1"]], "they are added", seconds=120)
        browser.click("button", "Cancel")
        browser.answer("Cancel this training?")
        browser.find(".state", "cancelled")


def test_a_batch_is_submitted_over_http(deployment: Deployment, images: Path, tmp_path: Path) -> None:
    # Given an archive on this machine, a key, and the address that is published
    archive = Path(shutil.make_archive(str(tmp_path / "digits"), "zip", images))
    key = make_key(deployment)
    url = f"{url_of_api(deployment)}/v1"

    # When it is submitted and followed over HTTP, without a container of the service `producer`
    with OpenAI(base_url=url, api_key=key) as client:
        with archive.open("rb") as file:
            uploaded = client.files.create(file=file, purpose="batch")
        batch = client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/responses", completion_window="24h"
        )
        until(
            lambda: client.batches.retrieve(batch.id).status == "completed",
            "the batch has ended",
            seconds=240,
        )
        batch = client.batches.retrieve(batch.id)
        assert batch.output_file_id is not None
        lines = client.files.content(batch.output_file_id).text.splitlines()

    # Then each image has one outcome, read over HTTP too
    assert len(lines) == IMAGES
    champion = json.loads(fetch(f"{url}/models/champion", key))
    check_rows(fetch(f"{url}/batches/{batch.id}/results", key, accept="text/csv"), champion)


def url_of_api(deployment: Deployment) -> str:
    """Return the address that is published, which is this machine's alone."""
    address = deployment.compose("port", "api", "8000").stdout.strip()
    assert address.startswith("127.0.0.1:")
    return f"http://{address}"


def make_key(deployment: Deployment, role: str = "submit") -> str:
    """Return a new key with this role."""
    create = ("labelmill", "keys", "create", role, "--role", role)
    return deployment.compose("exec", "api", *create).stdout.strip()


def fetch(url: str, key: str, *, accept: str = "application/json") -> str:
    """Return what the HTTP API answers to this key."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}", "Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def test_the_doctor_has_no_warning_in_a_healthy_deployment(deployment: Deployment) -> None:
    findings = deployment.told("doctor")["findings"]
    assert [each for each in findings if each["level"] != "ok"] == []


def test_a_job_survives_a_killed_worker_and_an_outage_of_redis(deployment: Deployment) -> None:
    # Given three workers, set in `.env` so that a plain `up` keeps them
    (deployment.folder / ".env").write_text("WORKERS=3\n")
    deployment.up()
    assert len(deployment.containers("worker")) == 3

    # When one is killed in the middle of a job, and Redis is away for a minute, then the job is done
    with job_in_work(deployment) as job:
        worker = next(iter(deployment.containers("worker")))
        began = datetime.now(UTC).isoformat()
        kill(worker)
        deployment.compose("stop", "redis")
        time.sleep(OUTAGE_SECONDS)
        [[state]] = deployment.ask(f"SELECT state FROM jobs WHERE id = '{job}'")
        assert state != "done", "it was done while Redis was away: nothing was shown"
        deployment.compose("start", "redis")

    # and no container wrote more than a few lines about it
    text = deployment.compose("logs", "--since", began).stdout
    assert "Traceback" not in text
    lines = [
        (container, line)
        for container, line in re.findall(r"([a-z]+-\d+) +\| (.*)", text)
        if not WORK_LINE.search(line)
    ]
    count = Counter(container for container, _ in lines)
    print(f"\nlines of each container: {dict(count)}")  # noqa: T201 -- for who reads the run
    assert max(count.values()) <= 10, lines
    waited = {container for container, line in lines if "the broker cannot be reached" in line}
    assert waited >= {"worker-1", "worker-2", "worker-3", "trainer-1", "webhooks-1"}

    # and Docker has started the worker again, and does so with a Redis that is killed
    [broker] = deployment.containers("redis")
    kill(broker)
    for container in (worker, broker):
        until(lambda killed=container: is_up_again(deployment, killed), f"{container.service} is up again")
    # and the others are healthy again: after an outage, they are checked only every half minute
    until(
        lambda: {each.health for each in deployment.containers()} == {"healthy"},
        "all are healthy again",
        seconds=120,
    )
    (deployment.folder / ".env").write_text("WORKERS=1\n")
    deployment.up()
    assert len(deployment.containers("worker")) == 1


def is_up_again(deployment: Deployment, killed: Container) -> bool:
    """Whether this container has been started again and is healthy."""
    [now] = [each for each in deployment.containers(killed.service) if each.id == killed.id] or [killed]
    is_new = now.inspected["State"]["StartedAt"] != killed.inspected["State"]["StartedAt"]
    return is_new and now.health == "healthy"


def test_a_worker_that_is_stopped_burns_no_attempt(deployment: Deployment) -> None:
    # Given a job in work
    with job_in_work(deployment) as job:
        # When the workers are stopped, and started again
        began = time.monotonic()
        deployment.compose("stop", "worker")
        took = time.monotonic() - began
        left = deployment.told("status", job)
        assert left["state"] != "done", "it was done before the workers were stopped: nothing was shown"
        deployment.up()

    # Then they ended by themselves, and no chunk was begun again but for those that were given back
    assert took < 55
    assert deployment.ask(
        f"SELECT count(*) FROM chunks WHERE job_id = '{job}' AND (crashes > 0 OR attempts - releases > 1)"
    ) == [["0"]]


def test_a_worker_that_lacks_memory_says_so(deployment: Deployment) -> None:
    problem = 'labelmill_worker_problems{problem="memory",queue="labelmill.classify"}'
    # Given a worker with too little memory for TensorFlow, whose processes the kernel kills
    with little_memory(deployment):
        until(lambda: "SIGKILL" in log_of_worker(deployment), "a process was killed", seconds=120)

        # Then within a minute, health, metrics, log and doctor name the cause
        cause = "its processes keep dying, killed for lack of memory"
        until(
            lambda: (
                cause in health_of_worker(deployment)
                and f"{problem} 1.0" in metrics(deployment)
                and cause in log_of_worker(deployment)
                and cause in deployment.labelmill("doctor", check=False).stdout
            ),
            "all name the cause",
            seconds=60,
        )
        [deaths] = re.findall(
            r'^labelmill_child_deaths_total\{signal="SIGKILL"\} (.+)$', metrics(deployment), re.MULTILINE
        )
        assert float(deaths) >= MANY_DEATHS
        # and none says that the cause is unknown
        assert "perhaps" not in log_of_worker(deployment)
        [worker] = deployment.containers("worker")
        assert worker.health != "healthy"

    # When it has memory again, then it is healthy
    until(lambda: f"{problem} 0.0" in metrics(deployment), "the problem is over", seconds=60)


@contextlib.contextmanager
def little_memory(deployment: Deployment) -> Iterator[None]:
    """Give the worker 300 MB for as long as this lasts. Then all is up and healthy again.

    The kernel may kill the main process too, which Docker starts again.
    """
    settings = deployment.folder / ".env"
    settings.write_text("WORKER_MEMORY=300m\n")
    try:
        deployment.compose("up", "--detach", "worker")
        yield
    finally:
        settings.write_text("WORKERS=1\n")
        deployment.up()


def log_of_worker(deployment: Deployment) -> str:
    return deployment.compose("logs", "worker").stdout


def health_of_worker(deployment: Deployment) -> str:
    """Return what the latest health checks of the only worker said."""
    [worker] = deployment.containers("worker")
    return "".join(each["Output"] for each in worker.inspected["State"]["Health"]["Log"])


def metrics(deployment: Deployment) -> str:
    """Return what Prometheus would read."""
    address = deployment.compose("port", "metrics", "9187").stdout.strip()
    assert address.startswith("127.0.0.1:")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def test_the_metrics_tell_of_the_work(deployment: Deployment) -> None:
    text = metrics(deployment)
    for disk in ("ledger", "store"):
        [free] = re.findall(rf'^labelmill_disk_free_bytes{{disk="{disk}"}} (.+)$', text, re.MULTILINE)
        assert float(free) > 0
    [done] = re.findall(r'^labelmill_images_total\{outcome="ok"\} (.+)$', text, re.MULTILINE)
    assert float(done) >= 3 * IMAGES


def test_down_and_up_keeps_everything(deployment: Deployment) -> None:
    jobs, models = listed_jobs(deployment), deployment.told("models", "list")
    assert len(jobs) == 4
    deployment.compose("down")
    deployment.up()
    assert listed_jobs(deployment) == jobs
    assert deployment.told("models", "list") == models


# ---- how hard it is -------------------------------------------------------------------------------------


def test_no_container_may_more_than_it_has_to(deployment: Deployment) -> None:
    containers = deployment.containers()
    services = {"redis", "db", "worker", "trainer", "webhooks", "beat", "api", "metrics"}
    assert {each.service for each in containers} == services
    for container in containers:
        host = container.inspected["HostConfig"]
        assert container.health == "healthy", container.service
        assert host["ReadonlyRootfs"], container.service
        assert host["CapDrop"] == ["ALL"], container.service
        assert not host["CapAdd"], container.service
        assert not host["Privileged"], container.service
        assert "no-new-privileges:true" in host["SecurityOpt"], container.service
        assert host["Memory"] > 0, container.service
        assert host["PidsLimit"] > 0, container.service
        assert host["LogConfig"]["Config"].keys() == {"max-size", "max-file"}, container.service
        for process in processes_of(container):
            try:
                status = (Path("/proc") / process / "status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # a health check that has ended
            assert "0" not in re.findall(r"^Uid:\s+(.*)$", status, re.MULTILINE)[0].split(), container.service
            for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                assert int(re.findall(rf"^{kind}:\s+(\w+)$", status, re.MULTILINE)[0], 16) == 0, (
                    container.service
                )


def test_nothing_is_published_to_the_world(deployment: Deployment) -> None:
    published = {
        (container.service, port["HostIp"])
        for container in deployment.containers()
        for ports in container.inspected["NetworkSettings"]["Ports"].values()
        for port in ports or ()
    }
    assert published == {("api", "127.0.0.1"), ("metrics", "127.0.0.1")}
    for name in ("database", "broker"):
        [network] = json.loads(docker("network", "inspect", f"labelmill-test_{name}"))
        assert network["Internal"]
    services = {container.service for container in deployment.containers()}
    assert on_network(deployment, "outside") == {"trainer", "webhooks", "api", "metrics"}
    assert on_network(deployment, "database") == services - {"redis"}
    assert on_network(deployment, "broker") == services - {"db"}


#: Holds 300 connections each to database and broker, never logs in, and connects again when it is cut off.
FLOOD: Final = """
import select, socket
def connect(address):
    silent[socket.create_connection(address)] = address
silent, cut_off, told = {}, 0, False
for address in (("db", 5432), ("redis", 6379)):
    for _ in range(300):
        connect(address)
print("connected", flush=True)
while True:
    poll = select.poll()
    by_number = {one.fileno(): one for one in silent}
    for number in by_number:
        poll.register(number, select.POLLIN)
    for number, _ in poll.poll():
        cut_off += 1
        connect(silent.pop(by_number[number]))
        by_number[number].close()
    if cut_off >= 300 and not told:
        told = True
        print("cut off", flush=True)
"""


def test_a_flood_of_silent_clients_keeps_nobody_out(deployment: Deployment) -> None:
    # Given a neighbour that takes many connections and does not log in
    flood = deployment.start("-c", FLOOD, entrypoint="python")
    try:
        assert flood.stdout is not None
        assert flood.stdout.readline() == "connected\n"
        # When a job is submitted, then it is done
        job = submit(deployment)
        wait_for(deployment, job)
        check_outcomes(deployment, job)
        # and the database cuts the neighbour off
        assert flood.stdout.readline() == "cut off\n"
        assert flood.poll() is None
    finally:
        stop(flood, seconds=60)


def test_a_noisy_neighbour_keeps_nobody_waiting(deployment: Deployment, images: Path) -> None:
    # Given two projects, one of which has 100,000 images at the highest priority
    keys = {}
    for project in ("noisy", "quiet"):
        deployment.labelmill("projects", "create", project)
        create = ("keys", "create", project, "--project", project)
        keys[project] = deployment.labelmill(*create).stdout.strip()
    url = url_of_api(deployment)
    image = next(images.rglob("*.png"))
    many = deployment.start("submit", *["/images"] * COPIES, "--project", "noisy", "--priority", "100")
    try:
        until(lambda: in_work(deployment), "its images are being classified", seconds=120)
        # When it does all that one key can do
        noisy = attacked(url, keys["noisy"], f"http://{TARPIT}:8080", image)
        with deployment.tarpit(), noisy as attacks, health_checked(url) as health:
            quiet = work(url, keys["quiet"], image.read_bytes(), seconds=NOISE_SECONDS)
        # Then each image of the other project gets its label, nearly as quickly as ever
        memory = peak_memory(deployment, "api")
        print(f"\n{quiet}; health: {health}; {attacks}; {memory:,} bytes")  # noqa: T201 -- for who reads the run
        assert quiet.failed == []
        # But for a moment's delay: of fewer than 100 images, the 99th percentile would be the slowest one.
        assert quiet.quantile(0.9) < 3
        assert max(quiet.seconds) < 15
        # and the server says that it works, in bounded memory
        assert health.failed == []
        assert health.quantile(0.99) < 1
        assert all(attacks.values()), attacks
        assert memory < API_MEMORY
    finally:
        stop(many, seconds=60)


def peak_memory(deployment: Deployment, service: str) -> int:
    """Return the most bytes that the container of a service has had in memory, without its files' cache."""
    [container] = deployment.containers(service)
    statuses = deployment.compose("exec", "--no-TTY", service, "sh", "-c", "cat /proc/[0-9]*/status").stdout
    assert not container.inspected["State"]["OOMKilled"]
    return sum(int(kib) * 1024 for kib in re.findall(r"^VmHWM:\s+(\d+) kB$", statuses, re.MULTILINE))


def test_no_secret_is_in_an_environment_or_a_command_line(deployment: Deployment) -> None:
    secrets = [
        (deployment.folder / "secrets" / f"{name}_password").read_text()
        for name in ("redis", "labelmill", "labelmill_owner", "labelmill_reader", "postgres")
    ]
    assert all(len(secret) >= 32 for secret in secrets)
    for container in deployment.containers():
        seen = json.dumps(container.inspected)
        for process in processes_of(container):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a health check that has ended
                for name in ("environ", "cmdline"):
                    seen += (Path("/proc") / process / name).read_text(errors="replace")
        assert not [secret for secret in secrets if secret in seen], container.service


@pytest.mark.parametrize(
    ("program", "refusal"),
    [
        ("import redis; redis.Redis(host='redis').ping()", "AuthenticationError"),
        (
            "import psycopg; psycopg.connect('host=db user=labelmill dbname=labelmill')",
            "no password supplied",
        ),
    ],
)
def test_without_its_password_nobody_is_let_in(deployment: Deployment, program: str, refusal: str) -> None:
    done = deployment.compose(
        *("run", "--rm", "--no-TTY", "--no-deps", "--entrypoint", "python", "producer", "-c", program),
        check=False,
    )
    assert done.returncode == 1
    assert re.search(refusal, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("role", "statement", "refusal"),
    [
        ("labelmill", "UPDATE later SET id = 2", None),
        ("labelmill", "DROP TABLE later", "must be owner"),
        ("labelmill", "CREATE TABLE mine (id int)", "permission denied"),
        ("labelmill_reader", "SELECT * FROM later, results LIMIT 1", None),
        ("labelmill_reader", "DELETE FROM later", "permission denied"),
        ("labelmill_reader", "SELECT secret FROM webhook_endpoints", "permission denied"),
        ("labelmill", "SELECT secret FROM webhook_endpoints", None),
        ("labelmill_reader", "SELECT urls FROM batch_urls", "permission denied"),
        ("labelmill_reader", "CREATE TEMPORARY TABLE mine (id int)", "permission denied"),
        ("labelmill_owner", "CREATE ROLE another", "permission denied"),
    ],
)
def test_each_role_has_the_rights_it_needs(
    deployment: Deployment, role: str, statement: str, refusal: str | None
) -> None:
    # Given a table that a later version adds
    deployment.execute("CREATE TABLE later (id int)", role="labelmill_owner")
    try:
        done = deployment.execute(statement, role=role, check=False)
        assert done.returncode == (1 if refusal else 0), done.stderr
        assert (refusal or "") in done.stderr
    finally:
        deployment.execute("DROP TABLE later", role="labelmill_owner")


def test_each_container_has_only_the_secrets_it_needs(deployment: Deployment) -> None:
    mounted = {
        each.service: {mount["Destination"] for mount in each.inspected["Mounts"]}
        for each in deployment.containers()
    }
    owners = [service for service, paths in mounted.items() if "/run/secrets/ledger_owner_url" in paths]
    assert owners == []  # only `migrate` has it, and has ended
    assert mounted["metrics"] == {"/run/secrets/ledger_reader_url", "/run/secrets/broker_url"}


def test_celery_is_what_the_init_watches(deployment: Deployment) -> None:
    # A shell in between would take the signal that stops a container, and Celery would be killed.
    for container in deployment.containers("worker", "trainer", "beat"):
        [child] = children_of(str(container.pid))
        command = (Path("/proc") / child / "cmdline").read_text().split("\0")
        assert any(Path(part).name in ("celery", "labelmill") for part in command[:3]), command


def test_the_images_without_a_model_are_small(deployment: Deployment) -> None:
    sizes = {
        name: size_of(name)
        for name in (BASE, *(f"labelmill-{part}:{VERSION}" for part in ("producer", "api", "worker")))
    }
    for name, size in sizes.items():
        print(f"\n{name}: {size:.0f} MB")  # noqa: T201 -- for who reads the run
    # The base is what this machine has by that name; the official one has no more than 130 MB.
    for image in (f"labelmill-producer:{VERSION}", f"labelmill-api:{VERSION}"):
        assert sizes[image] - sizes[BASE] < 300 - 130, image
    began = time.monotonic()
    deployment.up("--no-deps", "--force-recreate", "api")
    print(f"the API is ready after {time.monotonic() - began:.1f} s")  # noqa: T201


# ---- the operator's day ---------------------------------------------------------------------------------


def test_an_operators_day(deployment: Deployment, tmp_path: Path) -> None:
    """One job of 70,000 images runs through all of it, and at the end each image has one outcome."""
    # Given a job that takes minutes
    deployment.execute(SLOW_CLAIMS, role="labelmill_owner")
    job = submit(deployment, copies=DAY_COPIES, chunk=100)
    check_it_goes_on(deployment, job)

    # When a newer version's migration fails, then the upgrade says so, and the same containers go on
    before = ids(deployment)
    deployment.check_out_newer("SELECT 1 / 0")
    done = deployment.script("upgrade", check=False)
    assert done.returncode == 1
    assert "The running version was not touched" in done.stderr
    assert ids(deployment) == before
    assert migration(deployment) == REVISION
    check_it_goes_on(deployment, job)
    # and with the old files, so do its console commands
    deployment.check_out()
    assert deployment.told("status", job)["state"] == "running"

    # Given a newer version whose migration is good
    # When a console command of it is run, then it migrates nothing, and says what to do
    number = deployment.check_out_newer("CREATE TABLE newer (id int)")
    deployment.compose("--profile", "producer", "build", timeout=BUILD_SECONDS)
    for service in ("producer", "trainer"):
        done = deployment.compose("run", "--rm", "--no-TTY", service, "models", "list", check=False)
        assert done.returncode == 2, done.stderr
        assert "labelmill db upgrade" in done.stderr
    # and rotate changes no password, because it would start the newer version
    secrets = contents(deployment.folder / "secrets")
    done = deployment.script("rotate", check=False)
    assert done.returncode == 2
    assert "upgrade first: sh deploy/compose/upgrade" in done.stderr
    assert contents(deployment.folder / "secrets") == secrets
    assert migration(deployment) == REVISION
    assert ids(deployment) == before

    # When the deployment is upgraded, then the ledger is migrated, and all is of the new version
    deployment.script("upgrade")
    assert migration(deployment) == number
    deployment.execute("SELECT * FROM newer", role="labelmill_reader")
    assert versions(deployment) == {NEWER}
    check_it_goes_on(deployment, job)

    # When it goes back, then the previous version works with the ledger of the newer one
    deployment.check_out()
    deployment.script("upgrade")
    assert versions(deployment) == {VERSION}
    assert migration(deployment) == number
    check_it_goes_on(deployment, job)

    # When it is scaled
    (deployment.folder / ".env").write_text("WORKERS=2\n")
    deployment.up()
    assert len(deployment.containers("worker")) == 2
    check_it_goes_on(deployment, job)

    # When the passwords are changed, but that is interrupted, then the script says to run it again
    old = {name: secret(deployment, name) for name in ("labelmill", "labelmill_reader", "postgres", "redis")}
    replace_as_an_editor_does(deployment.folder / "secrets" / "labelmill_reader_password")
    assert "Run it again" in interrupted_rotation(deployment)
    # and then the old ones are refused, and the database kept running
    database = [each.id for each in deployment.containers("db")]
    deployment.script("rotate")
    assert [each.id for each in deployment.containers("db")] == database
    assert "WRONGPASS" in redis_auth(deployment, old["redis"])
    assert "OK" in redis_auth(deployment, secret(deployment, "redis"))
    for role in ("labelmill", "labelmill_reader", "postgres"):
        login = f"host=db dbname=labelmill user={role} password="
        assert "authentication failed" in psql(deployment, login + old[role])
        assert psql(deployment, login + secret(deployment, role)) == ""
    check_it_goes_on(deployment, job)
    [[burnt]] = deployment.ask(f"SELECT sum(crashes) FROM chunks WHERE job_id = '{job}'")
    assert burnt == "0"

    # When it is backed up
    backup = tmp_path / "backup"
    deployment.script("backup", str(backup))
    assert {path.stat().st_mode & 0o077 for path in (backup, *backup.iterdir())} == {0}
    jobs, models = listed_jobs(deployment), deployment.told("models", "list")
    check_it_goes_on(deployment, job)

    # and is to be restored over a ledger with jobs, then that is refused
    done = deployment.script("restore", str(backup), check=False)
    assert done.returncode == 2
    [[count]] = deployment.ask("SELECT count(*) FROM jobs")
    assert f"The ledger has {count} jobs" in done.stderr

    # When all is lost, and the backup is restored
    deployment.compose("--profile", "producer", "down", "--volumes")
    shutil.rmtree(deployment.folder / "secrets")
    for name in (".env", "docker-compose.override.yml"):
        (deployment.folder / name).unlink()
    deployment.script("restore", str(backup))
    assert (deployment.folder / ".env").read_text() == "WORKERS=2\n"
    assert deployment.told("models", "list") == models
    found = listed_jobs(deployment)
    assert [each["id"] for each in found] == [each["id"] for each in jobs]
    assert [each for each in found if each["id"] != job] == [each for each in jobs if each["id"] != job]

    # Then the job ends, and each image has one outcome
    check_it_goes_on(deployment, job)
    deployment.execute("DELETE FROM pace", role="labelmill_owner")
    wait_for(deployment, job)
    check_outcomes(deployment, job, copies=DAY_COPIES)

    # and --overwrite replaces a ledger with jobs
    later = submit(deployment)
    deployment.script("restore", "--overwrite", str(backup))
    assert later not in {each["id"] for each in listed_jobs(deployment)}
    assert deployment.told("models", "list") == models


#: Makes each claim take four seconds, without work: a job then lasts as long as the test needs.
SLOW_CLAIMS: Final = """
CREATE TABLE pace AS SELECT 4 AS seconds;
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(seconds) FROM pace; RETURN NEW; END';
CREATE TRIGGER take_time BEFORE UPDATE ON chunks FOR EACH ROW
    WHEN (NEW.state = 'claimed' AND OLD.state <> 'claimed') EXECUTE FUNCTION take_time();
"""


def check_it_goes_on(deployment: Deployment, job: str) -> None:
    """Another chunk of the job is soon done, and others are left."""
    count = f"SELECT count(*) FILTER (WHERE state = 'done') FROM chunks WHERE job_id = '{job}'"
    before = deployment.ask(count)
    until(lambda: deployment.ask(count) != before, f"job {job} goes on", seconds=120)
    [[state]] = deployment.ask(f"SELECT state FROM jobs WHERE id = '{job}'")
    assert state == "running", "it was done too early: nothing was shown"


def migration(deployment: Deployment) -> str:
    [[number]] = deployment.ask("SELECT version_num FROM alembic_version")
    return number


def versions(deployment: Deployment) -> set[str]:
    """Return the versions in the names and labels of our running images."""
    configs = [each.inspected["Config"] for each in deployment.containers()]
    ours = [each for each in configs if each["Image"].startswith("labelmill-")]
    return {each["Image"].partition(":")[2] for each in ours} | {
        each["Labels"]["org.opencontainers.image.version"] for each in ours
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replace_as_an_editor_does(file: Path) -> None:
    """Replace this file by a new one. Containers still have the old one mounted."""
    shutil.copy(file, file.with_suffix(".new")).replace(file)


def interrupted_rotation(deployment: Deployment) -> str:
    """Send SIGTERM to `rotate` after it has restarted the database. Return what it says then."""
    rotation = deployment.start_script("rotate")
    try:
        assert rotation.stderr is not None
        assert any("stopping workers" in line for line in rotation.stderr)
    finally:
        os.killpg(rotation.pid, signal.SIGTERM)
    said = rotation.stderr.read()
    assert rotation.wait(60) != 0
    return said


def secret(deployment: Deployment, name: str) -> str:
    return (deployment.folder / "secrets" / f"{name}_password").read_text().strip()


def redis_auth(deployment: Deployment, password: str) -> str:
    arguments = ("exec", "--no-TTY", "redis", "redis-cli", "AUTH", "labelmill", password)
    return deployment.compose(*arguments).stdout


def psql(deployment: Deployment, login: str) -> str:
    """Return what goes wrong with this login, or an empty string."""
    return deployment.compose("exec", "--no-TTY", "db", "psql", login, "--command=", check=False).stderr


# ---- helpers --------------------------------------------------------------------------------------------


def ids(deployment: Deployment, *services: str) -> list[str]:
    """Return the ids of the running containers, except the database's: an upgrade may recreate it first."""
    return sorted(each.id for each in deployment.containers(*services) if each.service != "db")


def listed_jobs(deployment: Deployment) -> list[dict[str, object]]:
    """All that is known of the jobs of the default project, but for when it was asked."""
    return [{**job, "read_at": None} for job in deployment.told("jobs", "--project", "default")]


def on_network(deployment: Deployment, name: str) -> set[str]:
    """The services with a container on this network."""
    network = f"labelmill-test_{name}"
    return {
        container.service
        for container in deployment.containers()
        if network in container.inspected["NetworkSettings"]["Networks"]
    }


def size_of(image: str) -> float:
    """Megabytes."""
    [found] = json.loads(docker("image", "inspect", image))
    return float(found["Size"]) / 1e6


def in_work(deployment: Deployment) -> bool:
    """Of the latest job some chunks are done, and some are claimed."""
    rows = deployment.ask("SELECT DISTINCT state FROM chunks WHERE job_id = (SELECT max(id) FROM jobs)")
    return {"claimed", "done"} <= {state for [state] in rows}


def kill(container: Container) -> None:
    """As the kernel kills what takes too much memory: not by the engine, which would leave it dead."""
    for process in processes_of(container):
        os.kill(int(process), signal.SIGKILL)


def processes_of(container: Container) -> list[str]:
    """Its processes, as this machine counts, without the init that the engine put before them."""
    init = str(container.pid)
    return [
        line.split()[0]
        for line in docker("top", container.id, "-eo", "pid").splitlines()[1:]
        if line.split()[0] != init
    ]


def children_of(pid: str) -> list[str]:
    return (Path("/proc") / pid / "task" / pid / "children").read_text().split()
