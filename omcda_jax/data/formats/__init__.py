"""Published dataset formats, recognised by content: read into `Episodes`, some of them written too.

    omcda    the project's own HDF5 (omcda_jax/data/hdf5.py); everything kept
    omiga    OMIGA's multi-agent MuJoCo HDF5, flat rows s, o, a, r, d
    cfcql    CFCQL's SMAC HDF5, padded episode batches
    omar     OMAR's folders of NumPy files, particles and MuJoCo
    vault    Flashbax vaults, in which OG-MARL publishes
    madt     MADT's and OMIGA's SMAC episodes, files of torch.save

Foreign files are taken as they are: `Contents.notes` names what looks like a known oddity, and `Repairs`
corrects it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from omcda_jax.config import Repairs
from omcda_jax.data import hdf5
from omcda_jax.data.dataset import Dataset, arrange, put
from omcda_jax.data.episodes import Episodes, check, statistics
from omcda_jax.data.formats import cfcql, madt, omar, omiga, vault
from omcda_jax.data.formats.repair import quirks, repaired
from omcda_jax.system import replacing
from omcda_jax.types import ConfigError, DatasetError, EnvSpec

NAMES = ("omcda", "omiga", "cfcql", "omar", "vault", "madt")
WRITTEN = ("omcda", "omiga", "vault")
_HDF5 = {"omiga": omiga, "cfcql": cfcql}
_FOLDERS = {"vault": vault, "omar": omar}


class Contents(NamedTuple):
    """What a dataset holds.

    Attributes:
        format: one of `NAMES`.
        spec: sizes, read off the arrays of a foreign file.
        episodes: the data, checked.
        metadata: as of `hdf5.read`; of a foreign file its format, its statistics and the digest of its arrays.
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
        DatasetError: nothing there, or of no known format; the message says what is there.
        ConfigError: h5py is needed and not installed.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        names = {name for name in os.listdir(path) if not name.startswith(".")}
        for name, module in _FOLDERS.items():
            if module.matches(names):
                return name
        first = os.path.join(path, min(names, default=""))
        if os.path.isfile(first) and madt.is_torch_file(first):
            return "madt"
        below = sorted(name for name in names if vault.matches(set(_listed(os.path.join(path, name)))))
        there = f"vaults below: {', '.join(below)}; name one" if below else _shown(names)
        raise DatasetError(f"{path}: expected a vault, OMAR's NumPy files or MADT's episodes, found {there}")
    if os.path.isfile(path) and madt.is_torch_file(path):
        return "madt"
    with hdf5.opened(path) as file:
        if "format" in file.attrs:
            return "omcda"
        for name, module in _HDF5.items():
            if module.matches(set(file)):
                return name
        # with nothing to go by, the own reader says best what is missing
        if set(hdf5.KEYS) & set(file):
            return "omcda"
        raise DatasetError(
            f"{path}: expected the keys of one of omcda ({', '.join(hdf5.KEYS)}), omiga"
            f" ({', '.join(omiga.KEYS)}) and cfcql (state, obs, actions, ...), found {_shown(file)}"
        )


