"""The report page, made from given facts: what it shows, and that no data can inject markup."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.shadows import Comparison
from jobs.ledger.learning.corrections import LiveAccuracy
from jobs.ledger.learning.models import StoredEvaluation, StoredVerdict
from jobs.ledger.learning.runs import Run
from jobs.models.evaluation import NO_ANSWER
from jobs.models.model import MNIST_INPUT, Model
from jobs.schema import RunState
from labelmill.labels.labelled_jobs import compare_with_known
from labelmill.labels.reviewing import Review, ReviewImage
from labelmill.reporting import charts
from labelmill.reporting import report_rows as tables
from labelmill.reporting.contact_sheet import render_contact_sheet
from labelmill.reporting.labelled_job_page import render_labelled
from labelmill.reporting.model_page import render
from labelmill.reporting.report_data import Report, Rival
from tests.evaluations import DIGITS, made_evaluation
from worker.learning.recipes import recipe_for

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)

HOSTILE = (
    "<script>alert(1)</script>",
    '" onmouseover="alert(2)',
    "' onload='alert(3)",
    "{{ 7 * 7 }}",
    "&lt;b&gt;",
    "</style></title>",
    "Ärmel 長袖 👕",
    "a\nb",
    "\u202egnp.exe",
    "-->",
)

#: Elements without an end tag.
VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}

#: Elements that begin a line or a cell of their own.
BLOCKS = {"p", "li", "br", "h1", "h2", "h3", "tr", "th", "td", "caption", "summary", "div"}


class Page(HTMLParser):
    """Parses a page as a browser does, and fails if elements are not properly nested."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag in BLOCKS:
            self.words.append(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        """Return all words, with single spaces between them."""
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of each element of this kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def answers_of(truth, *, wrong):
    """Return the right answers, except for every n-th image."""
    return [(label + 1) % 10 if n % wrong == 0 else label for n, label in enumerate(truth)]


def make_model(model_id="06h0w99y8275b8s6", *, aliases=(), classes=DIGITS, run=None):
    return Model(
        id=model_id,
        architecture="mlp",
        sha256="e6" * 32,
        size_bytes=2_690_331,
        classes=classes,
        input_spec=MNIST_INPUT,
        accuracy=0.98,
        metrics={"run": run, "precision": "bfloat16"},
        created_at=NOON,
        aliases=aliases,
    )


def stored(truth, answers, *, classes=DIGITS):
    evaluation, kept = made_evaluation(truth, answers, classes=classes)
    return StoredEvaluation("ab" * 32, evaluation, kept, NOON)


def make_run():
    return Run(
        id="06h0w97q1v5eqnwm",
        state=RunState.DONE,
        recipe=recipe_for("mlp", "quick", seed=20).to_json(),
        slot=None,
        data_source="mnist",
        data_fingerprint="cd" * 32,
        data={
            "train_images": 55_200,
            "validation_images": 5_000,
            "corrections": 0,
            "live_images": 0,
            "left_out": 0,
        },
        owner="a trainer",
        requested_at=NOON,
        started_at=NOON,
        finished_at=NOON + timedelta(minutes=2, seconds=5),
        model_id="06h0w99y8275b8s6",
        verdict="promoted",
        error=None,
        accuracy=0.98,
        epochs_done=7,
    )


def make_epochs(count):
    return [
        SimpleNamespace(
            epoch=epoch,
            loss=0.4 / epoch,
            accuracy=1 - 0.1 / epoch,
            val_loss=0.2 / epoch,
            val_accuracy=1 - 0.05 / epoch,
            seconds=4.0,
        )
        for epoch in range(1, count + 1)
    ]


def make_verdict(**changes):
    verdict = StoredVerdict(
        id="06h0w99y82ccccc1",
        run_id=None,
        model_id="06h0w99y8275b8s6",
        champion_id="06h0w0000000000a",
        promote=True,
        forced=False,
        checks=[
            {"name": "accuracy", "passed": True, "text": "accuracy is 0.9871, 0.967 or more"},
            {"name": "test set", "passed": True, "text": "it gets 31 right and 12 the other way round"},
        ],
        created_at=NOON,
    )
    return replace(verdict, **changes)


TRUTH = [n % 10 for n in range(1000)]


def make_facts(**changes):
    """Return the facts of a model that is better than the champion, with everything known about it."""
    facts = Report(
        model=make_model(),
        stored=stored(TRUTH, answers_of(TRUTH, wrong=100)),
        rival=Rival(
            make_model("06h0w0000000000a", aliases=("champion",)),
            is_champion=True,
            stored=stored(TRUTH, answers_of(TRUTH, wrong=30)),
            same_images=True,
        ),
        verdict=make_verdict(),
        promotion=None,
        run=make_run(),
        epochs=make_epochs(7),
        live=LiveAccuracy(right=0, labelled=0),
        shadowing=Comparison("06h0w99y8275b8s6", chunks=0, images=0, disagreements=0),
    )
    return replace(facts, **changes)


def bare(**changes):
    """Return the facts of a model of which only the evaluation is known."""
    return make_facts(**{"rival": None, "verdict": None, "run": None, "epochs": ()} | changes)


# ---- the page -----------------------------------------------------------------------------------------


def page_on_a_job(name="a.png", classes=DIGITS):
    """Return the report on a job of a hundred images with nine mistakes, eight of which can be read."""
    predictions = [
        Prediction(place, f"{classes[place % 10]}/{name}", classes[max(place, 10) % 10], 0.9, None, None, "m")
        for place in range(100)
    ]
    found = compare_with_known(predictions, make_model(classes=classes), {})
    return render_labelled("06h0w97q1v5eqnwm", found, dict.fromkeys(range(9), b"a picture"))


def contact_sheet(name="a.png", label="7"):
    images = tuple(ReviewImage(place, name, label, 0.5, b"a picture") for place in range(3))
    return render_contact_sheet(Review("06h0w97q1v5eqnwm", "m", images, 2, 1))


@pytest.mark.parametrize(
    "write",
    [lambda: render(make_facts()), lambda: render(bare()), page_on_a_job, contact_sheet],
    ids=["all is known", "hardly anything is known", "a job", "a contact sheet"],
)
def test_the_page_is_whole_and_stands_alone(write):
    # Given a page
    text = write()

    # Then all elements are nested properly, and every id is unique and every reference to an id valid
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)

    # And every picture has an alternative text, and there is one main heading
    assert all(picture["alt"] for picture in page.all("img"))
    assert [tag for tag, _ in page.elements if tag == "h1"] == ["h1"]
    assert page.all("html") == [{"lang": "en"}]

    # And it runs no code and loads nothing
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe", text)
    assert all(picture["src"].startswith("data:image/png;base64,") for picture in page.all("img"))
    policy = next(each for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_nothing_in_the_data_gets_out_of_its_place():
    # Given names with markup in classes, alias, source, recipe and verdict
    evil = "<img src=x onerror=alert(4)>"
    own = stored(TRUTH, answers_of(TRUTH, wrong=7), classes=HOSTILE)
    mistakes = tuple(replace(each, png='"><script>alert(5)</script>') for each in own.evaluation.mistakes)
    facts = make_facts(
        model=replace(make_model(aliases=(evil,), classes=HOSTILE), architecture=evil),
        stored=replace(own, evaluation=replace(own.evaluation, mistakes=mistakes)),
        rival=Rival(
            make_model("06h0w0000000000a", classes=HOSTILE),
            is_champion=True,
            stored=stored(TRUTH, answers_of(TRUTH, wrong=9), classes=HOSTILE),
            same_images=True,
        ),
        run=replace(
            make_run(), data_source=evil, recipe={evil: {evil: evil}, "profile": evil, "architecture": evil}
        ),
        verdict=make_verdict(checks=[{"name": evil, "passed": False, "text": evil}]),
    )

    # When the page is made
    page = Page(render(facts))

    # Then they are shown as text, letter by letter
    assert page.text.count(evil) >= 6
    for name in HOSTILE:
        assert " ".join(name.split()) in page.text
    titles = {attributes.get("title") for attributes in page.all("th")}
    assert set(HOSTILE) <= titles

    # And none of them became an element or an attribute
    plain = Page(render(make_facts()))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert {name for _, attributes in page.elements for name in attributes} == {
        name for _, attributes in plain.elements for name in attributes
    }


@pytest.mark.parametrize("page", ["a job", "a contact sheet"])
def test_names_of_images_and_classes_stay_text(page):
    # Given names with markup; a folder's name has no slash
    names = tuple(name.replace("/", ":") for name in HOSTILE)
    if page == "a job":
        hostile, plain = page_on_a_job(names[0], names), page_on_a_job()
    else:
        hostile, plain = contact_sheet(*names[:2]), contact_sheet()

    # Then they are shown as text, and none of them became an element
    page, plain = Page(hostile), Page(plain)
    for name in names[:2]:
        assert name in page.text
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]


