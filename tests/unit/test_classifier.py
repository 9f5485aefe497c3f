"""The classifier: one answer per image, in order, as Keras itself gives it, or a refusal."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from jobs.errors import ModelRefused
from jobs.models.model import MNIST_INPUT, InputSpec
from tests.programs import run_python
from worker.learning.fit import save
from worker.learning.networks import build
from worker.predicting.classifier import BATCH, LARGE_BATCH, SMALL_BATCH, Classifier, Predictions
from worker.predicting.tensorflow_runtime import keras

CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(5)
    return build("mlp", MNIST_INPUT, len(CLASSES))


@pytest.fixture(scope="module")
def file(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.keras"
    save(model, path)
    return path


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def linear(kernel: np.ndarray, activation: str = "softmax") -> keras.Model:
    """Return a model of one unscaled layer with these weights, whose answers can be computed by hand."""
    model = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation=activation, use_bias=False),
        ]
    )
    model.set_weights([kernel])
    return model


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_the_most_probable_classes_are_those_of_keras_itself(
    file: Path, model: keras.Model, top_k: int
) -> None:
    # When a number of classes is asked for, which may be more than the model has
    images = pixels(300)
    predictions = Classifier.load(file, CLASSES, MNIST_INPUT).predict(images, top_k)
    # Then they are the best ones of the model that was saved, the label first.
    expected = model.predict(images, verbose=0)
    assert predictions.top is not None
    index, confidence = predictions.top
    assert (index == np.argsort(-expected, axis=1, kind="stable")[:, :top_k]).all()
    assert abs(confidence - -np.sort(-expected, axis=1)[:, :top_k]).max() < 1e-5
    assert (index[:, 0] == predictions.class_index).all()
    assert (confidence[:, 0] == predictions.confidence).all()


def test_all_classes_are_listed_once_if_more_are_asked_for_and_they_are_equal() -> None:
    # Given a model of three classes that are equally probable, When five are asked for
    probabilities = np.array([[0.25, 0.5, 0.25], [0, 0, 1]], np.float32)
    found = Predictions.of(probabilities, 5)
    # Then of equal ones the first is first.
    assert found.top is not None
    assert found.top[0].tolist() == [[1, 0, 2], [2, 0, 1]]
    assert found.top[1].tolist() == [[0.5, 0.25, 0.25], [1, 0, 0]]


def near(size: int) -> tuple[int, int, int]:
    return size - 1, size, size + 1


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((36, 36, 3), (SMALL_BATCH, 128, BATCH)),  # 3.9 kB
        ((64, 64, 3), (SMALL_BATCH, 128)),
        ((224, 224, 3), (SMALL_BATCH,)),
    ],
)
def test_the_larger_a_picture_the_fewer_are_in_a_batch(
    shape: tuple[int, int, int], sizes: tuple[int, ...]
) -> None:
    # Given a model that says whether the red of a picture's first pixel is bright
    height, width, _ = shape
    model = keras.Sequential(
        [
            keras.Input(shape, dtype="uint8"),
            keras.layers.Cropping2D(((0, height - 1), (0, width - 1))),
            keras.layers.Flatten(),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    model.set_weights([np.array([[-9, 9], [0, 0], [0, 0]], np.float32), np.array([4, -4], np.float32)])
    classifier = Classifier.of_keras(
        model, ("dark", "bright"), InputSpec(width=width, height=height, mode="RGB")
    )
    classifier.warm_up()
    # Then pictures are classified in batches of these sizes
    assert (tuple(classifier.network._traced), classifier.batch) == (sizes, sizes[-1])
    # and each of any number of pictures has its own answer.
    for count in (0, 1, 33, 130, 161):
        bright = np.random.default_rng(count).integers(2, size=count)
        images = np.zeros((count, *shape), np.uint8)
        images[:, 0, 0, 0] = 255 * bright
        assert classifier.predict(images).class_index.tolist() == bright.tolist()


def test_a_network_says_how_many_large_pictures_it_computes_at_a_time() -> None:
    # Given a network that computes two large pictures at a time
    class Pairs:
        large_pictures = 2
        sizes: ClassVar[list[int]] = []

        def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            self.sizes.append(len(batch))
            return np.ones((len(batch), 1), np.float32)

        def translated_errors(self) -> AbstractContextManager[None]:
            return nullcontext()

    # When three are classified, then it gets two batches of two; small pictures have larger batches.
    for side, sizes in ((224, [2, 2]), (28, [SMALL_BATCH])):
        Pairs.sizes.clear()
        classifier = Classifier(Pairs(), ("a",), InputSpec(side, side, "RGB"))
        assert classifier.predict(np.zeros((3, side, side, 3), np.uint8)).class_index.tolist() == [0, 0, 0]
        assert Pairs.sizes == sizes


def test_grey_pictures_may_have_an_axis_for_their_channel() -> None:
    # Given the same network without and with a channel axis
    kernel = np.random.default_rng(2).normal(0, 0.01, (784, 10)).astype(np.float32)
    plain = linear(kernel)
    with_axis = keras.Sequential([keras.Input((28, 28, 1)), *plain.layers])
    with_axis.set_weights([kernel])
    # Then both answer the same.
    images = pixels(40)
    one, other = (
        Classifier.of_keras(each, CLASSES, MNIST_INPUT).predict(images) for each in (plain, with_axis)
    )
    assert one.class_index.tolist() == other.class_index.tolist()
    np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-6)


def test_every_number_of_images_gets_as_many_answers_in_order_from_few_traces(file: Path) -> None:
    # Given the answers to 6,000 images
    classifier = Classifier.load(file, CLASSES, MNIST_INPUT)
    classifier.warm_up()
    images = pixels(6000)
    whole = classifier.predict(images)
    assert len(set(whole.class_index.tolist())) > 1
    for size in (0, 1, *near(SMALL_BATCH), *near(128), 300, *near(BATCH), 1500, *near(LARGE_BATCH), 6000):
        # When any number of them is classified, also from memory that is not contiguous
        for part in (images[:size], images[::-1][:size][::-1]):
            predictions = classifier.predict(part)
            # Then each has its own answer
            assert len(predictions.class_index) == len(predictions.confidence) == size
        start = len(images) - size
        assert (predictions.class_index == whole.class_index[start:]).all()
        assert np.allclose(predictions.confidence, whole.confidence[start:], atol=1e-6)
    # and TensorFlow traced once per batch size: every further trace would stay in memory.
    traces = {
        size: each.experimental_get_tracing_count() for size, each in classifier.network._traced.items()
    }
    assert traces == {SMALL_BATCH: 1, 128: 1, BATCH: 1, LARGE_BATCH: 1}


def test_an_answer_that_is_no_probability_is_marked_and_its_neighbours_are_not() -> None:
    # Given a model that overflows if the first pixel is lit, and otherwise looks at the second
    kernel = np.zeros((784, 10), np.float32)
    kernel[0] = 3e38
    kernel[1, 7] = 1
    classifier = Classifier.of_keras(linear(kernel), CLASSES, MNIST_INPUT)
    images = np.zeros((5, 28, 28), np.uint8)
    images[:, 0, 1] = 200
    images[2, 0, 0] = 200
    # When five images are classified
    predictions = classifier.predict(images)
    # Then the one that overflows has no label, and there is no NaN.
    assert predictions.class_index.tolist() == [7, 7, -1, 7, 7]
    assert predictions.confidence.tolist() == pytest.approx([1, 1, 0, 1, 1], abs=1e-6)


def test_logits_become_probabilities_except_where_they_are_not_finite() -> None:
    # Given a model that answers logits, and overflows if the first pixel is lit
    kernel = np.random.default_rng(1).normal(0, 0.01, (784, 10)).astype(np.float32)
    kernel[0] = 3e38
    model = linear(kernel, "linear")
    images = pixels(5)
    images[:, 0, 0] = [0, 0, 200, 0, 0]
    # When it is served with a softmax
    found = Classifier.of_keras(model, CLASSES, MNIST_INPUT, logits=True).probabilities(images)
    # Then each image has its probabilities, and the one that overflows has none.
    expected = keras.ops.softmax(model(images)).numpy()
    expected[2] = 0
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("activation", ["linear", "sigmoid", "tanh"])
def test_scores_that_are_not_probabilities_are_no_confidence(activation: str) -> None:
    kernel = np.random.default_rng(1).normal(0, 0.01, (784, 10)).astype(np.float32)
    classifier = Classifier.of_keras(linear(kernel, activation), CLASSES, MNIST_INPUT)
    assert (classifier.predict(pixels(3)).class_index == -1).all()


def test_pixels_of_another_shape_or_type_are_a_mistake(file: Path) -> None:
    classifier = Classifier.load(file, CLASSES, MNIST_INPUT)
    for wrong in (pixels(2)[..., None], pixels(2)[:, :27], pixels(2) / 255, pixels(1)[0]):
        with pytest.raises(ValueError, match="expected uint8"):
            classifier.predict(wrong)


def test_a_model_that_does_not_fit_its_declaration_is_refused(file: Path) -> None:
    with pytest.raises(ModelRefused, match="not one of 9 classes"):
        Classifier.load(file, CLASSES[:9], MNIST_INPUT)
    with pytest.raises(ModelRefused, match=r"input is \(None, 28, 28\), not \(None, 32, 28\)"):
        Classifier.load(file, CLASSES, InputSpec(width=28, height=32))


@pytest.mark.parametrize("name", ["model.h5", "model.hdf5", "model", "model.pb", "model.keras.h5"])
def test_any_other_format_is_refused_by_its_name_before_it_is_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"not a \.keras file"):
        Classifier.load(tmp_path / name, CLASSES, MNIST_INPUT)


def test_a_damaged_or_missing_file_is_refused(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    damaged = tmp_path / "damaged.keras"
    for broken in (b"", b"\x89HDF\r\n\x1a\n" + bytes(100), content[:1000], content[: len(content) // 2]):
        damaged.write_bytes(broken)
        with pytest.raises(ModelRefused, match=r"damaged\.keras could not be loaded"):
            Classifier.load(damaged, CLASSES, MNIST_INPUT)
    with pytest.raises(ModelRefused, match="could not be loaded"):
        Classifier.load(tmp_path / "missing.keras", CLASSES, MNIST_INPUT)


def test_a_time_limit_that_strikes_while_a_model_is_loaded_is_not_the_models_fault(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given Celery's time limit, which is reached while Keras loads a model
    def strike(*_: object, **__: object) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(keras.saving, "load_model", strike)
    # Then the exception is passed on, and the file is not refused
    with pytest.raises(SoftTimeLimitExceeded):
        Classifier.load(file, CLASSES, MNIST_INPUT)


def test_a_model_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    # Given a model with a Lambda layer that would create a file
    trace = tmp_path / "trace"
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Lambda(
                lambda x, path=str(trace): (open(path, "w").close(), x)[1],  # noqa: PTH123
                output_shape=(28, 28),
            ),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    save(model, tmp_path / "lambda.keras")
    trace.unlink(missing_ok=True)
    # Then it is refused, and no file was created.
    with pytest.raises(ModelRefused, match="could not be loaded"):
        Classifier.load(tmp_path / "lambda.keras", CLASSES, MNIST_INPUT)
    assert not trace.exists()


def test_a_process_of_its_own_is_quiet_shares_the_cores_and_writes_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a process that shares the cores with more processes than there are cores, and an empty home
    program = f"""
from pathlib import Path
from jobs.models.model import MNIST_INPUT
from worker.predicting.classifier import Classifier, start_keras
from worker.predicting.tensorflow_runtime import set_threads, tf
import numpy as np
start_keras(1000)
start_keras(1000)
classifier = Classifier.load(Path({str(file)!r}), "0123456789", MNIST_INPUT)
classifier.warm_up()
classifier.predict(np.zeros((3, 28, 28), np.uint8))
start_keras(1000)
threading = tf.config.threading
print(threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads())
try:
    set_threads(2)
except RuntimeError:
    print("too late")
"""
    for name in ("KERAS_HOME", "KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    done = run_python(program, check=False, HOME=str(tmp_path))
    # Then it runs on one thread, and the number cannot be changed
    assert done.stdout.splitlines() == ["1 1", "too late"], done.stderr
    # and it prints nothing to stderr, and leaves no file.
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())