def read(
    path: str | os.PathLike,
    *,
    spec: EnvSpec | None = None,
    environment: str | None = None,
    repairs: Repairs | None = None,
    mapped: bool = False,
) -> Contents:
    """Read a dataset of any known format and check everything there is to check.

    Args:
        path: a file or folder.
        spec: the sizes it must have; None accepts any.
        environment: the environment it must be of; None accepts any. Foreign files do not say.
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
            raise ConfigError(f"{path}: expected no repairs of the project's own format, found {repairs}")
        read_own = hdf5.mapped if mapped else hdf5.read
        return Contents(kind, *read_own(path, spec=spec, environment=environment), ())
    if kind in _HDF5:
        with hdf5.opened(path) as file:
            episodes, notes = _HDF5[kind].read(file, path)
    else:
        episodes, notes = (madt if kind == "madt" else _FOLDERS[kind]).read(path)
    episodes = repaired(episodes, repairs, path)
    sizes = _sizes(episodes)
    odd = quirks(episodes)
    try:
        check(sizes, episodes, path)
    except DatasetError as error:
        raise DatasetError("; ".join([str(error), *odd])) from error
    if spec is not None:
        hdf5.require_spec(path, spec, sizes)
    metadata = {"format": kind, "statistics": statistics(episodes), "digest": hdf5.digest(episodes, {})}
    return Contents(kind, sizes, episodes, metadata, (*notes, *odd))


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
        path, spec, environment, repairs: as of `read`.
        reward_scale: rewards are multiplied by it; the metadata's statistics stay in the environment's own units.
        placement: `host` keeps NumPy arrays: of the own format memory-mapped ones, see `hdf5.mapped`.

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
    """Return how many bytes the arrays of a file or folder take once they are unpacked, from its headers alone.

    Exact for the project's own format, approximate for the others.

    Args:
        path: the file or folder.

    Raises:
        DatasetError, ConfigError: as `sniff`; or a vault's description is damaged.
    """
    path, kind = os.fspath(path), sniff(path)
    if kind == "omcda" or kind in _HDF5:
        with hdf5.opened(path) as file:
            return sum(getattr(stored, "nbytes", 0) for stored in file.values())
    if kind == "vault":
        return vault.stored_bytes(path)
    # torch's and NumPy's files are not compressed
    return sum(entry.stat().st_size for entry in os.scandir(path)) if os.path.isdir(path) else os.path.getsize(path)


def write(
    path: str | os.PathLike, kind: str, spec: EnvSpec, episodes: Episodes, metadata: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write a dataset that is not there yet.

    Args:
        path: a file, for a vault a folder.
        kind: one of `WRITTEN`.
        spec: the task's sizes.
        episodes: the data.
        metadata: attributes, kept as far as the format has room for them.

    Returns:
        Lines on what the format cannot hold.

    Raises:
        DatasetError: the episodes are not valid, or the disk refuses them.
        ConfigError: an unknown format, one that cannot hold such data, or something is there already.
    """
    path = Path(path)
    if kind not in WRITTEN:
        raise ConfigError(f"format: expected one of {', '.join(WRITTEN)}, found {kind!r}")
    if path.exists():
        raise ConfigError(f"{path}: expected nothing there, found a {'folder' if path.is_dir() else 'file'}")
    check(spec, episodes, os.fspath(path))
    if kind == "omcda":
        hdf5.write(path, spec, episodes, metadata)
        return ()
    if kind == "omiga":
        if spec.discrete:
            raise ConfigError(f"{path}: format omiga: expected continuous actions, found discrete ones")
        hdf5.store(path, lambda file: omiga.write(file, episodes))
        lost = ["whether an episode ended or was cut by the clock", "which episodes were won", "the metadata"]
        if not episodes.avail.all():
            lost.append("which dimensions of the actions are padding")
        return tuple(lost)
    try:
        with replacing(path) as partial:
            vault.write(os.fspath(partial), spec, episodes, dict(metadata))
    except OSError as error:
        raise DatasetError(f"{path}: could not write: {error.strerror}") from error
    lost = ["which episodes were won"]
    if not episodes.terminated.all():
        lost.append(f"the last observation of {(~episodes.terminated).sum()} episodes cut by the clock")
    return tuple(lost)


def _sizes(episodes: Episodes) -> EnvSpec:
    return EnvSpec(
        num_agents=int(episodes.obs.shape[1]),
        obs_dim=int(episodes.obs.shape[2]),
        state_dim=int(episodes.global_state.shape[1]),
        action_dim=int(episodes.avail.shape[2]),
        discrete=bool(episodes.action.dtype.kind != "f"),
    )


def _listed(path: str) -> list[str]:
    return os.listdir(path) if os.path.isdir(path) else []


def _shown(names: Any) -> str:
    names = sorted(names)
    return f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" or "nothing"
