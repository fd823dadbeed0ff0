"""Grids of settings in one line of text, `seed=0..4; algorithm.d_tot=0.6,1.8`, to and from their points.

    grid    = product | product | ...       all points of each; a point that comes twice counts once
    product = key=values; key=values; ...   every combination, the last key fastest
    values  = value,value,...               each is one of these:
        a..b                                all whole numbers from a to b
        [x,y]                               one value of several numbers
        uniform(low,high,n)                 n random numbers
        loguniform(low,high,n)              n random numbers, evenly spread over orders of magnitude
        anything else                       itself

Random ranges of one product are drawn together, as in random search: n points in total, so their n must agree. A draw
depends only on the key and the range, and a larger n keeps the numbers of a smaller n.
"""

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from omcda_jax.types import ConfigError

_VALUE = re.compile(r"\[[^]]*\]|\w+\([^)]*\)|[^,]+")
_RANGE = re.compile(r"(uniform|loguniform)\(([^,]*),([^,]*)(?:,([^,]*))?\)")
_PLAIN = re.compile(r"[^][(),;|=]+")


class Range(NamedTuple):
    """A range of numbers.

    Attributes:
        kind: uniform or loguniform.
        low: smallest number.
        high: largest number, above `low`.
        count: how many random numbers to draw, or None if the text does not say.
    """

    kind: str
    low: float
    high: float
    count: int | None


def axes(text: str, flag: str) -> dict[str, list[str] | Range]:
    """Return the values of each key of one product: texts of values, or a range, which may have no count.

    Args:
        text: the product.
        flag: flag that gave the text, for messages.

    Raises:
        ConfigError: a key has no values or comes twice, or a range is not valid.
    """
    found: dict[str, list[str] | Range] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        key, _, listed = (word.strip() for word in part.partition("="))
        if key in found:
            raise ConfigError(f"{flag}: {key}: expected each key once, found {text.strip()!r}")
        span = _RANGE.fullmatch(listed.replace(" ", ""))
        if span:
            found[key] = _range(*span.groups(), f"{flag}: {key}")
            continue
        found[key] = [value for word in _VALUE.findall(listed) for value in _values(word.strip(), f"{flag}: {key}")]
        if not key or not found[key]:
            raise ConfigError(f"{flag}: {key}: expected key=value,value,..., found {part!r}")
    return found


def points(text: str, flag: str) -> list[dict[str, str]]:
    """Return every point of a grid, each the text of a value by its key.

    Args:
        text: the grid.
        flag: flag that gave the text, for messages.

    Raises:
        ConfigError: the grid is empty, a key has no values or comes twice in one product, or a range is not valid.
    """
    found = [point for part in text.split("|") for point in _product(part, flag)]
    if not found:
        raise ConfigError(f"{flag}: expected key=value,value,..., found {text!r}")
    order = list(dict.fromkeys(key for point in found for key in point))  # on both sides of '|' the same
    ordered = [{key: point[key] for key in order if key in point} for point in found]
    return list({tuple(point.items()): point for point in ordered}.values())


def _product(text: str, flag: str) -> Iterator[dict[str, str]]:
    found = axes(text, flag)
    listed = {key: values for key, values in found.items() if not isinstance(values, Range)}
    ranges = {key: span for key, span in found.items() if isinstance(span, Range)}
    counts = {key: span.count for key, span in ranges.items()}
    for key, span in ranges.items():
        if span.count is None:
            raise ConfigError(f"{flag}: {key}: expected {span.kind}(low,high,n), with a count, found none")
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"{flag}: expected ranges with the same number of points, because they are drawn together, found {counts}"
        )
    drawn = [_draw(key, span) for key, span in ranges.items()]
    together = [dict(zip(ranges, values, strict=True)) for values in zip(*drawn, strict=True)] or [{}]
    if found:
        for joint in together:
            for values in itertools.product(*listed.values()):
                yield dict(zip(listed, values, strict=True)) | joint


def _values(text: str, place: str) -> list[str]:
    """Return the values that one word of a list stands for."""
    if text.endswith(")"):
        raise ConfigError(f"{place}: expected uniform(low,high,n) or loguniform(low,high,n) alone, found {text!r}")
    first, dots, last = text.partition("..")
    if not dots or "/" in text:
        return [text]
    try:
        numbers = range(int(first), int(last) + 1)
    except ValueError:
        raise ConfigError(f"{place}: expected two whole numbers around '..', found {text!r}") from None
    if not numbers:
        raise ConfigError(f"{place}: expected a number after '..' that is not below the first, found {text!r}")
    return [str(number) for number in numbers]


def _range(kind: str, low: str, high: str, count: str | None, place: str) -> Range:
    text = f"{kind}({low},{high}{'' if count is None else f',{count}'})"
    try:
        span = Range(kind, float(low), float(high), None if count is None else int(count))
    except ValueError:
        raise ConfigError(f"{place}: expected {kind}(low,high,n) with two numbers and a count, found {text}") from None
    finite = math.isfinite(span.low) and math.isfinite(span.high)
    if not (finite and span.low < span.high and (span.count is None or span.count >= 1)):
        raise ConfigError(f"{place}: expected {kind}(low,high,n) with low < high and n of at least 1, found {text}")
    if kind == "loguniform" and span.low <= 0:
        raise ConfigError(f"{place}: expected loguniform(low,high,n) with low above 0, found {text}")
    return span


def _draw(key: str, span: Range) -> list[str]:
    # a generator seeded by text draws the same on every machine
    generator = random.Random(f"{key}={span.kind}({span.low},{span.high})")
    numbers = range(span.count or 0)
    if span.kind == "uniform":
        return [number(generator.uniform(span.low, span.high), span) for _ in numbers]
    return [number(math.exp(generator.uniform(math.log(span.low), math.log(span.high))), span) for _ in numbers]


def number(value: float, span: Range) -> str:
    """Return the text of a number drawn from a range: four digits, plus the number of digits that its ends share."""
    largest = max(abs(span.low), abs(span.high))
    digits = 4 + max(0, math.floor(math.log10(largest / (span.high - span.low))))
    text = f"{value:.{digits}g}"
    return text if span.low <= float(text) <= span.high else repr(value)


def compose(varied: Sequence[Mapping[str, str]]) -> str:
    """Return a short grid that stands for these points, in an order of its own.

    Args:
        varied: points with the same keys, at least one.

    Raises:
        ConfigError: a value contains a sign of the grammar.
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
    """Group points that differ only in one key."""
    groups: dict[tuple, list] = {}
    for point in varied:
        groups.setdefault(tuple(item for item in point.items() if item[0] != free), []).append(point)
    return list(groups.values())
