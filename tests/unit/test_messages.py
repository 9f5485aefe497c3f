"""A message names one thing; what does not is refused before anything looks at it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import LabelmillError
from jobs.ids import ID_LENGTH, is_id, new_id
from jobs.messages import Message, MessageError

IDS = st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=ID_LENGTH, max_size=ID_LENGTH)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | IDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(IDS)
def test_a_message_comes_back_through_json(chunk_id):
    message = Message(chunk_id)
    assert Message.decode(json.loads(json.dumps(message.encode())), {}) == message


def test_a_message_holds_the_id_and_nothing_else():
    chunk_id = new_id()
    assert Message(chunk_id).encode() == (chunk_id,)


@given(st.lists(JSON, max_size=3), st.dictionaries(st.text(), JSON, max_size=2))
def test_whatever_comes_is_a_message_or_an_error(args, kwargs):
    if len(args) == 1 and is_id(args[0]) and not kwargs:
        assert Message.decode(args, kwargs).id == args[0]
    else:
        with pytest.raises(MessageError):
            Message.decode(args, kwargs)


CHUNK_ID = "0" * ID_LENGTH


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ([], {}),
        ([CHUNK_ID, CHUNK_ID], {}),
        ([CHUNK_ID], {"force": True}),
        ([], {"chunk_id": CHUNK_ID}),
        ([[CHUNK_ID]], {}),
        ([b"0" * ID_LENGTH], {}),
        ([CHUNK_ID.upper() + "A"], {}),
        (["x" * 50_000_000], {}),
        ([{"py/reduce": ["os.system", "true"]}], {}),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_junk_is_refused_and_not_repeated(args, kwargs):
    with pytest.raises(MessageError) as refused:
        Message.decode(args, kwargs)
    assert len(str(refused.value)) < 200


def test_a_refused_message_is_an_error_of_ours():
    """The task drops it in one line: it must not look like a mistake in the program."""
    assert issubclass(MessageError, LabelmillError)


def test_a_message_does_not_change():
    with pytest.raises(AttributeError):
        Message(CHUNK_ID).id = "other"  # type: ignore[misc]
