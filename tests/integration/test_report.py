"""`labelmill models report` gathers the facts about a model from a real ledger, and writes them to a file."""

from __future__ import annotations

import pytest

from jobs.ids import new_id
from jobs.ledger.learning.corrections import NewCorrection, save_corrections
from jobs.ledger.learning.models import add_model, add_verdict, move_champion, roll_back, save_evaluation
from jobs.ledger.learning.runs import add_epoch, claim_run, describe_data, finish_run, request_run
from jobs.models.model import MNIST_INPUT
from jobs.models.promotion import Compared, compare_answers
from labelmill.cli import app
from labelmill.console.terminal import ExitCode
from labelmill.reporting.model_page import render
from labelmill.reporting.report_data import load_report
from tests.evaluations import DIGITS, made_evaluation
from worker.learning.recipes import recipe_for

TRUTH = [n % 10 for n in range(200)]
IMAGES, OTHER_IMAGES = "ab" * 32, "cd" * 32


def add(ledger, name, *, wrong=0, images=IMAGES, classes=DIGITS, run=None, truth=TRUTH):
    """Add a model with that many mistakes; if `wrong` is None, it was never evaluated."""
    with ledger.transaction() as connection:
        model_id = add_model(
            connection,
            model_id=new_id(),
            architecture="mlp",
            sha256=name.encode().hex().rjust(64, "0"),
            size_bytes=1,
            classes=classes,
            input_spec=MNIST_INPUT,
            accuracy=None,
            metrics={"run": run} if run else {},
        )
        if wrong is not None:
            answers = [(label + 1) % len(classes) for label in truth[:wrong]] + truth[wrong:]
            save_evaluation(connection, model_id, images, *made_evaluation(truth, answers, classes=classes))
    return model_id


def promote(ledger, model_id, before=None, **verdict):
    with ledger.transaction() as connection:
        verdict_id = add_verdict(
            connection,
            **{
                "run_id": None,
                "model_id": model_id,
                "champion_id": before,
                "promote": True,
                "forced": False,
                "checks": [],
            }
            | verdict,
        )
        move_champion(connection, model_id, previous_id=before, how="promote", verdict_id=verdict_id)


def facts_of(ledger, model_id):
    with ledger.reading() as connection:
        return load_report(connection, model_id)


def test_a_trained_model_comes_with_its_run_its_verdict_and_the_champion(ledger):
    # Given a champion, and a run of two epochs whose model was refused
    champion = add(ledger, "champion", wrong=20)
    promote(ledger, champion)
    run_id = new_id()
    check = {"name": "test set", "passed": False, "text": "it gets 3 right that the champion gets wrong"}
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe=recipe_for("mlp", "quick", seed=7).to_json())
        claim = claim_run(connection, run_id, owner="a trainer")
        describe_data(
            connection,
            claim,
            source="mnist",
            fingerprint="ef" * 32,
            data={"train_images": 800, "validation_images": 80, "corrections": 200, "left_out": 3},
        )
        for epoch in (1, 2):
            add_epoch(
                connection,
                claim,
                {
                    "epoch": epoch,
                    "loss": 0.5,
                    "accuracy": 0.8,
                    "val_loss": 0.4,
                    "val_accuracy": 0.9,
                    "seconds": 1.5,
                },
            )
    model = add(ledger, "challenger", wrong=25, run=run_id)
    with ledger.transaction() as connection:
        add_verdict(
            connection,
            run_id=run_id,
            model_id=model,
            champion_id=champion,
            promote=False,
            forced=False,
            checks=[check],
        )
        finish_run(connection, claim, model_id=model, verdict="refused")

    # When the facts are gathered
    facts = facts_of(ledger, model)

    # Then they include the run, its epochs, the verdict and the champion
    assert facts.run.id == run_id
    assert [epoch.epoch for epoch in facts.epochs] == [1, 2]
    assert facts.verdict.checks == [check]
    assert (facts.rival.model.id, facts.rival.is_champion, facts.rival.same_images) == (champion, True, True)

    # And the page shows them
    page = " ".join(render(facts).split())
    assert "200 corrections joined the training images; 3 were left out" in page
    assert "it gets 3 right that the champion gets wrong" in page
    assert champion in page


def test_the_champion_is_shown_beside_the_one_before(ledger):
    # Given three champions, one after the other
    first, second, third = (add(ledger, name, wrong=wrong) for name, wrong in [("a", 9), ("b", 6), ("c", 3)])
    promote(ledger, first)
    assert facts_of(ledger, first).rival is None
    promote(ledger, second, first)
    promote(ledger, third, second, forced=True)

    # Then the third is compared with the second, and the others with the third
    facts = facts_of(ledger, third)
    assert (facts.rival.model.id, facts.rival.is_champion) == (second, False)
    assert facts.promotion.forced
    assert facts_of(ledger, first).rival.model.id == third

    # And when the third is rolled back, the second is compared with the first
    with ledger.transaction() as connection:
        roll_back(connection, second)
    facts = facts_of(ledger, second)
    assert (facts.rival.model.id, facts.rival.is_champion) == (first, False)
    assert facts.promotion.how == "rollback"

    # And when the second is rolled back too, the first has no other model beside it, and the page says why
    with ledger.transaction() as connection:
        roll_back(connection, first)
    facts = facts_of(ledger, first)
    assert facts.rival is None
    page = " ".join(render(facts).split())
    assert f"It was restored by a rollback from <code>{second}</code>. No other model was the" in page
    assert "No other model was the champion before it," not in page


