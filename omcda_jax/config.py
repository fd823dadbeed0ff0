"""One experiment's settings: dataclasses, command-line overrides by dotted key, and JSON.

Algorithm settings are whatever dataclass the algorithm defines; this module only asks that it has a `name`, type hints
and defaults, and calls its `validate()` if there is one.
"""

import dataclasses
import json
import math
import types as builtin_types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from omcda_jax import grid
from omcda_jax.types import ConfigError, check_seed, suggestion

# What may change between two starts of one run directory: none of these alters an update already done. The data may
# move, because their digest shows whether they are the same.
RESUMABLE = frozenset(
    {
        "directory",
        "data.path",
        "learner.updates",
        "learner.log_every",
        "learner.checkpoint_every",
        "learner.evaluate_every",
        "evaluation.episodes",
        "evaluation.seed",
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repairs:
    """How to read the numbers of a foreign file; the defaults take them as they are.

    Attributes:
        action_scale: divisor of continuous actions; the published HAPPO datasets need 4 (ComaDICE's loader).
        clip_actions: clip continuous actions to ±1, after the division.
        rewards: `reward`, or `return_to_go` if each one is the sum of all rewards still to come (as the MADT loader
            makes them); this is undone.
        team_reward: team reward where agents' rewards differ, their `mean` or `sum`; None refuses such rewards.
        time_limit: episodes of this many steps count as cut by the time limit, although the file marks them as ended;
            None trusts the file.
    """

    action_scale: float = 1.0
    clip_actions: bool = False
    rewards: Literal["reward", "return_to_go"] = "reward"
    team_reward: Literal["mean", "sum"] | None = None
    time_limit: int | None = None

    def __post_init__(self):
        scale_is_valid = self.action_scale > 0 and math.isfinite(self.action_scale)
        require(scale_is_valid, "action_scale", "a positive number", self.action_scale)
        require(self.time_limit is None or self.time_limit >= 1, "time_limit", "at least 1", self.time_limit)

    @property
    def repairs(self) -> "Repairs":
        """These settings alone, without a subclass's own."""
        return Repairs(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Repairs)})


@dataclasses.dataclass(frozen=True)
class DataConfig(Repairs):
    """Which offline dataset to learn from, and how to read it if it is a foreign one.

    Attributes:
        environment: `family/scenario`, for instance `smax/5m_vs_6m`.
        quality: name of the behaviour that made the data, for instance `medium`.
        episodes: number of episodes in the dataset, used when it must be collected; if None, `transitions` decides.
        transitions: least number of transitions in the dataset, in whole episodes; if None, `episodes` decides.
        seed: seed of the collection, and of the order of windows where data stay on the host.
        path: file to read instead of the default place, or None.
        reward_scale: factor on the file's rewards while learning; reported returns stay in the environment's units.
        placement: where the data stay, on the `device` or the `host`. On the host they are in memory or, memory-mapped,
            on the disk, and the device learns from a window of them, see `omcda_jax.data.Windows`.
        window: megabytes per window on the device when the data stay on the host, all shards together; two windows are
            there at once.
        shards: V, the number of equal shards of the data, one for each of V parts of the batch: row r of a batch comes
            from shard r * V // learner.batch_size. Each of several processes has only the shards of its own rows.
        held_out: share of the episodes, drawn by `seed`, that is not learnt from, so that policies can be judged on
            it; 0 learns from all.
        normalise: bring observations and states to zero mean and unit spread over the dataset; the statistics become
            part of the policy.
    """

    environment: str
    quality: str = "medium"
    episodes: int | None = 1000
    transitions: int | None = None
    seed: int = 0
    path: str | None = None
    reward_scale: float = 1.0
    normalise: bool = False
    placement: Literal["device", "host"] = "device"
    window: float = 256.0
    shards: int = 1
    held_out: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        family, _, scenario = self.environment.partition("/")
        require(family and scenario, "data.environment", "family/scenario such as smax/3m", self.environment)
        require(self.quality, "data.quality", "a name", self.quality)
        require(self.path != "", "data.path", "a file or a folder", self.path)
        sizes = {"data.episodes": self.episodes, "data.transitions": self.transitions}
        given = {key: size for key, size in sizes.items() if size is not None}
        if len(given) != 1:
            found = "both" if given else "neither"
            raise ConfigError(f"{' and '.join(sizes)}: expected one of the two set and the other none, found {found}")
        for key, size in given.items():
            require(size >= 1, key, "at least 1", size)
        check_seed(self.seed, "data.seed")
        require(0 <= self.held_out < 1, "data.held_out", "at least 0 and below 1", self.held_out)
        require(self.shards >= 1, "data.shards", "at least 1", self.shards)
        require(self.window > 0 and math.isfinite(self.window), "data.window", "a positive number", self.window)
        scale_is_valid = self.reward_scale > 0 and math.isfinite(self.reward_scale)
        require(scale_is_valid, "data.reward_scale", "a positive number", self.reward_scale)


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """How long to learn and how often to look.

    Attributes:
        updates: total number of gradient updates.
        batch_size: B, transitions per update.
        updates_per_call: updates in one compiled call, a divisor of all other numbers of updates; a stop signal waits
            until the call ends.
        log_every: updates between two rows of metrics.
        checkpoint_every: updates between two checkpoints (one more is written at the end).
        evaluate_every: updates between two evaluations, or 0 to evaluate the final policy only.
        mode: `data` spreads the batch of one trial over all devices, `trials` spreads a population over them.
        trials: the population, a grid such as `seed=0..3; algorithm.d_tot=0.6,1.8`.
    """

    updates: int
    batch_size: int = 128
    updates_per_call: int = 100
    log_every: int = 200
    checkpoint_every: int = 1000
    evaluate_every: int = 1000
    mode: Literal["data", "trials"] = "data"
    trials: str = ""

    def __post_init__(self):
        if self.mode == "trials":
            require(self.trials, "learner.trials", "a grid such as 'seed=0..3; algorithm.d_tot=0.6,1.8'", self.trials)
        else:
            require(not self.trials, "learner.mode", "trials, because learner.trials is set", self.mode)
        for name in ("updates", "batch_size", "updates_per_call", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"learner.{name}", "at least 1", getattr(self, name))
        require(self.evaluate_every >= 0, "learner.evaluate_every", "0 or more", self.evaluate_every)
        for name in ("updates", "log_every", "checkpoint_every", "evaluate_every"):
            expected = f"a multiple of learner.updates_per_call={self.updates_per_call}"
            value = getattr(self, name)
            require(value % self.updates_per_call == 0, f"learner.{name}", expected, value)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a policy is evaluated.

    Attributes:
        episodes: greedy episodes per evaluation, played side by side.
        seed: seed of the episodes; the same for every evaluation of a run, so that they can be compared.
    """

    episodes: int = 256
    seed: int = 0

    def __post_init__(self):
        require(self.episodes >= 1, "evaluation.episodes", "at least 1", self.episodes)
        check_seed(self.seed, "evaluation.seed")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Everything one run depends on.

    Attributes:
        name: name of the preset; part of the run directory.
        algorithm: the algorithm's frozen dataclass, whose `name` says which algorithm it is.
        data: which dataset.
        learner: how long to learn.
        evaluation: how to evaluate the policy.
        seed: seed of initialisation, batches and the algorithm's own draws.
        directory: where run directories are made.
    """

    name: str
    algorithm: Any
    data: DataConfig
    learner: LearnerConfig
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    seed: int = 0
    directory: str = "runs"

    def __post_init__(self):
        check_seed(self.seed)
        shards = self.data.shards
        require(self.learner.batch_size % shards == 0, "data.shards", "a divisor of learner.batch_size", shards)


