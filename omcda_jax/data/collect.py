"""Datasets of whole episodes, made by rolling out behaviour policies in a simulator."""

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omcda_jax.behaviour import acts, policies
from omcda_jax.data import h5, hdf5
from omcda_jax.data.episodes import Episodes, check
from omcda_jax.data.rollouts import Request, player
from omcda_jax.envs import make
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.envs.versions import installed
from omcda_jax.files import made_once, require_folder, sha256
from omcda_jax.types import ConfigError, check_seed

TRIES_PER_EPISODE = 100  # episodes played for each one wanted before a filter counts as hopeless
TRIES_AT_LEAST = 4096


def collect(
    environment: Environment | HostEnvironment,
    params: Sequence[Any],
    recipe: policies.Quality,
    *,
    seed: int,
    act: acts.Act | None = None,
    episodes: int | None = None,
    transitions: int | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> tuple[Episodes, dict[str, Any]]:
    """Play until enough is kept; each stage gives an equal share (if uneven, the first stages give one more).

    Args:
        environment: the simulator.
        params: policy weights of each of the recipe's stages, the first argument of `act`.
        recipe: temperature, and which episodes are kept.
        seed: seed of the whole collection; the same seed gives the same episodes on the same machine and versions.
        act: the policies' own function, see `acts.Behaviour`; None is `policies.sample` at the recipe's temperature.
        episodes: E, how many to keep.
        transitions: instead of `episodes`: keep whole episodes until there are at least this many transitions.
        progress: called as `progress(kept, wanted, played)` after each episode; `kept` and `wanted` count episodes or
            transitions, whichever is wanted, and `played` counts episodes.

    Returns:
        The episodes, and metadata on how they were made.

    Raises:
        ConfigError: the size or `seed` is out of range, the weights do not fit the environment, or too few of the
            played episodes are kept.
        DatasetError: an action is not legal, or a number is not finite; the message names the episode.
    """
    unit, wanted = _size(episodes, transitions)
    check_seed(seed)
    if act is None:
        act = acts.sampler(recipe.temperature)
        for stage, weights in zip(recipe.stages, params, strict=True):
            policies.check(weights, environment.spec, f"{stage} for {environment.name}")
    kept: list[Episodes] = []
    played = amount = 0
    with player(environment, act, wanted if unit == "episodes" else None) as play:
        for index, weights in enumerate(params):
            share = len(range(index, wanted, len(params)))
            # an unfinished episode that may still be filtered out does not count
            request = Request(weights, seed, played, unit, 0 if recipe.won_only else share)
            name = f"{environment.name} {recipe.stages[index]}"
            for episode, keep in _judged(play(request), recipe.won_only, unit, share, name):
                played += 1
                check(environment.spec, episode, f"{name}, episode {played}")
                if keep:
                    kept.append(episode)
                    amount += _amount(episode, unit)
                if progress is not None:
                    progress(amount, wanted, played)
    joined = (np.concatenate(field) for field in zip(*kept, strict=True))
    return Episodes(*joined), _metadata(environment, recipe, seed, transitions, played)


def _judged(
    rollouts: Iterator[Episodes], won_only: bool, unit: str, share: int, name: str
) -> Iterator[tuple[Episodes, bool]]:
    """Yield episodes, and whether to keep them, until the share is reached; raise if the filter keeps too few."""
    amount = played = steps = 0
    while amount < share:
        wanted = share if unit == "episodes" else share * played / max(steps, 1)  # episodes
        if played >= max(TRIES_AT_LEAST, TRIES_PER_EPISODE * wanted):
            raise ConfigError(
                f"{name}: kept {amount} of {share} {unit} after {played} episodes; the policy wins too rarely for"
                " won_only"
            )
        episode = next(rollouts)
        played, steps = played + 1, steps + int(episode.length[0])
        keep = not won_only or bool(episode.won[0])
        amount += _amount(episode, unit) if keep else 0
        yield episode, keep


def _amount(episode: Episodes, unit: str) -> int:
    return 1 if unit == "episodes" else int(episode.length[0])


def _metadata(
    environment: Environment | HostEnvironment,
    recipe: policies.Quality,
    seed: int,
    transitions: int | None,
    played: int,
) -> dict[str, Any]:
    return {
        "environment": environment.name,
        "max_return": environment.max_return,
        "temperature": recipe.temperature,
        "won_only": recipe.won_only,
        "description": describe(recipe),
        "seed": seed,
        "transitions": transitions,
        "rollouts": played,
        "versions": {**environment.versions, "numpy": np.__version__, **installed("omcda-jax")},
    }


def describe(recipe: policies.Quality) -> str:
    """Return in words how a dataset is made.

    Args:
        recipe: the dataset's definition.
    """
    *others, last = recipe.stages
    policies = f"{', '.join(others)} and {last}" if others else last
    which = "only won episodes kept" if recipe.won_only else "every episode kept"
    if recipe.temperature == 0:
        return f"greedy actions of the {policies} policy; {which}"
    return f"actions sampled from the {policies} policy at temperature {recipe.temperature:g}; {which}"


def default_path(
    environment: str, quality: str, episodes: int | None = None, seed: int = 0, transitions: int | None = None
) -> Path:
    """Return where a dataset is cached, relative to the working directory.

    Args:
        environment: for instance `smax/3m`.
        quality: for instance `medium`.
        episodes: how many; or
        transitions: how many at least, in whole episodes.
        seed: seed of the collection.

    Raises:
        ConfigError: not exactly one size, or a size below 1.
    """
    unit, wanted = _size(episodes, transitions)
    size = f"{wanted}" if unit == "episodes" else f"{wanted}_transitions"
    return Path("datasets") / environment / f"{quality}_{size}_seed{seed}.h5"


def ensure(
    environment: str,
    quality: str,
    episodes: int | None = None,
    seed: int = 0,
    transitions: int | None = None,
    path: str | os.PathLike | None = None,
    log: Callable[[str], None] = print,
    behaviour: acts.Behaviour | None = None,
) -> Path:
    """Return the path of a dataset file, collecting it first if there is none.

    If several processes want the same file at once, one collects it and the others wait.

    Args:
        environment: for instance `smax/3m`.
        quality: one of `policies.QUALITIES`, such as `medium`, or `random`; with a behaviour, any name.
        episodes: how many; or
        transitions: how many at least, in whole episodes.
        seed: seed of the collection.
        path: the file; None is `default_path`. An existing file is not opened: reading it checks it.
        log: called with one line of text now and then.
        behaviour: the behaviour to roll out; None is the package's own for the environment and quality.

    Raises:
        ConfigError: not exactly one size, unknown environment or quality, a missing package, a folder that cannot be
            written.
        DatasetError: the disk refuses the file, or a policy takes an illegal action.
    """
    unit, size = _size(episodes, transitions)
    path = default_path(environment, quality, episodes, seed, transitions) if path is None else Path(path)
    if path.exists():
        return path
    h5.require()
    simulator = make(environment)
    if behaviour is None:
        behaviour = of_chance(simulator) if quality == "random" else of_stages(environment, quality)
    require_folder(path.parent)
    lock = path.with_name(f"{path.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            wait = lambda holder: log(f"waiting for another process that collects it ({holder})")
            missing = held.enter_context(made_once(path, lock, wait))
        except OSError as error:
            raise ConfigError(f"{lock}: cannot lock it: {error.strerror}") from error
        if missing:
            log(f"no dataset at {path}: collecting {size} {unit} of {environment} ({behaviour.facts['description']})")
            began = time.monotonic()
            sizes = {"episodes": episodes, "transitions": transitions}
            request = {"seed": seed, "act": behaviour.act, **sizes, "progress": _Progress(unit, log)}
            data, metadata = collect(simulator, behaviour.params, behaviour.recipe, **request)
            words = [f"--environment={shlex.quote(environment)}", *behaviour.flags, f"--{unit}={size}"]
            generator = " ".join(["python experiments/collect.py", *words, f"--seed={seed}"])
            metadata |= {"quality": quality, "generator": generator, **behaviour.facts}
            hdf5.write(path, simulator.spec, data, metadata)
            log(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB) in {time.monotonic() - began:.0f} s")
    return path


def of_stages(environment: str, quality: str, folder: Path | None = None) -> acts.Behaviour:
    """Return the behaviour of a dataset that is made from stages of training.

    Args:
        environment: for instance `smax/3m`.
        quality: for instance `medium`, see `policies.quality`.
        folder: folder of the weights; None is the package's own.

    Raises:
        ConfigError: as `policies.quality`, or weights are missing or damaged.
    """
    recipe = policies.quality(environment, quality, folder)
    files = {stage: policies.weights_path(environment, stage, folder) for stage in recipe.stages}
    return acts.Behaviour(
        recipe,
        tuple(policies.read_weights(file) for file in files.values()),
        None,
        {"description": describe(recipe), "weights": {stage: sha256(file) for stage, file in files.items()}},
        (*(() if folder is None else (f"--weights={shlex.quote(str(folder))}",)), f"--quality={quality}"),
    )


def of_chance(environment: Environment | HostEnvironment) -> acts.Behaviour:
    """Return the behaviour of the dataset `random`: every legal action is as likely as any other.

    Args:
        environment: where to play.
    """
    facts = {"description": f"{acts.CHANCE}; every episode kept", "policy": "random", "temperature": None}
    flags = ("--policy=random", "--quality=random")
    return acts.Behaviour(policies.Quality(("random",)), ((),), acts.uniform(environment.spec.discrete), facts, flags)


class _Progress:
    """Progress lines: one about every five seconds, and one at the end.

    From the second line on, the time left is estimated by the rate since the first line; before, a simulator compiles.
    """

    def __init__(self, unit: str, log: Callable[[str], None]):
        self._unit, self._log = unit, log
        self._began = self._logged = time.monotonic()
        self._first: tuple[float, int] | None = None

    def __call__(self, kept: int, wanted: int, played: int) -> None:
        now = time.monotonic()
        if kept < wanted and now - self._logged <= 5:
            return
        self._logged, seconds = now, now - self._began
        since, before = self._first = self._first or (now, kept)
        left = f", left {(now - since) * max(0, wanted - kept) / (kept - before):.0f} s" if kept > before else ""
        self._log(f"  kept {kept} of {wanted} {self._unit}, episodes played: {played}, {seconds:.0f} s{left}")


def _size(episodes: int | None, transitions: int | None) -> tuple[str, int]:
    """Return the unit of a dataset's size, and the size."""
    given = {unit: size for unit, size in (("episodes", episodes), ("transitions", transitions)) if size is not None}
    if len(given) != 1:
        raise ConfigError(f"size: expected one of episodes and transitions, found {' and '.join(given) or 'neither'}")
    ((unit, size),) = given.items()
    if size < 1:
        raise ConfigError(f"{unit}: expected at least 1, found {size}")
    return unit, size
