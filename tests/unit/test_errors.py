"""Errors say who must act, and the error codes that people query do not change."""

from __future__ import annotations

import pickle

import pytest

from jobs import errors
from jobs.errors import ErrorCode, ImageError, LabelmillError, SelfExplanatory, UserError

CLASSES = [
    thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, LabelmillError)
]


def test_the_codes_are_a_contract():
    assert {str(code) for code in ErrorCode} == {
        "unidentified",
        "corrupt",
        "too_large",
        "format_not_allowed",
        "timeout",
        "model_error",
        "quarantined",
        "source_missing",
        "source_changed",
        "source_forbidden",
    }


def test_a_code_fits_its_column():
    assert max(map(len, ErrorCode)) <= 32


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if issubclass(kind, SelfExplanatory)])
def test_a_self_explanatory_error_says_its_docstring_without_being_told(kind):
    assert str(kind()) == kind.__doc__.strip()
    assert str(kind("something else")) == "something else"


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if not issubclass(kind, SelfExplanatory)])
def test_any_other_error_must_be_told_what_happened_to_what(kind):
    with pytest.raises(TypeError):
        kind()


def test_an_image_error_has_its_code_and_says_it_where_there_is_no_more_to_say():
    bare, detailed = ImageError(ErrorCode.CORRUPT), ImageError(ErrorCode.CORRUPT, "cut off")
    assert (str(bare), bare.code, bare.detail) == ("corrupt", ErrorCode.CORRUPT, "")
    assert (str(detailed), detailed.code, detailed.detail) == ("cut off", ErrorCode.CORRUPT, "cut off")


@pytest.mark.parametrize("kind", CLASSES)
def test_a_mistake_of_the_users_exits_with_2_and_any_other_with_1(kind):
    assert kind.exit_code == (2 if issubclass(kind, UserError) else 1)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not ImageError])
def test_an_error_crosses_from_a_pools_child_to_its_parent(kind):
    """An exception that cannot be rebuilt in the parent would kill Celery's pool."""
    assert str(pickle.loads(pickle.dumps(kind("what happened")))) == "what happened"