@pytest.mark.parametrize(
    "other",
    [{"images": OTHER_IMAGES}, {"classes": tuple("abcdefghij")}, {"wrong": None}],
    ids=["other images", "other classes", "never evaluated"],
)
def test_what_cannot_be_compared_is_not(ledger, other):
    # Given a champion whose evaluation cannot be compared
    champion = add(ledger, "champion", **other)
    promote(ledger, champion)
    model = add(ledger, "challenger", wrong=4)

    # Then the champion is named, but not compared
    facts = facts_of(ledger, model)
    assert facts.rival.model.id == champion
    assert not facts.rival.same_images
    assert "McNemar" not in render(facts)


def test_the_champion_is_compared_on_the_same_images_even_where_others_came_later(ledger):
    # Given a champion that was evaluated on the model's images, and then on others
    champion = add(ledger, "champion", wrong=8)
    promote(ledger, champion)
    with ledger.transaction() as connection:
        save_evaluation(connection, champion, OTHER_IMAGES, *made_evaluation(TRUTH, TRUTH))
    model = add(ledger, "challenger", wrong=4)

    # Then both are compared on those images
    facts = facts_of(ledger, model)
    assert facts.rival.same_images
    assert facts.rival.stored.data_fingerprint == IMAGES
    assert facts.rival.evaluation.correct == 192


def test_models_of_a_thousand_classes_are_compared_and_reported(ledger):
    # Given two models of 1,000 classes, evaluated on two images of each, and a champion with more mistakes
    classes = tuple(f"class {number}" for number in range(1_000))
    truth = [number % 1_000 for number in range(2_000)]
    champion = add(ledger, "champion", wrong=1_500, classes=classes, truth=truth)
    promote(ledger, champion)
    model = add(ledger, "challenger", wrong=600, classes=classes, truth=truth)

    # Then the answers beyond 255 are told apart: 900 images are right only by the challenger
    facts = facts_of(ledger, model)
    assert facts.evaluation.correct == 1_400
    assert compare_answers(facts.stored.answers, facts.rival.stored.answers) == Compared(500, 900, 0, 600)

    # And the page stays small: it lists confusions and the worst classes
    page = " ".join(render(facts).split())
    assert "The 40 of 1,000 classes with the lowest recall" in page
    assert "With 1000 classes the matrix would fill the page" in page
    assert len(page) < 200_000


def test_corrections_of_its_predictions_are_told(ledger):
    # Given a model with two corrected predictions, one of which was right
    model = add(ledger, "a")
    row = {"job_id": new_id(), "name": "x", "predicted": "3", "confidence": 0.7, "model_id": model}
    with ledger.transaction() as connection:
        save_corrections(
            connection,
            [
                NewCorrection(index=0, label="3", image_sha256="0" * 64, **row),
                NewCorrection(index=1, label="5", image_sha256="1" * 64, **row),
            ],
        )

    # Then the page counts them
    assert (
        "People have given the true label of 2 of its predictions in jobs; 1 of them were right"
        in " ".join(render(facts_of(ledger, model)).split())
    )


# ---- at the console -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_command_writes_a_page_and_over_nothing(ledger, run_command, short_folder, monkeypatch):
    # Given an evaluated model
    model, other = add(ledger, "a", wrong=5), add(ledger, "b", wrong=None)
    monkeypatch.chdir(short_folder)

    def reported(*arguments):
        return run_command(app, "models", "report", *arguments)

    # When its report is requested, Then the page is in the working folder, and its path on stdout
    done = reported(model)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"model-{model}.html\n", "")
    page = (short_folder / f"model-{model}.html").read_text(encoding="utf-8")
    assert f"<title>Model {model}: 97.50\u00a0% right</title>" in page

    # And an existing file is overwritten only with --force
    mine = short_folder / "mine.html"
    mine.write_text("mine")
    refused = reported(model, "--output", mine)
    assert refused.exit_code == ExitCode.USAGE
    assert "exists already: --force overwrites it" in refused.stderr
    assert mine.read_text() == "mine"
    assert reported(model, "--output", mine, "--force").stdout == f"{mine}\n"
    assert mine.read_text(encoding="utf-8") == page

    # And `-` writes only the page to stdout
    done = reported(model, "--output", "-")
    assert (done.exit_code, done.stdout, done.stderr) == (0, page, "")
    assert not (short_folder / "-").exists()

    # And if there is no report, one sentence says why
    for asked, words in [
        (other, f"labelmill models evaluate {other}"),
        ("nothing", "There is no model 'nothing'"),
    ]:
        failed = reported(asked)
        assert failed.exit_code == ExitCode.USAGE
        assert words in failed.stderr
        assert not (short_folder / f"model-{asked}.html").exists()
