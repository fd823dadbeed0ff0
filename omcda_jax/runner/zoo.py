"""Trained policies; each entry has a card with what they are and what return they reach.

    list                 list the entries
    get NAME             check the checksum of an entry and unpack it into OUT/NAME
    evaluate NAME ...    play the episodes, and say whether the policies reach the return on the card here
    add RUN              make an entry of a finished run, or of trials that differ only in the seed

An entry is NAME.zip in a folder, with NAME.zip.sha256 next to it. The archive contains card.json and a saved policy for
each seed, seed_0 and so on, for `omcda_jax.checkpoint.load_policy`. NAME may also be an unpacked entry. With
--repository, entries are those of a dataset repository on the Hugging Face Hub, and `get` and `evaluate` unpack them
into OUT/NAME.
"""

import contextlib
import io
import json
import math
import operator
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from omcda_jax import algorithms, envs
from omcda_jax.checkpoint import load_policy, save_policy
from omcda_jax.config import to_dict
from omcda_jax.data import hub, manifest
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.evaluate import make_evaluate, summarise
from omcda_jax.files import check_free, replacing, sha256
from omcda_jax.metrics import standard_deviation
from omcda_jax.runner.datasets import warn_of_versions
from omcda_jax.runner.evaluation import EPISODES_AT_ONCE
from omcda_jax.runner.jobs import Job, job_of_run, restore
from omcda_jax.runner.outcomes import load
from omcda_jax.runner.processes import guarded, say
from omcda_jax.runner.report import align, provenance
from omcda_jax.system import new_flags, one_line, read_flags
from omcda_jax.types import Actor, ConfigError, DatasetError, updates_done

COMMANDS = {"list": "", "get": "NAME", "evaluate": "NAME ...", "add": "RUN"}
CARD = "card.json"
KEYS = ("name", "environment", "quality", "algorithm", "updates", "evaluation", "policies", "environment_versions")
FORMAT = 1  # of the card; raise it when a key changes its meaning
WIDE = 2.576  # standard errors on each side of a 99 % interval
USUAL = 1.96  # standard errors on each side of a 95 % interval


class Played(NamedTuple):
    """What policies reached, all in the same episodes.

    Attributes:
        summaries: the summary of each policy, as `summarise` returns it.
        mean: mean over policies of their mean returns.
        error: standard error of `mean` for these policies: over episodes, of the policies' mean return in each.
    """

    summaries: list[dict[str, float]]
    mean: float
    error: float


def play(actors: Sequence[Actor], environment: Environment | HostEnvironment, episodes: int, seed: int) -> Played:
    """Play greedy episodes with policies of one algorithm and one shape.

    Args:
        actors: the policies; they differ only in their numbers.
        environment: where to play.
        episodes: episodes per policy.
        seed: seed of the episodes, the same for all policies.
    """
    evaluate = make_evaluate(algorithms.act, environment, episodes, population=True)
    together = max(1, EPISODES_AT_ONCE // episodes)
    summaries, returns = [], []
    for first in range(0, len(actors), together):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *actors[first : first + together])
        results = jax.device_get(evaluate(stacked, jax.random.key(seed)))
        summaries += [summarise(type(results)(*rows)) for rows in zip(*results, strict=True)]
        returns += [*results.returns]
    # the episodes are the same for all policies, so their returns vary together
    own = np.mean(returns, axis=0, dtype=np.float64)
    return Played(summaries, float(own.mean()), standard_deviation(own) / math.sqrt(episodes))


