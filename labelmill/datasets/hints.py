"""Hints about the classes of a dataset: names that look alike, few test images, unequal numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Final

from jobs.models.dataset import Split

#: With fewer test images, the interval of a class's recall is wider than 0.5.
_FEW_TEST_IMAGES: Final = 10

#: A class is rare if the largest one has more than so many times its images.
_UNEQUAL: Final = 10

#: Shorter names are often those of other things with one letter changed: cat, bat.
_LONG_NAME: Final = 5

#: How many classes or pairs a hint names.
_NAMED: Final = 5


def hint_lines(summary: dict[str, Any]) -> list[str]:
    """Return a line for each thing about a version's classes that a model would suffer from."""
    classes = summary["classes"]
    lines = []
    if pairs := similar_names([each["name"] for each in classes]):
        named = _name_some([f"{one} and {other}" for one, other in pairs])
        lines.append(f"similar class names: {named}; if they mean the same, add the images under one name")
    if few := [each for each in classes if each[Split.TEST] < _FEW_TEST_IMAGES]:
        few.sort(key=lambda each: each[Split.TEST])
        named = _name_some([f"{each['name']} {each[Split.TEST]}" for each in few])
        lines.append(f"fewer than {_FEW_TEST_IMAGES} test images, so their recall is hardly known: {named}")
    sizes = sorted((sum(each[split] for split in Split), each["name"]) for each in classes)
    (least, rare), (most, common) = sizes[0], sizes[-1]
    if most > _UNEQUAL * least:
        lines.append(f"unequal classes: {common} has {most:,} images, {rare} {least:,}")
    return lines


def similar_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of names that differ only by case, plural or one letter, in their order."""
    same: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        for key in _keys(name.casefold()):
            same[key].append(name)
    pairs = {pair for alike in same.values() for pair in combinations(alike, 2)}
    place = {name: number for number, name in enumerate(names)}
    return sorted(pairs, key=lambda pair: (place[pair[0]], place[pair[1]]))


def _keys(name: str) -> set[str]:
    """Return texts of which two similar names have one in common."""
    keys = {name}
    keys |= {stem for ending in ("s", "es") if len(stem := name.removesuffix(ending)) > 1}
    if len(name) >= _LONG_NAME and not any(map(str.isdigit, name)):
        keys |= {name[:place] + name[place + 1 :] for place in range(len(name))}
    return keys


def _name_some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _NAMED:,} more" if len(texts) > _NAMED else ""
    return f"{', '.join(texts[:_NAMED])}{more}"
