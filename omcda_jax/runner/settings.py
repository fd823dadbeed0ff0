"""Every setting's type, value and meaning, for --help and for the start of a run."""

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.config import DataConfig, EvaluationConfig, ExperimentConfig, LearnerConfig, written
from omcda_jax.runner.report import align

WIDTH = 120
LONGEST = 100  # characters of a meaning
SECTIONS = {"data": DataConfig, "learner": LearnerConfig, "evaluation": EvaluationConfig}
_CLAUSE = re.compile(r"(?:`[^`]*`|[^`])*?(?=[.;](?: |$)|$)")
_ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")


def meanings(settings: type) -> dict[str, str]:
    """Return what each field of a dataclass does, from `Attributes:` in its docstring and in those of its bases."""
    texts: dict[str, str] = {}
    for owner in reversed(settings.__mro__):
        _, _, section = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")
        names: Sequence[str] = ()
        for line in section.splitlines():
            entry = _ENTRY.fullmatch(line)
            if entry:
                names = entry[1].split(", ")
                texts |= dict.fromkeys(names, entry[2])
            elif not line.startswith(" " * 8):
                break
            else:
                texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return {name: _first_clause(text) for name, text in texts.items()}


def _first_clause(text: str) -> str:
    """The text up to the first full stop or semicolon outside backquotes; a long clause is cut where it makes sense."""
    clause = _CLAUSE.match(text)[0]
    parts = [clause[: match.start()] for match in re.finditer(r"[,:] | \(", clause) if match.start() <= LONGEST]
    whole = [part for part in parts if part.count("(") == part.count(")")]
    return clause if len(clause) <= LONGEST or not whole else whole[-1]


def explain(config: ExperimentConfig | None = None) -> str:
    """Return a table of every key with its value, its type and what it does.

    Args:
        config: the settings to show; None shows the defaults of all algorithms, or ? where there is none.
    """
    owner = config or ExperimentConfig
    rows = [row for row in _rows("", owner) if row[0] in ("seed", "directory")]
    for section, settings in SECTIONS.items():
        rows += _rows(f"{section}.", getattr(config, section) if config else settings)
    algorithms = [config.algorithm] if config else [algorithm.config for algorithm in ALGORITHMS.values()]
    for algorithm in algorithms:
        rows.append(("algorithm.name", "str", algorithm.name, "the algorithm; the keys below are its own"))
        rows += _rows("algorithm.", algorithm)
    return align([(f"  {key}={value}", kind, meaning) for key, kind, value, meaning in rows])


def overview(config: ExperimentConfig) -> str:
    """Return all settings in compact columns; * marks settings of the algorithm that differ from its defaults."""
    algorithm, defaults = config.algorithm, type(config.algorithm)()
    cells = [f"{key} {written(getattr(config, key))}" for key in ("seed", "directory")]
    parts = [("run", cells)]
    for section in SECTIONS:
        settings = getattr(config, section)
        cells = [f"{name} {written(getattr(settings, name))}" for name in _names(settings)]
        parts.append((section, cells))
    cells = []
    for name in _names(algorithm):
        value = getattr(algorithm, name)
        cells.append(f"{'*' if value != getattr(defaults, name) else ''}{name} {written(value)}")
    parts.append((algorithm.name, cells))
    indent = max(len(title) for title, _ in parts) + 4
    lines = [
        line
        for title, cells in parts
        for line in textwrap.wrap(
            # a line must not break at the blanks within a cell
            "   ".join(cell.replace(" ", "\0") for cell in cells),
            WIDTH,
            initial_indent=f"  {title}".ljust(indent),
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
    heading = f"settings of {config.name} (* not {algorithm.name}'s own default):"
    return "\n".join([heading, *lines]).replace("\0", " ")


def _names(settings: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(settings)]


def _rows(prefix: str, owner: Any) -> Iterator[tuple[str, str, str, str]]:
    """One row per field of a settings dataclass, or of an instance, to show its values."""
    settings = owner if isinstance(owner, type) else type(owner)
    hints, texts = typing.get_type_hints(settings), meanings(settings)
    for field in dataclasses.fields(settings):
        value = field.default if owner is settings else getattr(owner, field.name)
        shown = "?" if value is dataclasses.MISSING else written(value)
        kind = "|".join(field.metadata.get("choices", ())) or _kind(hints[field.name])
        yield prefix + field.name, kind, shown, texts.get(field.name, "")


def _kind(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("none" if option is type(None) else _kind(option) for option in arguments)
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, arguments))
    if typing.get_origin(hint) is tuple:
        return ",".join("..." if item is Ellipsis else _kind(item) for item in arguments)
    return getattr(hint, "__name__", str(hint))