def add(job: Job, zoo: str | os.PathLike, name: str, trained_with: Any = None) -> Path:
    """Make an entry of a finished job: its last policies, evaluated as its settings say.

    Args:
        job: the job; its trials differ only in the seed.
        zoo: the folder of entries.
        name: the entry's name, with folders if it has slashes.
        trained_with: versions, device and commit of the training, for the card; None if they are not known.

    Returns:
        The archive.

    Raises:
        ConfigError: the job is still training, has no checkpoint, is not finished or has several settings, or the entry
            exists.
    """
    archive, config = _archive(zoo, name), job.config
    if archive.exists():
        raise ConfigError(f"--name: expected a new entry, found {archive}")
    environment = envs.make(config.data.environment)
    actors, data = _finished(job, environment)
    evaluation = config.evaluation
    played = play(list(actors.values()), environment, evaluation.episodes, evaluation.seed)
    settings = {key: value for key, value in to_dict(config).items() if key not in ("seed", "directory")}
    card = {
        "format": FORMAT,
        "name": name,
        "preset": config.name,
        "environment": config.data.environment,
        "quality": config.data.quality,
        "algorithm": config.algorithm.name,
        "updates": config.learner.updates,
        "settings": settings,
        "data": data,
        "evaluation": {"episodes": evaluation.episodes, "seed": evaluation.seed, **_interval(played)},
        "policies": dict(zip(actors, played.summaries, strict=True)),
        "environment_versions": dict(environment.versions),
        "trained_with": trained_with,
        "evaluated_with": provenance(),
    }
    _pack(archive, card, actors)
    return archive


def _finished(job: Job, environment: Environment | HostEnvironment) -> tuple[dict[str, Actor], Mapping[str, Any]]:
    """The policies of a finished job, by folder, and the metadata of its data."""
    if len({repr(each.algorithm) for each in job.configs}) > 1:
        raise ConfigError(f"{job.directory}: expected trials that differ by their seed alone, found several settings")
    check_free(job.directory, "RUN")
    state, metadata = restore(job, environment.spec)
    done, updates = 0 if state is None else updates_done(state), job.config.learner.updates
    if done < updates:
        raise ConfigError(f"{job.directory}: expected a finished run of {updates} updates, found {done}")
    actors = {}
    for trial, config in enumerate(job.configs):
        own = jax.tree.map(operator.itemgetter(trial), state) if job.population else state
        actors[f"seed_{config.seed}"] = job.algorithm.policy(own)
    return actors, metadata["data"]


def _interval(played: Played) -> dict[str, float]:
    """The mean return of an entry with its 95 % interval, and the win rate."""
    width = USUAL * played.error
    return {
        "return_mean": played.mean,
        "return_se": played.error,
        "return_low": played.mean - width,
        "return_high": played.mean + width,
        "win_rate": float(np.mean([each["win_rate"] for each in played.summaries])),
    }


def _pack(archive: Path, card: Mapping[str, Any], actors: Mapping[str, Actor]) -> None:
    """Write an archive and its checksum; equal contents give equal bytes."""
    with tempfile.TemporaryDirectory() as place:
        for folder, actor in actors.items():
            save_policy(os.path.join(place, folder), actor)
        Path(place, CARD).write_text(json.dumps(card, indent=2) + "\n")
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(path for path in Path(place).rglob("*") if path.is_file()):
                file.writestr(zipfile.ZipInfo(path.relative_to(place).as_posix()), path.read_bytes())
    try:
        with replacing(archive) as partial:
            partial.write_bytes(packed.getvalue())
        manifest.write(archive)
    except OSError as error:
        raise ConfigError(f"{archive}: cannot write the entry: {error.strerror or error}") from error


def _archive(zoo: str | os.PathLike, name: str) -> Path:
    parts = Path(name).parts
    if not parts or ".." in parts or Path(name).is_absolute():
        raise ConfigError(f"NAME: expected a name such as smac_5m6m/omcda, found {name!r}")
    return Path(zoo, f"{name}.zip")


