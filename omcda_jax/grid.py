"""Grids of settings in one line of text: `seed=0..4; algorithm.d_tot=0.6,1.8`, to and from the points they stand for.

    grid    = product | product | ...       all points of each; a point that comes twice counts once
    product = key=values; key=values; ...   every combination, the last key fastest
    values  = value,value,...               each of them one of
        a..b                                all whole numbers from a to b
        [x,y]                               one value of several numbers
        uniform(low,high,n)                 n random numbers
        loguniform(low,high,n)              n random numbers, evenly spread over orders of magnitude
        anything else                       itself

Random ranges of one product are drawn together, as in random search: n points in all, so their n must agree. What is
drawn depends on the key and the range only, and a larger n keeps the numbers of a smaller one.
"""

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence

from omcda_jax.types import ConfigError

_VALUE = re.compile(r"\[[^]]*\]|\w+\([^)]*\)|[^,]+")
_RANGE = re.compile(r"(uniform|loguniform)\(([^,]*),([^,]*),([^,]*)\)")
_PLAIN = re.compile(r"[^][(),;|=]+")


def points(text: str, flag: str) -> list[dict[str, str]]:
    """Return every point of a grid, each the text of a value by its key.

    Args:
        text: the grid.
        flag: that gave it, for messages.

    Raises:
        ConfigError: it is empty, a key has no values or comes twice in one product, or a range is not one.
    """
    found = [point for part in text.split("|") for point in _product(part, flag)]
    if not found:
        raise ConfigError(f"{flag}: expected key=value,value,..., found {text!r}")
    return list({tuple(point.items()): point for point in found}.values())


def _product(text: str, flag: str) -> Iterator[dict[str, str]]:
    axes: dict[str, list[str]] = {}
    drawn: dict[str, list[str]] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        key, _, listed = (word.strip() for word in part.partition("="))
        if key in axes | drawn:
            raise ConfigError(f"{flag}: {key}: expected each key once, found {text.strip()!r}")
        span = _RANGE.fullmatch(listed.replace(" ", ""))
        if span:
            drawn[key] = _draw(key, *span.groups(), f"{flag}: {key}")
            continue
        axes[key] = [value for word in _VALUE.findall(listed) for value in _values(word.strip(), f"{flag}: {key}")]
        if not key or not axes[key]:
            raise ConfigError(f"{flag}: {key}: expected key=value,value,..., found {part!r}")
    counts = {key: len(values) for key, values in drawn.items()}
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"{flag}: expected ranges with one number of points, for they are drawn together, found {counts}"
        )
    together = [dict(zip(drawn, values, strict=True)) for values in zip(*drawn.values(), strict=True)] or [{}]
    if axes or drawn:
        for joint in together:
            for values in itertools.product(*axes.values()):
                yield dict(zip(axes, values, strict=True)) | joint


def _values(text: str, place: str) -> list[str]:
    """The values that one word of a list stands for."""
    if text.endswith(")"):
        raise ConfigError(f"{place}: expected uniform(low,high,n) or loguniform(low,high,n) alone, found {text!r}")
    first, dots, last = text.partition("..")
    if not dots:
        return [text]
    try:
        return [str(number) for number in range(int(first), int(last) + 1)]
    except ValueError:
        raise ConfigError(f"{place}: expected two whole numbers around '..', found {text!r}") from None


def _draw(key: str, kind: str, low: str, high: str, count: str, place: str) -> list[str]:
    text = f"{kind}({low},{high},{count})"
    try:
        first, last, number = float(low), float(high), int(count)
    except ValueError:
        raise ConfigError(f"{place}: expected {kind}(low,high,n) with two numbers and a count, found {text}") from None
    if not (math.isfinite(first) and math.isfinite(last) and first < last and number >= 1):
        raise ConfigError(f"{place}: expected {kind}(low,high,n) with low < high and n of at least 1, found {text}")
    if kind == "loguniform" and first <= 0:
        raise ConfigError(f"{place}: expected loguniform(low,high,n) with low above 0, found {text}")
    # a generator seeded by text draws the same on every machine
    generator = random.Random(f"{key}={kind}({first},{last})")
    if kind == "uniform":
        return [f"{generator.uniform(first, last):.4g}" for _ in range(number)]
    return [f"{math.exp(generator.uniform(math.log(first), math.log(last))):.4g}" for _ in range(number)]


def compose(varied: Sequence[Mapping[str, str]]) -> str:
    """Return a short grid that stands for these points, in an order of its own.

    Args:
        varied: points of the same keys, at least one.

    Raises:
        ConfigError: a value has a sign of the grid's own in it.
    """
    for key, value in (item for point in varied for item in point.items()):
        if not (_PLAIN.fullmatch(value) or re.fullmatch(r"\[[^][;|=]*\]", value)):
            raise ConfigError(f"{key}: expected a value without any of ( ) , ; | = in it, found {value!r}")
    axes = {key: list(dict.fromkeys(point[key] for point in varied)) for key in varied[0]}
    if math.prod(map(len, axes.values())) == len({tuple(point.items()) for point in varied}):
        return "; ".join(f"{key}={','.join(values)}" for key, values in axes.items())
    groupings = [_but(varied, key) for key in axes]
    return " | ".join(map(compose, min(groupings, key=len)))


def _but(varied: Sequence[Mapping[str, str]], free: str) -> list[list[Mapping[str, str]]]:
    """Points that differ in nothing but one key, together."""
    groups: dict[tuple, list] = {}
    for point in varied:
        groups.setdefault(tuple(item for item in point.items() if item[0] != free), []).append(point)
    return list(groups.values())
