"""`labelmill schedule` says when each dataset's model is trained."""

from __future__ import annotations

import json

import pytest

from jobs.ids import new_id
from jobs.ledger.learning.schedules import set_schedule
from labelmill.commands.schedule import app


@pytest.fixture
def cli(run_command, birds):  # noqa: ARG001 -- there has to be a dataset
    return lambda *arguments: run_command(app, *arguments)


def listed(cli, *arguments):
    """Return what `labelmill schedule ... --json` prints, by dataset."""
    found = json.loads(cli(*arguments, "--json").stdout)
    return {each["dataset"]: each for each in found}


def test_a_schedule_changes_in_one_point(cli):
    # Given a schedule, when its training changes, then the time stays
    cli("birds", "--cron", "0 3 * * 0", "--architecture", "mlp", "--max-minutes", "3")
    cli("birds", "--architecture", "cnn")
    after = listed(cli, "birds")["birds"]
    assert (after["cron"], after["request"]) == ("0 3 * * 0", {"architecture": "cnn"})

    # And it can be switched off
    cli("birds", "--off")
    assert listed(cli)["birds"]["next"] is None


def test_a_dataset_gets_a_schedule(cli):
    cli("birds", "--after-corrections", "500")
    cli("birds", "--cron", "15 4 * * *")
    birds = listed(cli)["birds"]
    assert (birds["cron"], birds["after_corrections"], birds["new_corrections"]) == ("15 4 * * *", 500, 0)
    assert birds["next"].endswith("04:15:00+00:00")
    assert "15 4 * * *" in cli().stdout


def test_a_schedule_whose_training_is_no_longer_possible_can_be_switched_off(cli, ledger):
    # Given a schedule that starts from a model which was removed
    request = {"architecture": "finetune", "start": new_id()}
    with ledger.transaction() as connection:
        set_schedule(connection, "birds", cron="0 3 * * *", after_corrections=None, request=request)

    # When its time changes, Then it is refused, and when it is switched off, it is not
    refused = cli("birds", "--cron", "0 4 * * *")
    assert (refused.exit_code, "There is no model" in refused.stderr) == (2, True)
    assert cli("birds", "--off").exit_code == 0
    assert listed(cli)["birds"]["next"] is None


def test_a_schedule_that_says_nothing_is_refused(cli):
    for arguments, advice in (
        (["birds", "--architecture", "cnn"], "say when to train"),
        (["birds", "--cron", "0 3 * * *", "--profile", "long", "--augment", "none"], "own augmentation"),
        (["mnist", "--cron", "0 3 * * *"], "Dataset mnist has not been added yet"),
        (["boats", "--cron", "0 3 * * *"], "There is no dataset 'boats'"),
        (["birds", "--cron", "0 3 * *"], "has 4 fields"),
        (["birds", "--off", "--cron", "0 3 * * *"], "Give --off alone"),
        (["--off"], "Name the dataset"),
        (["--cron", "0 3 * * *"], "Name the dataset"),
    ):
        refused = cli(*arguments)
        assert refused.exit_code == 2
        assert advice in refused.stderr
    assert listed(cli) == {}