def test_every_accuracy_names_its_dataset_and_version():
    # Given a model that was evaluated on another version than the champion
    ours, theirs = (replace(stored(TRUTH, TRUTH), dataset="birds", version=version) for version in (3, 2))
    rival = Rival(make_model("06h0w0000000000a"), is_champion=True, stored=theirs, same_images=False)
    run = replace(make_run(), dataset="birds", dataset_version=4)

    # Then the page names both, and the version that the run learnt
    page = Page(render(make_facts(stored=ours, rival=rival, run=run)))
    assert "of the 1,000 evaluation images of birds version 3 are correct" in page.text
    assert "On 1,000 evaluation images of birds version 3. Speed" in page.text
    assert "was evaluated on other images (birds version 2)" in page.text
    assert "dataset birds version 4" in page.text


def test_the_headline_says_how_good_and_how_it_was_judged():
    facts = make_facts()
    page = Page(render(facts))
    assert "99.00 %" in page.text
    assert "of the 1,000 evaluation images of mnist are correct: 990, and 10 wrong." in page.text
    assert "95 % interval: 98.00–100.00 %" in page.text
    both = (facts.evaluation, facts.rival.evaluation)
    assert " ".join(["macro F1", *(f"{100 * each.macro_f1:.2f} %" for each in both)]) in page.text
    shares = [f"{100 * each.balanced_accuracy:.2f} %" for each in both]
    assert " ".join(["balanced accuracy", *shares]) in page.text
    assert "The champion, 06h0w0000000000a, reaches 96.60 % on the same images." in page.text
    assert "✓ accuracy: accuracy is 0.9871, 0.967 or more" in page.text


