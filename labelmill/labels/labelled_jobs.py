"""Evaluate predictions of labelled images: by the labels of their manifest, or the names of their folders.

The predictions are those of a job, or made here for a folder of images. Nothing is stored.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from jobs.errors import ImageError, ModelRefused, UserError
from jobs.ledger.jobs.outcomes import Prediction
from jobs.models.dataset import known_label
from jobs.models.evaluation import MISTAKES, Figures
from jobs.models.model import Model, name_classes
from jobs.settings import Settings
from jobs.storage.registry import fetch_model
from jobs.storage.store import Store
from producer.sources import SourceImage

if TYPE_CHECKING:
    from worker.predicting.classifier import Classifier

#: How many labels that are not classes are named, and how many are counted to find the most frequent ones.
_NAMED_LABELS: Final = 5
_COUNTED_LABELS: Final = 1_000

#: Images of a folder that are classified at a time, and about how many bytes of files.
_WINDOW_IMAGES: Final = 2_048
_WINDOW_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LabelledMistake:
    """A labelled image that got another label."""

    index: int
    name: str
    truth: str
    label: str
    confidence: float


@dataclass(frozen=True, slots=True)
class LabelledEvaluation:
    """How well the predicted labels of images agree with their known ones."""

    model: str
    figures: Figures
    errors: int  # images with an error; they count as wrong
    corrected: int  # images whose true label is a correction
    unlabelled: int  # images whose known label is not one of the model's classes; they are left out
    unlabelled_folders: tuple[str, ...]  # some of these labels
    learnt: int  # images that were corrected before the model's training run; they are left out
    mistakes: tuple[LabelledMistake, ...]  # highest confidence first, MISTAKES at most


def compare_with_known(
    predictions: Iterable[Prediction],
    model: Model,
    known: Mapping[int, str],
    corrected: Mapping[int, str] | None = None,
    learnt: Container[int] = (),
) -> LabelledEvaluation:
    """Compare predictions with the true labels that are known, reading each prediction once.

    `known` has those of a manifest, by index; the others are the names of the images' folders. An image in
    `corrected`, by index, has that label instead. Corrections do not add images: people correct
    what looks wrong, so the figures would be too low. Images in `learnt`, by index, are left out: the model
    may have seen them in training. Raises UserError if no image has a label.
    """
    corrections = corrected or {}
    places = {name: place for place, name in enumerate(model.classes)}
    no_answer = len(places)
    counts: Counter[tuple[int, int]] = Counter()
    others: Counter[str] = Counter()
    left_out = used = seen = 0

    def mistakes() -> Iterator[LabelledMistake]:
        nonlocal left_out, used, seen
        for each in predictions:
            if each.index in learnt:
                seen += 1
                continue
            label = known_label(each.name, known.get(each.index))
            if label not in places:
                left_out += 1
                if label in others or len(others) < _COUNTED_LABELS:
                    others[label] += 1
                continue
            truth = corrections.get(each.index, label)
            used += each.index in corrections
            counts[places[truth], no_answer if each.label is None else places[each.label]] += 1
            if each.label not in (None, truth):
                yield LabelledMistake(each.index, each.name, truth, each.label or "", each.confidence or 0.0)

    # `mistakes` also counts, because the predictions can be read only once.
    worst = heapq.nsmallest(MISTAKES, mistakes(), key=lambda mistake: (-mistake.confidence, mistake.index))
    if not counts:
        raise UserError(_no_label(model, left_out, seen, others))
    confusion = [[counts[truth, place] for place in range(no_answer + 1)] for truth in range(no_answer)]
    return LabelledEvaluation(
        model=model.id,
        figures=Figures.from_confusion(model.classes, confusion),
        errors=sum(row[-1] for row in confusion),
        corrected=used,
        unlabelled=left_out,
        unlabelled_folders=tuple(name for name, _count in others.most_common(_NAMED_LABELS)),
        learnt=seen,
        mistakes=tuple(worst),
    )


def classify_images(
    store: Store,
    settings: Settings,
    model: Model,
    images: Iterable[SourceImage],
    on_progress: Callable[[int], None],
) -> Iterator[Prediction]:
    """Run a model on images in this process, in its main thread, and yield the predictions in order.

    `on_progress` is called with the number of images done. Raises ModelRefused if the model's file is
    missing, changed, or does not run; Unavailable.
    """
    from worker.predicting.classifier import Classifier
    from worker.predicting.timings import Timings
    from worker.predicting.windows import classify_images as classify

    path = fetch_model(store, model, settings.cache_dir)
    try:
        classifier: Classifier = Classifier.load_registered(path, model)
        classifier.warm_up()
        done = 0
        for names, contents in _windows(images):
            with classifier.network.translated_errors():
                found = classify(names, contents, classifier, settings, Timings())
            for place, name in enumerate(names):
                error = found.error[place] if found.error else None
                detail = found.detail[place] if found.detail else None
                label, confidence = found.label[place], found.confidence[place]
                yield Prediction(done + place, name, label, confidence, error, detail, model.id)
            done += len(names)
            on_progress(done)
    except ModelRefused as error:
        raise ModelRefused(f"Model {model.id} cannot be evaluated: {error}") from error


def _windows(images: Iterable[SourceImage]) -> Iterator[tuple[list[str], list[bytes | ImageError]]]:
    """Yield the images' names and contents, a limited number of images and bytes at a time."""
    names: list[str] = []
    contents: list[bytes | ImageError] = []
    size = 0
    for image in images:
        assert image.data is not None or image.error is not None  # noqa: S101 -- a source gives one of them
        names.append(image.name)
        contents.append(image.data if image.data is not None else image.error)  # type: ignore[arg-type]
        size += len(image.data or b"")
        if len(names) == _WINDOW_IMAGES or size >= _WINDOW_BYTES:
            yield names, contents
            names, contents, size = [], [], 0
    if names:
        yield names, contents


def _no_label(model: Model, images: int, learnt: int, labels: Counter[str]) -> str:
    """Return why nothing can be compared, and what to do."""
    if learnt and not images:
        return (
            f"All {learnt:,} images were corrected before model {model.id} was trained, so it may have "
            "learnt them: evaluate it on other images."
        )
    if not images:
        return "There is no prediction yet, so there is nothing to evaluate."
    named = [name for name, _count in labels.most_common(_NAMED_LABELS) if name]
    found = f"their labels or folders are {', '.join(named)}" if named else "they are in no folder"
    return (
        f"None of the {images:,} images is in a folder named after a class of model {model.id} "
        f"({name_classes(model.classes)}): {found}. Sort the images into one folder per class, or submit a "
        "manifest with the column label."
    )
