"""The hint to install an extra of Labelmill whose package is missing."""

from __future__ import annotations

from importlib.util import find_spec

from jobs.errors import UserError


def install_hint(*extras: str) -> str:
    """Return how to install these extras, to follow a colon, without a full stop.

    The hint holds for a checkout and for a release.
    """
    named = " and ".join(repr(extra) for extra in extras)
    word = "extra" if len(extras) == 1 else "extras"
    command = f"pip install '.[{','.join(extras)}]'"
    return f"install Labelmill with the {word} {named} ({command} where its source is)"


def require_decoders(what: str) -> None:
    """Raise UserError if images cannot be decoded here. `what` names the feature that decodes them."""
    if find_spec("numpy") is None or find_spec("PIL") is None:
        raise UserError(f"{what} needs the decoders of images: {install_hint('worker')}.")


def require_tensorflow(what: str = "Training", *more: str) -> None:
    """Raise UserError if TensorFlow is not installed. Its advice also names the extras in `more`."""
    if find_spec("tensorflow") is None:
        raise UserError(f"{what} needs TensorFlow: {install_hint('worker', *more)}.")