# ---- tables -------------------------------------------------------------------------------------------


def test_one_mistake_among_thousands_is_seen():
    # Given 9,999 right answers and a wrong one
    truth = [0] * 5000 + [1] * 5000
    evaluation, _ = made_evaluation(truth, [1, *truth[1:]], classes=("a", "b"))

    # Then the wrong one has its full colour, and an empty cell has none
    rows = tables.confusion_matrix(evaluation)
    assert rows[0].cells[1] == tables.Cell(1, 1.0, "wrong")
    assert rows[1].cells[0] == tables.Cell(0, 0.0, "none")
    assert rows[1].cells[1] == tables.Cell(5000, 1.0, "right")


def test_images_without_an_answer_have_a_column_where_there_are_some():
    evaluation, _ = made_evaluation([0, 1, 1], [0, 1, NO_ANSWER], classes=("a", "b"))
    assert [len(row.cells) for row in tables.confusion_matrix(evaluation)] == [3, 3]
    assert tables.confusion_matrix(evaluation)[1].cells[2].count == 1
    evaluation, _ = made_evaluation([0, 1], [0, 1], classes=("a", "b"))
    assert [len(row.cells) for row in tables.confusion_matrix(evaluation)] == [2, 2]


def test_both_sets_stand_side_by_side_with_the_images_whose_label_changes():
    # Given two models, equally good on the test set; on 80 corrected images, only this one is right about 60
    truth = [number % 10 for number in range(80)]
    wrong = [(label + 1) % 10 if place < 60 else label for place, label in enumerate(truth)]
    test = stored(truth, answers_of(truth, wrong=8))
    page = Page(
        render(
            bare(
                stored=test,
                live_set=stored(truth, truth),
                rival=Rival(make_model("before"), True, test, True, live_set=stored(truth, wrong)),
            )
        )
    )
    # Then the page shows both, and what changes on each
    assert "test set 80 87.50 % 87.50 % 0 0 1.0000" in page.text
    assert "live set 80 100.00 % 25.00 % 60 0 below 0.0001" in page.text
    assert "Live set: 48 that only this model gets right" in page.text
    assert "Test set: " not in page.text


