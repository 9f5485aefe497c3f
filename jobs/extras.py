"""What is said where a package is missing that only an extra of Labelmill brings."""

from __future__ import annotations


def install_hint(*extras: str) -> str:
    """How to get these extras, to stand behind a colon; without a full stop. It is true of a checkout and of
    a release alike.
    """
    named = " and ".join(repr(extra) for extra in extras)
    word = "extra" if len(extras) == 1 else "extras"
    command = f"pip install '.[{','.join(extras)}]'"
    return f"install Labelmill with the {word} {named} ({command} where its source is)"
