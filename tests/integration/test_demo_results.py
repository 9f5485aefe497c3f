"""What the demo shows when its job has ended."""

from __future__ import annotations

import io

from jobs.settings import Settings
from labelmill.client import Client
from labelmill.commands.demo import show_results
from labelmill.console.terminal import Console
from tests.digits import DIGITS


def test_a_job_that_was_stopped_at_once_has_nothing_to_show(settings: Settings, make_job) -> None:
    # Given a job that was cancelled before it had a prediction
    job = make_job()
    with Client(settings) as client:
        status = client.cancel(job.id)
        # When the demo shows the results
        out = io.StringIO()
        show_results(client, status, DIGITS, Console(file=out))
    # Then it prints nothing: the progress display has already said that the job was cancelled.
    assert out.getvalue() == ""