def test_a_class_that_was_never_seen_has_no_shares():
    evaluation, _ = made_evaluation([0, 0], [0, 0], classes=("a", "b"))
    assert tables.by_class(evaluation, None)[1] == tables.ClassRow("b", 0, None, None, None, None)
    assert "–" in Page(render(bare(stored=stored([0, 0], [0, 0])))).text


# ---- diagrams -----------------------------------------------------------------------------------------


def inside(svg: str) -> bool:
    """Tell whether all marks are within the picture."""
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    across = [float(n) for n in re.findall(r'\b(?:x|cx|x1|x2)="([-\d.]+)"', svg)]
    down = [float(n) for n in re.findall(r'\b(?:y|cy|y1|y2)="([-\d.]+)"', svg)]
    for points_ in re.findall(r'points="([^"]*)"', svg):
        across += [float(pair.split(",")[0]) for pair in points_.split()]
        down += [float(pair.split(",")[1]) for pair in points_.split()]
    return min(across) >= 0 and max(across) <= width and min(down) >= 0 and max(down) <= height


@pytest.mark.parametrize("epochs", [1, 2, 7, 30, 31, 300, 1000])
@pytest.mark.parametrize("draw", [charts.loss_curves, charts.accuracy_curves])
def test_curves_of_any_length_fit_their_picture(draw, epochs):
    # Given a training run of that many epochs
    values = [0.9 / epoch for epoch in range(1, epochs + 1)]
    svg = str(
        draw("x", [charts.Series("training", "theirs", values), charts.Series("held-out", "ours", values)])
    )

    # Then the curves are within the picture, with numbers on both axes, and dots only for few epochs
    assert inside(svg)
    assert Page(svg).all("svg")
    assert [len(line.split()) for line in re.findall(r'points="([^"]*)"', svg)] == [epochs, epochs]
    assert svg.count('class="dot') == (2 * epochs if epochs <= 30 else 0)
    numbers = re.findall(r'text-anchor="middle">(\d+)<', svg)
    assert numbers[0] == "1"
    assert len(numbers) == len(set(numbers))
    assert len(re.findall(r'text-anchor="end"', svg)) >= 2


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=50),
    st.sampled_from([charts.loss_curves, charts.accuracy_curves]),
)
def test_a_training_that_ran_away_is_drawn_all_the_same(values, draw):
    svg = str(draw("x", [charts.Series("training", "theirs", values)]))
    assert inside(svg)
    assert not re.search(r'(?:points|x|y|cx|cy)="[^"]*(?:nan|inf)', svg)


@given(st.floats(1e-9, 1e6), st.floats(1.000001, 1e9))
def test_ticks_are_round_few_and_within_their_axis(low, factor):
    # Given any axis, Then its ticks are sorted, few and within its range
    high = low * factor
    for ticks in (charts.log_ticks(low, high), charts.linear_ticks(low, high)):
        assert 1 <= len(ticks) <= 12
        assert ticks == sorted(set(ticks))
        assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)
