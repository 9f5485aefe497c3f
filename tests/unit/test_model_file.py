"""Which model files are accepted, judged by their bytes, without Keras, before anything parses them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import zipfile
from typing import Any

import pytest

from jobs.errors import ModelRefused
from jobs.models.model_file import check_model_file
from tests.kerasfile import HDF5, archive, function, keras_file, layer, members, sequential
from tests.memory import peak_of


def refusal(data: bytes) -> str:
    with pytest.raises(ModelRefused) as refused:
        check_model_file(data)
    return str(refused.value)


def refusal_of(config: dict[str, Any]) -> str:
    return refusal(archive(members(config)))


def test_a_file_of_known_layers_passes() -> None:
    check_model_file(keras_file())


# ---- other formats ------------------------------------------------------------------------------------


def changed(*more: str, without: str | None = None) -> bytes:
    """Return an archive with more members, or without one of the three."""
    contents = members() | dict.fromkeys(more, b"")
    return archive({name: data for name, data in contents.items() if name != without})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HDF5 + bytes(2000), "HDF5"),
        (b"", "not a ZIP archive"),
        (b"PK", "not a ZIP archive"),
        (b"\x80\x05}\x94.", "not a ZIP archive"),
        (b"\x08\x01\x12\x0fsaved_model.pb", "not a ZIP archive"),
        (b"evil" + keras_file(), "not a ZIP archive"),
        (b"PK\x03\x04" + bytes(100), "not a complete .keras file"),
        (keras_file()[:-30], "not a complete .keras file"),
        (keras_file()[:200], "not a complete .keras file"),
        # Archives of anything but the three members
        (changed(without="metadata.json"), "does not consist of"),
        (changed(without="config.json"), "does not consist of"),
        (changed(without="model.weights.h5"), "does not consist of"),
        (changed("model.weights.npz"), "does not consist of"),
        (changed("assets/vocabulary.txt"), "does not consist of"),
        (changed("../config.json"), "does not consist of"),
        (changed("/etc/cron.d/x"), "does not consist of"),
        (changed("saved_model.pb"), "does not consist of"),
        (changed("CONFIG.JSON"), "does not consist of"),
        (changed("CONFIG.JSON", without="config.json"), "does not consist of"),
        (changed("assets/"), "does not consist of"),
        # Members that are something else
        (archive(members(b"no json")), "config.json is not JSON"),
        (archive(members(b"[]")), "config.json is not a JSON object"),
        (archive(members(b"\xff\xfe")), "config.json is not JSON"),
        (archive(members(b"{}")), "names no class"),
        (archive(members(metadata=b"")), "metadata.json is not JSON"),
        (archive(members(weights=b"PK\x03\x04")), "model.weights.h5 is not HDF5"),
        (archive(members(weights=b"")), "model.weights.h5 is not HDF5"),
    ],
)
def test_what_is_of_another_format_is_refused(data: bytes, reason: str) -> None:
    assert reason in refusal(data)


def test_a_member_that_is_there_twice_is_refused() -> None:
    file = io.BytesIO(keras_file())
    with zipfile.ZipFile(file, "a") as zipped, pytest.warns(UserWarning, match="Duplicate name"):
        zipped.writestr("config.json", json.dumps(sequential()))
    assert "each once" in refusal(file.getvalue())


# ---- what is named in the config ----------------------------------------------------------------------

LAMBDA = layer("keras.layers", "Lambda", function=layer("builtins", "__lambda__", code="4wEAAAA="))


@pytest.mark.parametrize(
    "evil",
    [
        LAMBDA,
        layer(None, "__lambda__", value="4wEAAAA="),
        layer("keras.layers", "StringLookup", vocabulary="/etc/passwd"),  # CVE-2025-12058
        layer("keras.layers", "TimeDistributed", layer=layer("keras.layers", "Lambda")),
        layer("keras.src.layers.core.dense", "Dense", units=1),
        layer("keras.src.ops.core", "VectorizedMap", function=function("builtins", "relu")),
        layer("keras.src.ops.core", "importlib"),
        layer("keras.src.ops.function", "Function"),
        layer("keras.src.ops.operation", "Operation"),
        layer("keras.src.ops.numpy", "Operation"),
        layer("keras.src.ops.numpy", "Add") | {"registered_name": "mine>Add"},
        layer("keras.src.saving.saving_lib", "H5IOStore", path="/etc/passwd"),
        layer("keras.src.applications.convnext", "ConvNeXtTiny"),
        layer("keras.applications", "ConvNeXtTiny", weights="imagenet"),
        layer("keras.optimizers", "Adam"),
        layer("keras.quantizers", "Quantizer"),
        layer("keras.utils", "FeatureSpace", features={}),
        layer("keras.src.layers.core.lambda_layer", "Lambda"),
        layer("keras.utils", "get_file"),  # CVE-2025-8747
        function("keras.utils", "get_file", registered="get_file"),
        function("keras.losses", "deserialize"),
        function("builtins", "os.system", registered="os.system"),
        function("builtins", ["relu"]),
        function("builtins", "relu", registered="mine>relu"),
        layer("keras.config", "enable_unsafe_deserialization"),  # CVE-2025-9906
        layer("keras.models", "load_model"),
        layer("os", "system", command="true"),
        layer("subprocess", "Popen", args="true"),  # CVE-2025-1550
        layer("keras_hub.layers", "Dense"),
        layer(None, "Dense", units=1),
        {"class_name": "Dense", "config": {"units": 1}},  # how files before Keras 3 name a class
        {"class_name": "Lambda"},
        {"module": ["keras.layers"], "class_name": "Dense", "config": {}},
        {"module": "keras.layers", "class_name": ["Dense"], "config": {}},
        {"module": "keras.layers", "class_name": None, "config": {}},
        layer("keras.layers", "Dense") | {"registered_name": "mine>Dense"},
        layer("mine", "__tensor__", value=[1.0], dtype="float32"),
        layer(None, "__bytes__", value="x"),
        layer(None, "__typespec__"),
        {"module": "tensorflow", "class_name": "__typespec__", "spec_name": "TensorSpec", "config": []},
        {"module": "keras.layers", "class_name": "__keras_tensor__", "config": {}},
    ],
    ids=lambda evil: f"{evil.get('module')}.{evil['class_name']}.{evil.get('config')}"[:60],
)
@pytest.mark.parametrize(
    "place", ["a layer", "the model", "an argument", "a nested model", "a node", "a cell"]
)
def test_what_runs_code_or_opens_files_is_refused_wherever_it_stands(
    evil: dict[str, Any], place: str
) -> None:
    config = {
        "a layer": sequential(layer("keras.layers", "Dense", units=1), evil),
        "the model": evil,
        "an argument": sequential(layer("keras.layers", "Dense", units=1, activation=evil)),
        "a nested model": sequential(sequential(layer("keras.layers", "Dense", x=[[[{"y": evil}]]]))),
        "a node": sequential(
            layer("keras.src.ops.numpy", "Add") | {"inbound_nodes": [{"args": [evil], "kwargs": {}}]}
        ),
        "a cell": sequential(
            layer("keras.layers", "RNN", cell=[layer("keras.layers", "Dense", units=1), evil])
        ),
    }[place]
    reason = refusal_of(config)
    assert "which is not a layer or function that may be loaded" in reason
    assert "build the model from these" in reason
    assert len(reason) < 350


@pytest.mark.parametrize(
    "dtype", [None, ["x", "O"], "object", "O8", "float32,object", "float32\n", {"names": ["x"]}]
)
@pytest.mark.parametrize("name", ["__numpy__", "__tensor__"])
def test_a_constant_of_anything_but_numbers_is_refused(name: str, dtype: Any) -> None:
    constant = {"class_name": name, "config": {"value": [1.0], "dtype": dtype}}
    assert "a constant of the type" in refusal_of(
        sequential(layer("keras.layers", "Rescaling", scale=constant))
    )


def test_how_a_model_was_compiled_is_ignored_at_every_depth() -> None:
    # given a model, a nested model and a model in a layer, each compiled with code of its author's
    compiled = {"compile_config": {"optimizer": LAMBDA, "loss": function("mine", "loss")}}
    nested = sequential(sequential(layer("keras.layers", "Dense", units=1)) | compiled) | compiled
    held = sequential(layer("keras.layers", "TimeDistributed", layer=nested))

    # when the file is checked, then it passes
    check_model_file(archive(members(held | compiled)))

    # and what a compile configuration is not hides nothing
    assert "Lambda" in refusal_of(sequential(layer("keras.layers", "Dense", x={"compile_confi": LAMBDA})))


# ---- bounds -------------------------------------------------------------------------------------------


def test_a_bomb_does_not_go_off() -> None:
    # given members that would expand to many times their size
    bomb = archive(members(b"[" * 3_000_000), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10_000

    # when the file is checked, then nothing is expanded
    assert peak_of(lambda: refusal(bomb)) < 1_000_000
    assert "compressed or encrypted" in refusal(bomb)


@pytest.mark.parametrize("claimed", [0, 1, 2**31, 2**32 - 2])
@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "metadata.json"])
@pytest.mark.parametrize("both", [True, False])
def test_a_member_that_lies_about_its_size_is_refused(name: str, claimed: int, both: bool) -> None:
    # given a directory with a wrong size of a member, packed or unpacked
    data = bytearray(keras_file(bytes(1000)))
    at = data.index(b"PK\x01\x02")
    while data[at + 46 : at + 46 + len(name)] != name.encode():
        at = data.index(b"PK\x01\x02", at + 1)
    struct.pack_into("<I", data, at + 24, claimed)
    if both:
        struct.pack_into("<I", data, at + 20, claimed)

    # when the file is checked, then it is refused, without memory for the claimed size
    assert peak_of(lambda: refusal(bytes(data))) < 1_000_000


def test_a_member_that_is_said_to_lie_beyond_all_numbers_is_refused() -> None:
    # given a directory whose last entry has an offset beyond what seek accepts
    data = keras_file()
    at, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    entry, tail = bytearray(data[at:end]), bytearray(data[end:])
    far = struct.pack("<HHQ", 1, 8, 2**63 + 5)  # ZIP64, for an offset that does not fit into the entry
    struct.pack_into("<H", entry, 30, len(far))
    struct.pack_into("<I", entry, 42, 2**32 - 1)
    [size] = struct.unpack_from("<I", tail, 12)
    struct.pack_into("<I", tail, 12, size + len(far))

    # when the file is checked, then it is refused
    assert "not a complete .keras file" in refusal(data[:at] + entry + far + tail)


def test_a_config_over_the_limit_is_refused() -> None:
    config = json.dumps(sequential()).encode()
    check_model_file(archive(members(config + b" " * (4 * 2**20 - len(config)))))
    assert "more than 4,194,304 bytes" in refusal(archive(members(config + b" " * (4 * 2**20))))


def test_a_config_without_end_is_refused() -> None:
    assert "nested too deeply" in refusal(archive(members(b'{"class_name":' * 100_000)))
    assert "nested too deeply" in refusal(archive(members(b"[" * 100_000 + b"]" * 100_000)))


def test_a_config_as_deep_as_json_allows_is_searched_to_its_end() -> None:
    evil: Any = LAMBDA
    for _ in range(300):
        evil = [{"x": evil}]
    assert "Lambda" in refusal_of(sequential(layer("keras.layers", "Dense", x=evil)))


def test_an_encrypted_member_is_refused() -> None:
    data = bytearray(keras_file())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(magic)
        struct.pack_into("<H", data, at + offset, 1)
    assert "compressed or encrypted" in refusal(bytes(data))


def test_no_damage_gets_past_as_anything_but_a_refusal() -> None:
    # given a file with any one byte changed
    good = keras_file()
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= os.urandom(1)[0] | 1

        # when the file is checked, then it passes or is refused, and raises nothing else
        with contextlib.suppress(ModelRefused):
            check_model_file(bytes(data))
