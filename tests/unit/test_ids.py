"""Ids are short, opaque and ordered by time, and can be told from anything else."""

from __future__ import annotations

import time

import pytest

from jobs.ids import ID_LENGTH, id_range, id_seconds, is_id, new_id


def test_ids_do_not_repeat():
    made = [new_id() for _ in range(20_000)]
    assert len(set(made)) == len(made)


def test_a_later_id_sorts_after_an_earlier_one():
    made = []
    for _ in range(5):
        made.append(new_id())
        time.sleep(0.002)
    assert made == sorted(made)


@pytest.mark.parametrize("nanoseconds", [0, 1, 10**9, 1_700_000_000 * 10**9, (2**48 - 1) * 10**6])
def test_an_id_has_one_length_at_any_time(monkeypatch, nanoseconds):
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds)
    assert len(new_id()) == ID_LENGTH
    assert is_id(new_id())


@pytest.mark.parametrize("characters", [0, 6, ID_LENGTH])
def test_an_id_is_between_the_first_and_the_last_that_begin_as_it_does(characters):
    made = new_id()
    first, last = id_range(made[:characters])
    assert is_id(first)
    assert is_id(last)
    assert first <= made <= last
    assert first[:characters] == made[:characters] == last[:characters]


@pytest.mark.parametrize("beginning", ["0" * 17, "champion", "no", "A"])
def test_what_no_id_begins_with_makes_none(beginning):
    assert id_range(beginning) is None


@pytest.mark.parametrize(
    "thing",
    [
        *("", "0" * 15, "0" * 17, "0" * 15 + "\n", "0" * 16 + "\n", " " + "0" * 15),
        *(
            "0" * 15 + "i",
            "0" * 15 + "l",
            "0" * 15 + "o",
            "0" * 15 + "u",
            "0" * 15 + "A",
        ),  # not in the alphabet
        *("../../etc/passwd", "0' OR '1'='1 --", "０" * 16, "0" * 15 + "\0"),
        *(None, 0, 1.5, b"0" * 16, ["0" * 16], {"id": "0" * 16}),
    ],
    ids=ascii,
)
def test_anything_else_is_none(thing):
    assert not is_id(thing)


def test_an_identifier_knows_when_it_was_made():
    before = time.time()
    made = id_seconds(new_id())
    assert before - 0.001 <= made <= time.time()
    assert id_seconds("z" * ID_LENGTH) > made
