"""A wake-up names nothing, a training run's message names its run, and anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.ids import ID_LENGTH, is_id
from jobs.messages import MessageError, check_wake_up, run_id_of

IDS = st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=ID_LENGTH, max_size=ID_LENGTH)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | IDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def is_wake_up(args: list[object], kwargs: dict[str, object]) -> bool:
    try:
        check_wake_up(args, kwargs)
    except MessageError:
        return False
    return True


@given(IDS)
def test_a_message_that_names_an_id_is_a_training_run_and_no_wake_up(run_id: str) -> None:
    assert not is_wake_up([run_id], {})
    assert run_id_of([run_id], {}) == run_id


@given(st.lists(JSON, max_size=3), st.dictionaries(st.text(), JSON, max_size=2))
def test_any_arguments_are_accepted_or_refused(args: list[object], kwargs: dict[str, object]) -> None:
    names_one = len(args) == 1 and is_id(args[0]) and not kwargs
    assert is_wake_up(args, kwargs) == (not args and not kwargs)
    if not names_one:
        with pytest.raises(MessageError):
            run_id_of(args, kwargs)