def entries(zoo: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Return the cards of a folder's entries by name, in order.

    Raises:
        ConfigError: there is no such folder.
        DatasetError: an archive is damaged.
    """
    if not os.path.isdir(zoo):
        raise ConfigError(f"--zoo: expected a folder of entries, found none at {zoo}")
    archives = sorted(Path(zoo).rglob("*.zip"))
    return {archive.relative_to(zoo).with_suffix("").as_posix(): _card(archive) for archive in archives}


def _card(place: Path) -> dict[str, Any]:
    """The card of an archive, or of an unpacked entry."""
    try:
        if place.is_dir():
            text = (place / CARD).read_bytes()
        else:
            with zipfile.ZipFile(place) as file:
                text = file.read(CARD)
        card = json.loads(text)
        found, missing = card["format"], [key for key in KEYS if key not in card]
    except (OSError, LookupError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{place}: expected an entry of a zoo with a {CARD}: {one_line(error)}") from error
    if found != FORMAT:
        raise DatasetError(f"{place}: format: expected {FORMAT}, found {found}; use the version that wrote it")
    if missing:
        raise DatasetError(f"{place}: {CARD}: expected the keys {', '.join(KEYS)}, found no {missing[0]}")
    return card


@contextlib.contextmanager
def opened(zoo: str | os.PathLike, name: str) -> Iterator[Path]:
    """Yield an entry's folder: its own if it is unpacked, else a temporary one.

    Args:
        zoo: the folder of entries.
        name: the name of an entry, or an unpacked entry.

    Raises:
        ConfigError: there is no such entry.
        DatasetError: its checksum is missing, or is not that of the archive.
    """
    if os.path.isfile(os.path.join(name, CARD)):
        yield Path(name)
        return
    archive = _archive(zoo, name)
    if not archive.is_file():
        raise ConfigError(f"{name}: no such entry of {zoo}; there: {', '.join(entries(zoo)) or 'none'}")
    sums = manifest.find(archive)
    if sums is None:
        raise DatasetError(f"{archive}: expected a checksum in {archive}.sha256, found none")
    manifest.verify(archive, sums)
    _card(archive)
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(archive) as file:
        file.extractall(place)
        yield Path(place)


def get(zoo: str | os.PathLike, name: str, out: str | os.PathLike) -> Path:
    """Unpack an entry into `out/name`, unless it is already there.

    Args:
        zoo: the folder of entries.
        name: the entry's name.
        out: folder of unpacked entries.

    Raises:
        ConfigError, DatasetError: as in `opened`; or the folder cannot be written.
    """
    target = Path(out, name)
    if not (target / CARD).is_file():
        with opened(zoo, name) as place:
            try:
                with replacing(target) as partial:
                    os.mkdir(partial)
                    for path in sorted(place.rglob("*")):
                        copy = partial / path.relative_to(place)
                        copy.mkdir() if path.is_dir() else copy.write_bytes(path.read_bytes())
            except OSError as error:
                raise ConfigError(f"{target}: cannot write: {error.strerror or error}") from error
    return target


def holds(card: Mapping[str, Any], played: Played) -> tuple[float, float, bool]:
    """Return the 99 % interval around the played mean in which the card's return is expected, and whether it is in it.

    The standard errors of both means say how far they differ by chance; the same episodes on another machine differ by
    less.

    Args:
        card: the entry's card.
        played: episodes of its policies.
    """
    recorded, error = card["evaluation"]["return_mean"], card["evaluation"]["return_se"]
    width = WIDE * math.hypot(error, played.error) + 1e-4 * max(1.0, abs(recorded))
    low, high = played.mean - width, played.mean + width
    return low, high, low <= recorded <= high


def evaluate(place: Path, episodes: int | None = None, seed: int | None = None) -> bool:
    """Play an unpacked entry's policies, print what they reach, and return whether the card's return holds.

    Args:
        place: the entry's folder.
        episodes: episodes per policy; None: as many as on the card.
        seed: seed of the episodes; None: the card's, and so the same episodes.

    Raises:
        ConfigError, DatasetError: the entry is damaged, or is for another task than the simulator's.
    """
    card = _card(place)
    recorded = card["evaluation"]
    environment = envs.make(card["environment"])
    warn_of_versions(f"the policies of {card['name']}", card["environment_versions"], environment)
    actors = [load_policy(place / folder) for folder in card["policies"]]
    for actor in actors:
        if actor.spec != environment.spec:
            raise ConfigError(f"{place}: expected policies for {environment.spec}, found {actor.spec}")
    seed = recorded["seed"] if seed is None else seed
    played = play(actors, environment, episodes or recorded["episodes"], seed)
    low, high, inside = holds(card, played)
    say(
        f"{card['name']}: {played.mean:.4g} ± {played.error:.2g} in {played.summaries[0]['episodes']} episodes of "
        f"{len(actors)} policies; the card says {recorded['return_mean']:.4g}, which is "
        f"{'within' if inside else 'outside'} {low:.4g} to {high:.4g}"
    )
    return inside


def table(zoo: str | os.PathLike) -> str:
    """Return the entries of a folder as lines of text.

    Raises:
        ConfigError, DatasetError: as in `entries`.
    """
    rows = [["entry", "environment", "data", "algorithm", "updates", "policies", "return (95 %)", "won", "sha256"]]
    for name, card in entries(zoo).items():
        reached = card["evaluation"]
        interval = f"{reached['return_mean']:.4g} ({reached['return_low']:.4g} to {reached['return_high']:.4g})"
        size, won = str(len(card["policies"])), f"{reached['win_rate']:.2f}"
        about = [card["environment"], card["quality"], card["algorithm"], str(card["updates"])]
        rows.append([name, *about, size, interval, won, sha256(_archive(zoo, name))[:12]])
    return align(rows)


def main(argv: Sequence[str]) -> int:
    """Run one command line, with the program's name in `argv[0]`; return the exit status, 1 if a return is outside."""
    return guarded(lambda interruption: _run(argv))


def _flags() -> flags.FlagValues:
    values, define = new_flags()
    define("string", "zoo", "benchmarks/zoo", "Folder of entries; that of a clone contains this project's.")
    define("string", "out", "zoo", "Folder that entries are unpacked into.")
    define("string", "name", None, "Name of the new entry; by default PRESET/ALGORITHM.")
    define("integer", "episodes", None, "Episodes of each policy; by default as many as on the card.")
    define("integer", "seed", None, "Seed of the episodes; by default the card's.")
    define("string", "repository", None, "Repository of datasets on the Hub to take the entries from.")
    define("string", "revision", "main", "Branch, tag or commit there.")
    define("string", "endpoint", None, "Address of the Hub or of its mirror.")
    return values


def _run(argv: Sequence[str]) -> int:
    values = _flags()
    words = read_flags(values, argv)
    if values.help:
        print(f"{__doc__}\n{values.get_help()}")
        return os.EX_OK
    command, *names = words or [""]
    if command not in COMMANDS or (bool(names) != bool(COMMANDS[command])) or (command in ("get", "add") and names[1:]):
        known = "; ".join(f"{name} {needed}".strip() for name, needed in COMMANDS.items())
        raise ConfigError(f"expected one of {known}, found {' '.join(words)!r}")
    return {"list": _list, "get": _get, "evaluate": _evaluate, "add": _add}[command](values, names)


def _list(values: Any, names: Sequence[str]) -> int:
    print(table(values.zoo) if values.repository is None else "\n".join(hub.archives(**_where(values))))
    return os.EX_OK


def _get(values: Any, names: Sequence[str]) -> int:
    [name] = names
    print(get(values.zoo, name, values.out) if values.repository is None else _downloaded(values, name))
    return os.EX_OK


def _where(values: Any) -> dict[str, Any]:
    return {"repository": values.repository, "revision": values.revision, "endpoint": values.endpoint}


def _downloaded(values: Any, name: str) -> Path:
    """The folder of an entry from the Hub, downloaded unless it is there."""
    hub.download(name, values.out, log=say, **_where(values))
    target = Path(values.out, name)
    _card(target)
    return target


def _evaluate(values: Any, names: Sequence[str]) -> int:
    if values.episodes is not None and values.episodes < 1:
        raise ConfigError(f"--episodes: expected at least 1, found {values.episodes}")
    with contextlib.ExitStack() as places:
        # all entries are downloaded before the first one plays
        if values.repository is None:
            folders = [places.enter_context(opened(values.zoo, name)) for name in names]
        else:
            folders = [_downloaded(values, name) for name in names]
        held = [evaluate(folder, values.episodes, values.seed) for folder in folders]
    return os.EX_OK if all(held) else 1


def _add(values: Any, names: Sequence[str]) -> int:
    [directory] = names
    job = job_of_run(os.path.abspath(directory))._replace(flag="RUN")
    name = values.name or f"{job.config.name}/{job.config.algorithm.name.replace(':', '.')}"
    archive = add(job, values.zoo, name, _trained_with(directory))
    print(f"{archive}: {os.path.getsize(archive) / 1e6:.2f} MB")
    return os.EX_OK


def _trained_with(directory: str) -> dict[str, Any] | None:
    """What a run's result.json says about where it was trained."""
    with contextlib.suppress(ConfigError):
        result = load(os.path.join(directory, "result.json"))
        return {key: result.get(key) for key in ("versions", "platform", "device", "git", "git_dirty")}
    return None
