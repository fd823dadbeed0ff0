"""Published dataset formats, recognised by content: all are read into `Episodes`, and some can be written.

    omcda    the project's own HDF5 (omcda_jax/data/hdf5.py); everything kept
    omiga    OMIGA's multi-agent MuJoCo HDF5, flat rows s, o, a, r, d
    cfcql    CFCQL's SMAC files, padded episode batches of PyMARL
    d4rl     D4RL's single-agent HDF5
    omar     OMAR's folders of NumPy files, particles and MuJoCo
    madiff   MADiff's folders of NumPy files
    vault    Flashbax vaults, in which OG-MARL publishes
    madt     MADT's and OMIGA's SMAC episodes, files of torch.save
    minari   Minari's single-agent datasets, by its own library

Data of an HDF5 format may be one file, a folder of such files, or a folder of NumPy files named by its keys. A folder
of HDF5 files is read as one dataset in the natural order of the names. Foreign files are taken as they are:
`Contents.notes` names what looks like a known oddity, and `Repairs` corrects it.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from omcda_jax.config import Repairs
from omcda_jax.data import guess, h5, hdf5
from omcda_jax.data.dataset import Dataset, arrange, put
from omcda_jax.data.episodes import Episodes, as_arrays, by_step, check, statistics
from omcda_jax.data.formats import cfcql, d4rl, madiff, madt, minari, npy, omar, omiga, rows, vault
from omcda_jax.data.formats.repair import quirks, repaired
from omcda_jax.files import replacing
from omcda_jax.types import ConfigError, DatasetError, EnvSpec

NAMES = ("omcda", "omiga", "cfcql", "d4rl", "omar", "madiff", "vault", "madt", "minari")
WRITTEN = ("omcda", "omiga", "vault")
# layouts of named arrays, in HDF5 or NumPy files
_ARRAYS = {"madiff": madiff, "omiga": omiga, "cfcql": cfcql, "d4rl": d4rl}
_FOLDERS = {"vault": vault, "minari": minari, "omar": omar, "madt": madt}


class Contents(NamedTuple):
    """What a dataset contains.

    Attributes:
        format: one of `NAMES`.
        spec: sizes; for a foreign file, those of its arrays.
        episodes: the data, checked.
        metadata: as in `hdf5.read`; for a foreign file, its format, its statistics and the digest of its arrays.
        notes: lines on what was left out and what looks odd.
    """

    format: str
    spec: EnvSpec
    episodes: Episodes
    metadata: dict[str, Any]
    notes: tuple[str, ...]


def sniff(path: str | os.PathLike) -> str:
    """Return the format of a file or folder, by its content.

    Args:
        path: the file or folder.

    Raises:
        DatasetError: there is nothing, or its format is not known; the message says what is there.
        ConfigError: h5py is needed but not installed.
    """
    path = os.fspath(path)
    if os.path.exists(path) and not os.access(path, os.R_OK):
        raise DatasetError(f"{path}: expected permission to read it, found none")
    if os.path.isdir(path):
        return _sniff_folder(path)
    if os.path.isfile(path) and madt.is_torch_file(path):
        return "madt"
    with h5.opened(path) as file:
        keys = set(file)
        named = str(file.attrs.get("format", ""))
    kind = _layout(keys - {"path_lengths"})
    if kind and named != hdf5.FORMAT:
        return kind
    # without other evidence, the reader of the own format says best what is missing
    if named or set(hdf5.KEYS) & keys:
        return "omcda"
    if any(key.startswith("episode_") for key in keys):
        raise DatasetError(
            f"{path}: expected a dataset, found the episodes of a Minari dataset; name the parent folder"
        )
    raise DatasetError(
        f"{path}: expected the keys of one of omcda ({', '.join(hdf5.KEYS)}), omiga ({', '.join(omiga.KEYS)}), cfcql"
        f" ({', '.join(cfcql.KEYS)}) and d4rl ({', '.join(d4rl.KEYS)}), found {guess.shown(keys)}"
    )


def _sniff_folder(path: str) -> str:
    names = guess.visible(path)
    if omar.matches(names):
        return "omar"
    if kind := _layout(_stems(names)):
        return kind
    for name in ("vault", "minari"):
        if _FOLDERS[name].matches(path):
            return name
    files = guess.parts(path)
    if files and madt.is_torch_file(files[0]):
        return "madt"
    if parts := _hdf5_parts(path):
        return _one_format(path, parts)
    if guess.is_checkpoint(path):
        raise DatasetError(f"{path}: expected a dataset, found {guess.describe_folder(path)}")
    below = sorted(name for name in names if vault.matches(os.path.join(path, name)))
    if below:
        raise DatasetError(f"{path}: expected a dataset, found vaults below: {', '.join(below[:8])}; name one")
    inside = sorted(name for name in names if _holds_a_dataset(os.path.join(path, name)))
    if inside:
        raise DatasetError(f"{path}: expected a dataset, found datasets below: {', '.join(inside[:8])}; name one")
    raise DatasetError(
        f"{path}: expected a vault, a Minari dataset, NumPy files (OMAR's, MADiff's, PyMARL's), MADT's episodes or a"
        f" folder of HDF5 files, found {guess.describe_folder(path)}"
    )


def _layout(keys: set[str]) -> str | None:
    return next((name for name, module in _ARRAYS.items() if module.matches(keys)), None)


def _stems(names: set[str]) -> set[str]:
    return {name.removesuffix(".npy") for name in names if name.endswith(".npy")}


def _hdf5_parts(path: str) -> list[str]:
    return [file for file in guess.parts(path) if file.endswith((".h5", ".hdf5"))]


def _one_format(path: str, parts: list[str]) -> str:
    kinds = {part: sniff(part) for part in parts}
    first = kinds[parts[0]]
    for part, kind in kinds.items():
        if kind == "omcda":
            raise DatasetError(
                f"{path}: expected parts of a dataset in a foreign format, found the project's own format;"
                f" name one: {part}"
            )
        if kind != first:
            raise DatasetError(f"{part}: expected the format {first}, as {parts[0]} has, found {kind}")
    return first


def _holds_a_dataset(path: str) -> bool:
    names = guess.visible(path)
    return bool(names) and (omar.matches(names) or _layout(_stems(names)) is not None or minari.matches(path))


def read(
    path: str | os.PathLike,
    *,
    spec: EnvSpec | None = None,
    environment: str | None = None,
    repairs: Repairs | None = None,
    mapped: bool = False,
) -> Contents:
    """Read a dataset of any known format and check everything that can be checked.

    Args:
        path: a file or folder.
        spec: the sizes it must have; None accepts any.
        environment: the environment it must be of; None accepts any. Foreign files do not name theirs.
        repairs: what to correct in a foreign file; None corrects nothing.
        mapped: leave the arrays of the own format on the disk, see `hdf5.mapped`; foreign files are read into memory.

    Raises:
        DatasetError: one line naming the file, the key, what was expected and what was found.
        ConfigError: h5py is not installed, or a repair does not fit the data.
    """
    path, kind = os.fspath(path), sniff(path)
    repairs = repairs or Repairs()
    if kind == "omcda":
        if repairs != Repairs():
            asked = dataclasses.asdict(repairs).items() - dataclasses.asdict(Repairs()).items()
            found = ", ".join(f"{key}={value}" for key, value in sorted(asked))
            raise ConfigError(f"{path}: expected no repairs of the project's own format, found {found}")
        read_own = hdf5.mapped if mapped else hdf5.read
        sizes, episodes, metadata = read_own(path, spec=spec, environment=environment)
        totals, recorded = statistics(episodes), metadata.get("statistics")
        if isinstance(recorded, Mapping) and "win_rate" not in recorded:
            totals["win_rate"] = None  # the file was converted from a format that does not say who won
        return Contents(kind, sizes, episodes, metadata | {"statistics": totals}, ())
    reading = _read_arrays(_ARRAYS[kind], path) if kind in _ARRAYS else _FOLDERS[kind].read(path)
    where = by_step(reading.episodes.length, reading.files)
    # if a repair makes a number infinite, `check` finds it and names it
    with np.errstate(all="ignore"):
        episodes, left_out = repaired(reading.episodes, repairs, path, reading.stored, where)
        odd = quirks(episodes)
    sizes = _sizes(episodes, path)
    # a repair may leave out whole episodes; after that it is unknown which file an episode is from
    files = reading.files if len(episodes.length) == len(reading.stored) else ()
    try:
        check(sizes, episodes, path, by_step(episodes.length, files))
    except DatasetError as error:
        raise DatasetError("; ".join([str(error), *odd])) from error
    if spec is not None:
        hdf5.require_spec(path, spec, sizes)
    # no foreign format says which episodes were won
    totals = statistics(episodes) | {"win_rate": None}
    metadata = {"format": kind, "statistics": totals, "digest": hdf5.digest(episodes, {})}
    return Contents(kind, sizes, episodes, metadata, (*reading.notes, *left_out, *odd))


def _read_arrays(module: Any, path: str) -> rows.Reading:
    """Read a layout of named arrays from a file, a folder of NumPy files or a folder of parts."""
    keys = (*module.KEYS, *module.OPTIONAL)
    if os.path.isfile(path):
        return module.parse(h5.arrays(path, keys), path)
    if module.matches(_stems(guess.visible(path))):
        return module.parse(npy.load_all(path, keys), path)
    parts = _hdf5_parts(path)
    reading = rows.joined([module.parse(h5.arrays(part, keys), part) for part in parts], parts)
    notes = [f"{len(parts)} files read as one dataset: {guess.shown(os.path.basename(part) for part in parts)}"]
    numbers = [int(match[1]) for part in parts if (match := re.search(r"(\d+)\.(?:h5|hdf5)$", part))]
    first, last = min(numbers, default=0), max(numbers, default=0)
    # numbers far apart are dates and the like
    missing = sorted({*range(first, last)} - {*numbers}) if last - first < 10 * len(parts) else []
    if len(numbers) == len(parts) and missing:
        notes.append(f"parts missing: {', '.join(str(number) for number in missing[:8])}")
    return reading._replace(notes=[*notes, *reading.notes])


def load(
    path: str | os.PathLike,
    *,
    spec: EnvSpec | None = None,
    environment: str | None = None,
    reward_scale: float = 1.0,
    repairs: Repairs | None = None,
    placement: Literal["device", "host"] = "device",
) -> tuple[Dataset, dict[str, Any]]:
    """Read a dataset of any known format and place it on the device, or keep it on the host.

    Args:
        path, spec, environment, repairs: as in `read`.
        reward_scale: factor on the rewards; the metadata's statistics stay in the environment's own units.
        placement: `host` keeps NumPy arrays; those of the own format are memory-mapped, see `hdf5.mapped`.

    Returns:
        The dataset, and the metadata with the reader's `notes`.

    Raises:
        DatasetError, ConfigError: as `read`.
    """
    on_host = placement == "host"
    contents = read(path, spec=spec, environment=environment, repairs=repairs, mapped=on_host)
    dataset = arrange(contents.spec, contents.episodes, reward_scale)
    return dataset if on_host else put(dataset), contents.metadata | {"notes": contents.notes}


def stored_bytes(path: str | os.PathLike) -> int:
    """Return how many bytes the arrays of a file or folder take when unpacked, from its headers alone.

    The number is exact for the project's own format and approximate for the others.

    Args:
        path: the file or folder.

    Raises:
        DatasetError, ConfigError: as `sniff`; or a vault's description is damaged.
    """
    path, kind = os.fspath(path), sniff(path)
    if kind == "vault":
        return vault.stored_bytes(path)
    parts = [path] if os.path.isfile(path) else _hdf5_parts(path)
    if kind == "omcda" or kind in _ARRAYS and parts:
        return sum(h5.stored_bytes(part) for part in parts)
    # torch's and NumPy's files are not compressed
    files = [path] if os.path.isfile(path) else [file for file in Path(path).rglob("*") if file.is_file()]
    return sum(os.path.getsize(file) for file in files)


def write(
    path: str | os.PathLike, kind: str, spec: EnvSpec, episodes: Episodes, metadata: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write a dataset to a path that does not exist yet.

    Args:
        path: a file, or a folder for a vault.
        kind: one of `WRITTEN`.
        spec: the task's sizes.
        episodes: the data.
        metadata: attributes, kept as far as the format has room for them.

    Returns:
        Lines on what the format cannot store.

    Raises:
        DatasetError: the episodes are not valid, or the disk refuses them.
        ConfigError: the format is unknown or cannot store such data, or the path exists already.
    """
    path = Path(path)
    if kind not in WRITTEN:
        raise ConfigError(f"format: expected one of {', '.join(WRITTEN)}, found {kind!r}")
    if path.exists():
        raise ConfigError(f"{path}: expected nothing there, found a {'folder' if path.is_dir() else 'file'}")
    episodes = as_arrays(spec, episodes, os.fspath(path))
    check(spec, episodes, os.fspath(path))
    if kind == "omcda":
        hdf5.write(path, spec, episodes, metadata)
        return ()
    if kind == "omiga":
        if spec.discrete:
            raise ConfigError(f"{path}: format omiga: expected continuous actions, found discrete ones")
        h5.store(path, lambda file: omiga.write(file, episodes))
        lost = ["whether an episode ended or was cut by the time limit", "which episodes were won", "the metadata"]
        if not episodes.avail.all():
            lost.append("which dimensions of the actions are padding")
        return tuple(lost)
    try:
        with replacing(path) as partial:
            vault.write(os.fspath(partial), spec, episodes, hdf5.plain(metadata, path))
    except OSError as error:
        raise DatasetError(f"{path}: could not write: {error.strerror}") from error
    lost = ["which episodes were won"]
    if not spec.discrete and not episodes.avail.all():
        lost.append("which dimensions of the actions are padding")
    if not episodes.terminated.all():
        lost.append(f"the last observation of {(~episodes.terminated).sum()} episodes cut by the time limit")
    return tuple(lost)


def _sizes(episodes: Episodes, path: str) -> EnvSpec:
    for key in ("obs", "global_state", "avail"):
        if 0 in getattr(episodes, key).shape:
            found = getattr(episodes, key).shape
            raise DatasetError(f"{path}: {key}: expected at least one entry on each axis, found shape {found}")
    return EnvSpec(
        num_agents=int(episodes.obs.shape[1]),
        obs_dim=int(episodes.obs.shape[2]),
        state_dim=int(episodes.global_state.shape[1]),
        action_dim=int(episodes.avail.shape[2]),
        discrete=bool(episodes.action.dtype.kind != "f"),
    )
