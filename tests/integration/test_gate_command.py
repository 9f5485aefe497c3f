"""`labelmill gate` gives a dataset limits of its own, by which its next models are judged."""

from __future__ import annotations

import json

import pytest

from jobs.ledger.learning.models import save_evaluation
from labelmill.commands.gate import app
from tests.evaluations import made_evaluation

BIRDS = "birds"


@pytest.fixture
def cli(run_command, birds):  # noqa: ARG001 -- there has to be a dataset
    return lambda *arguments: run_command(app, *arguments)


def listed(cli, *arguments):
    """Return what `labelmill gate ... --json` prints, by dataset."""
    return {each["dataset"]: each for each in json.loads(cli(*arguments, "--json").stdout)}


def test_a_dataset_has_limits_of_its_own(cli, client, store, make_model):
    # Given a challenger that is better than the champion: 30 of 40 images are right, not 10
    finch = make_model(b"finch", dataset=BIRDS, store=store)
    heron = make_model(b"heron", dataset=BIRDS, store=store, champion=False)
    with client.ledger.transaction() as connection:
        for model, right in ((finch, 10), (heron, 30)):
            evaluation = made_evaluation([0] * 40, [0] * right + [1] * (40 - right))
            save_evaluation(connection, model.id, "1" * 64, *evaluation, dataset=BIRDS)
    before = listed(cli)
    assert before[BIRDS]["min_accuracy"] is None

    # When the dataset requires more, then the gate refuses it
    cli(BIRDS, "--min-accuracy", "0.9", "--min-class-recall", "0.95")
    cli(BIRDS, "--min-class-recall", "off")
    assert client.promote(heron.id).reason == "refused: accuracy is 0.7500, below the minimum of 0.9"
    assert listed(cli) == before | {BIRDS: before[BIRDS] | {"min_accuracy": 0.9}}
    assert cli(BIRDS).stdout.split()[-8:] == ["birds", "0.9", "off", "0.01", "0.01", "0.05", "0.03", "off"]

    # And by default it does not
    cli(BIRDS, "--defaults")
    assert listed(cli) == before
    assert client.promote(heron.id).promote


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist", "--min-accuracy", "90"), "min accuracy must be from 0 to 1, got 90."),
        (("mnist", "--margin", "nan"), "margin must be from 0 to 1, got nan."),
        (("mnist", "--significance", "0"), "significance must be more than 0 and at most 1, got 0."),
        (("mnist", "--max-image-microseconds", "inf"), "microseconds must be more than 0, got inf."),
        (("mnist", "--min-accuracy", "high"), "'high' is neither a number nor 'off'."),
        (("brids", "--margin", "0.1"), "There is no dataset 'brids'."),
        (("--margin", "0.1"), "Name the dataset, for example `labelmill gate mnist --defaults`."),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(cli, arguments, message):
    before = listed(cli)
    refused = cli(*arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert listed(cli) == before
