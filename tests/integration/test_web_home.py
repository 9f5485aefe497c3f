"""The first page: what to do first, and what waits for a person."""

from __future__ import annotations

import re
from http import HTTPStatus

import httpx

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.keys import Role, create_key
from jobs.ledger.learning.runs import claim_run, finish_run, request_run
from jobs.models.model import Model
from labelmill.client import Client
from tests.conftest import Job
from tests.outcomes import Outcome


def text(api: httpx.Client, ledger: Ledger) -> str:
    """Return the text of the page."""
    with ledger.transaction() as connection:
        _, key = create_key(connection, "person", Role.REVIEW)
    with httpx.Client(base_url=api.base_url.join("/"), headers={"Accept": "text/html"}) as browser:
        browser.post("/sign-in", data={"key": key})
        answer = browser.get("/home")
    assert answer.status_code == HTTPStatus.OK
    return " ".join(re.sub(r"<[^>]+>", " ", answer.text.partition("<main")[2]).split())


def test_a_new_ledger_says_what_to_do_first(api: httpx.Client, ledger: Ledger) -> None:
    told = text(api, ledger)
    assert "Welcome" in told
    assert "labelmill train" in told


def test_unsure_labels_and_a_refused_model_wait_for_a_person(
    api: httpx.Client, ledger: Ledger, client: Client, submitted, worker, champion: Model
) -> None:
    # Given three labels of which two are unsure, and a training whose model was refused
    job: Job = submitted(3)
    worker.work(job.chunks[0], [Outcome(f"{share}.png", "7", share) for share in (0.3, 0.99, 0.8)])
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
        claim = claim_run(connection, run_id, owner="trainer")
        assert claim is not None
        finish_run(connection, claim, model_id=champion.id, verdict="refused: it is worse")

    # Then both wait
    told = text(api, ledger)
    assert "2 unsure labels of mnist" in told
    assert "The latest model of mnist was refused: it is worse" in told

    # And a correction is one less
    client.correct(job.id, 0, "1")
    assert "1 unsure label of mnist" in text(api, ledger)
