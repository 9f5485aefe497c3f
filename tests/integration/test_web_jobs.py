"""The pages of jobs: who submitted each, with which model, and the links of its bars."""

from __future__ import annotations

import re
from itertools import pairwise
from urllib.parse import parse_qs, urlsplit

import httpx

from jobs.ledger import Ledger
from jobs.models.evaluation import CONFIDENCE_EDGES
from jobs.models.model import Model
from tests.conftest import Job, JobMaker, ModelMaker
from tests.integration.test_web_home import page_of, text
from tests.outcomes import Outcome


def test_the_list_says_who_submitted_a_job_and_with_which_model(
    api: httpx.Client, ledger: Ledger, make_job: JobMaker, make_model: ModelMaker, champion: Model
) -> None:
    # Given a job of the command, a batch with another model, and its retry
    birds = make_model(b"birds", dataset="birds")
    job = make_job()
    file_id = api.post("/files", data={"purpose": "batch"}, files={"file": ("a.zip", b"PK")}).json()["id"]
    batch = api.post("/batches", json={"input_file_id": file_id, "dataset": "birds"}).json()
    assert batch["submitted_by"] == "test"  # the key's name
    api.post(f"/batches/{batch['id']}/cancel")
    retry = api.post(f"/batches/{batch['id']}/retry").json()
    assert api.get(f"/batches/{retry['id']}").json()["submitted_by"] == "test"
    assert api.get(f"/batches/{job.id}").json()["submitted_by"] is None

    # Then the list says it of each
    found = text(api, ledger, "/jobs")
    for job_id in (batch["id"], retry["id"]):
        assert re.search(rf"{job_id} \w+ 0 0 – birds {birds.id} test ", found)
    assert re.search(rf"{job.id} running 3 0 – mnist {champion.id} – ", found)


def test_each_bar_of_the_histogram_is_a_link(api: httpx.Client, ledger: Ledger, submitted, worker) -> None:
    job: Job = submitted(2)
    worker.work(job.chunks[0], [Outcome("a.png", "7", 0.55), Outcome("b.png", "7", 1.0)])
    links = re.findall(r'href="([^"]+at_least=[^"]+)"', page_of(api, ledger, f"/jobs/{job.id}"))
    edges = [parse_qs(urlsplit(link.replace("&amp;", "&")).query) for link in links]
    wanted = [{"at_least": [str(low)], "below": [str(high)]} for low, high in pairwise(CONFIDENCE_EDGES)]
    del wanted[-1]["below"]  # which holds what is certain
    assert edges == wanted