def require(condition: Any, key: str, expected: str, value: Any) -> None:
    """Raise ConfigError `KEY: expected EXPECTED, found VALUE` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key}: expected {expected}, found {value!r}")


def apply_overrides(config: ExperimentConfig, assignments: Sequence[str]) -> ExperimentConfig:
    """Return `config` with dotted assignments such as `algorithm.d_tot=1.8` applied.

    Values are read by the field's type hint: numbers as usual, `true`/`false`, `none` where None is allowed, `256,256`
    for tuples.

    Args:
        config: the preset.
        assignments: `key=value` strings; a later one wins over an earlier one of the same key.

    Raises:
        ConfigError: for a key that does not exist (with the nearest one), a value of another type, or a value the
            settings refuse.
    """
    tree: dict = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        require(equals, key, "key=value", assignment)
        _check_leaf(config, key, text)
        *sections, field = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[field] = text
    return _rebuild(config, tree, "")


def replace_settings(settings: Any, values: Mapping[str, Any]) -> Any:
    """Return a settings dataclass with other values, after checking them.

    Raises:
        ConfigError: the settings refuse them.
    """
    return _make(dataclasses.replace, values, settings)


def population_keys(algorithm: Any) -> list[str]:
    """Return the keys in which trials of one compiled program may differ: `seed` and the algorithm's numbers.

    Args:
        algorithm: its settings.
    """
    leaves = [field for field in dataclasses.fields(algorithm) if field.metadata.get("pytree_node", True)]
    return ["seed", *(f"algorithm.{field.name}" for field in leaves)]


def expand_trials(config: ExperimentConfig) -> list[tuple[dict[str, Any], ExperimentConfig]]:
    """Return what varies and the settings, for every trial of the grid `learner.trials`; `grid` has the grammar.

    Keys are `seed` and the algorithm's numbers, which may differ within a population. A trial that comes twice counts
    once, even if it is written differently, as .01 and 0.010 are.

    Args:
        config: with a grid in `learner.trials`.

    Raises:
        ConfigError: as `grid.points`; a key cannot vary, a value has another type, or points have different keys.
    """
    points, known = grid.points(config.learner.trials, "learner.trials"), population_keys(config.algorithm)
    for key in dict.fromkeys(key for point in points for key in point):
        require(key in known, f"learner.trials: {key}", "seed or one of " + ", ".join(known[1:]), key)
        same = all(key in point for point in points)
        require(same, f"learner.trials: {key}", "the same keys on both sides of '|'", config.learner.trials)
    trials = []
    for varied in points:
        settings = apply_overrides(config, [f"{key}={value}" for key, value in varied.items()])
        label = {key: getattr(settings.algorithm, key.partition(".")[2], settings.seed) for key in varied}
        label |= {key: varied[key] for key, value in label.items() if isinstance(value, tuple)}
        trials.append((label, settings))
    return list({tuple(label.items()): (label, settings) for label, settings in trials}.values())


def to_dict(config: Any) -> dict:
    """Return a settings dataclass as plain JSON values: nested dicts, tuples as lists."""
    values = dataclasses.asdict(config)
    if isinstance(config, ExperimentConfig):
        values["algorithm"]["name"] = config.algorithm.name
    return json.loads(json.dumps(values))


def written(value: Any) -> str:
    """Return a setting's value as `apply_overrides` reads it."""
    if isinstance(value, list | tuple):
        return ",".join(map(written, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def assignments(values: Mapping[str, Any]) -> list[str]:
    """Return the assignments from which `apply_overrides` makes a configuration, without its name.

    Args:
        values: the configuration as `to_dict` gives it.
    """
    return [f"{key}={written(value)}" for key, value in _flatten(values, "").items() if key != "name"]


def keys(values: Mapping[str, Any]) -> set[str]:
    """Return every dotted key of a configuration as `to_dict` gives it."""
    return set(_flatten(values, ""))


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return every dotted key whose value differs, with both values.

    Args:
        saved: one configuration as `to_dict` gives it.
        current: another.

    Returns:
        {dotted key: (saved value, current value)}; a key that only one side has shows None for the other.
    """
    first, second = _flatten(saved, ""), _flatten(current, "")
    return {
        key: (first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    }


def _check_leaf(config: Any, key: str, text: str) -> None:
    """Raise ConfigError unless `key` leads through the settings to a single value."""
    owner, prefix = config, ""
    for part in key.split("."):
        if not dataclasses.is_dataclass(owner):
            raise ConfigError(f"{key}: {prefix[:-1]} has no keys below it")
        choices = [prefix + field.name for field in dataclasses.fields(owner)]
        if prefix + part not in choices:
            raise ConfigError(f"{prefix}{part}: no such key; {suggestion(prefix + part, choices)}")
        owner, prefix = getattr(owner, part), f"{prefix}{part}."
    if dataclasses.is_dataclass(owner):
        names = ", ".join(prefix + field.name for field in dataclasses.fields(owner))
        raise ConfigError(f"{key}: expected one of its keys ({names}), found a value {text!r}")


def _rebuild(settings: Any, tree: Mapping[str, Any], prefix: str) -> Any:
    """Replace each dataclass once, so that its own checks see all its changes together."""
    hints = typing.get_type_hints(type(settings))
    changes = {}
    for name, value in tree.items():
        key = prefix + name
        if isinstance(value, dict):
            changes[name] = _rebuild(getattr(settings, name), value, key + ".")
        else:
            changes[name] = _coerce(key, value, hints[name])
    return _make(dataclasses.replace, changes, settings)


def _make(build: Any, fields: Mapping[str, Any], *positional: Any) -> Any:
    try:
        settings = build(*positional, **fields)
        if hasattr(settings, "validate"):
            settings.validate()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return settings


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """Read a command-line text as the type `hint` names."""
    try:
        return _convert(value, hint)
    except (ValueError, TypeError):
        raise ConfigError(f"{key}: expected {_describe(hint)}, found {value!r}") from None


def _convert(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, builtin_types.UnionType):
        return _convert_union(value, arguments)
    if origin is typing.Literal:
        return arguments[[str(choice) for choice in arguments].index(str(value))]
    if origin is tuple:
        return _convert_tuple(value, arguments)
    if hint is bool:
        return ("false", "true").index(str(value).lower()) == 1
    if hint in (int, float) and isinstance(value, str):
        return hint(value)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Any or type(value) is hint:
        return value
    raise ValueError


def _convert_union(value: Any, options: Sequence[Any]) -> Any:
    if type(None) in options and (value is None or str(value).lower() == "none"):
        return None
    for option in options:
        if option is not type(None):
            try:
                return _convert(value, option)
            except (ValueError, TypeError):
                continue
    raise ValueError


def _convert_tuple(value: Any, items: Sequence[Any]) -> tuple:
    if isinstance(value, str):
        value = [item.strip() for item in value.strip().strip("()[]").split(",") if item.strip()]
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    return tuple(_convert(item, hint) for item, hint in zip(value, items, strict=True))


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, builtin_types.UnionType):
        return " or ".join("none" if option is type(None) else _describe(option) for option in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"values separated by commas, each {_describe(arguments[0])}"
        return f"{len(arguments)} values separated by commas ({', '.join(map(_describe, arguments))})"
    return {int: "an int", float: "a float", bool: "true or false", str: "a string"}.get(hint, str(hint))


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
