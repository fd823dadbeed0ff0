"""The project's dataset file: HDF5, self-describing, checked from end to end.

Each array is chunked along its first axis and compressed (shuffle, gzip), with a Fletcher-32 checksum per chunk. E
episodes have T = sum(length) + E rows. The last row of an episode contains the true final observation, and zeros for
the action and the reward:

    obs         [T, N, O]  float32   local observations
    state       [T, S]     float32   global state
    avail       [T, N, A]  bool      legal actions; continuous: the dimensions of its action that an agent has
    action      [T, N]     int32     index; or [T, N, A] float32 in [-1, 1]
    reward      [T]        float32   team reward in the environment's own units
    length      [E]        int32     steps of each episode
    terminated  [E]        bool      the task itself ended; false: the time limit cut the episode
    won         [E]        bool      the team reached the goal

Attributes of the root (a dot groups related attributes):

    format, format_version             omcda-jax-dataset, 1
    digest                             SHA-256 of all arrays and all other attributes
    environment, quality               smax/3m, medium
    description                        in words: policy, temperature, which episodes were kept
    temperature, won_only, seed        settings of the rollouts
    rollouts                           episodes played to obtain the E that were kept
    generator                          command that makes the file
    max_return                         largest possible return, where there is one
    spec.num_agents, spec.obs_dim, spec.state_dim, spec.action_dim, spec.discrete
    statistics.episodes, statistics.transitions, statistics.return_mean, statistics.win_rate, ...
    weights.<stage>                    SHA-256 of each behaviour policy's weights
    versions.<package>                 versions the rollouts were made with
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omcda_jax.data import guess, h5
from omcda_jax.data.dataset import aligned
from omcda_jax.data.episodes import Episodes, as_arrays, check, statistics
from omcda_jax.envs.base import task
from omcda_jax.files import replacing
from omcda_jax.types import DatasetError, EnvSpec

FORMAT = "omcda-jax-dataset"
VERSION = 1
# the arrays' names in the file, in the order of `Episodes`
KEYS = ("obs", "state", "avail", "action", "reward", "length", "terminated", "won")
_CHUNK_BYTES = 2**20


def write(path: str | os.PathLike, spec: EnvSpec, episodes: Episodes, metadata: Mapping[str, Any]) -> None:
    """Write a dataset file; the path has either the whole new file or what was there before.

    Args:
        path: where to write; its folder is made if missing.
        spec: the task's sizes.
        episodes: the data.
        metadata: more attributes: text, numbers, booleans, or one level of mappings of these; None is left out. The
            statistics are computed, but those that are None in `metadata["statistics"]` are left out, as unknown.

    Raises:
        DatasetError: the episodes are not valid, or the disk refuses the file.
        ConfigError: h5py is not installed.
    """
    episodes = as_arrays(spec, episodes, str(path))
    check(spec, episodes, str(path))
    unknown = {key: None for key, value in (metadata.get("statistics") or {}).items() if value is None}
    attributes = plain(
        {**metadata, "spec": dataclasses.asdict(spec), "statistics": statistics(episodes) | unknown}
        | {"format": FORMAT, "format_version": VERSION},
        path,
    )
    attributes["digest"] = digest(episodes, attributes)

    def fill(file):
        file.attrs.update(attributes)
        for key, value in zip(KEYS, episodes, strict=True):
            rows = max(1, _CHUNK_BYTES // max(1, value[0].nbytes))
            chunks = (min(rows, len(value)), *value.shape[1:])
            compression = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
            file.create_dataset(key, data=value, chunks=chunks, **compression)

    h5.store(path, fill)


def read_metadata(path: str | os.PathLike, *, environment: str | None = None) -> dict[str, Any]:
    """Read only the attributes of a dataset file.

    Args:
        path: the file.
        environment: the environment it must be of; None accepts any.

    Returns:
        The attributes, with `spec`, `statistics`, `weights` and `versions` as mappings.

    Raises:
        DatasetError: there is no such file, it is not a dataset file, or it is of another environment.
        ConfigError: h5py is not installed.
    """
    with h5.opened(path) as file:
        return _unflatten(_attributes(file, path, environment))


def read(
    path: str | os.PathLike, *, spec: EnvSpec | None = None, environment: str | None = None
) -> tuple[EnvSpec, Episodes, dict[str, Any]]:
    """Read a dataset file and check everything that can be checked.

    Args:
        path: the file.
        spec: the sizes it must have; None accepts any.
        environment: the environment it must be of; None accepts any.

    Returns:
        The sizes, the data, and the attributes as `read_metadata` returns them.

    Raises:
        DatasetError: one line naming the file, the key, what was expected and what was found: no such file, not
            HDF5, cut short, damaged, a key missing, a wrong type or shape, another environment, numbers that are
            not finite, illegal actions, no episodes.
        ConfigError: h5py is not installed.
    """
    with h5.opened(path) as file:
        attributes, metadata, sizes = _described(file, path, spec, environment)
        episodes = Episodes(*(_whole(file, key, path) for key in KEYS))
    with concurrent.futures.ThreadPoolExecutor(1) as aside:
        hashed = aside.submit(digest, episodes, attributes)
        check(sizes, episodes, str(path))
    _compare(attributes, hashed.result(), path)
    return sizes, episodes, metadata


def mapped(
    path: str | os.PathLike, *, spec: EnvSpec | None = None, environment: str | None = None
) -> tuple[EnvSpec, Episodes, dict[str, Any]]:
    """Read a dataset file as `read` does, but leave its arrays on the disk, memory-mapped.

    Compressed arrays cannot be mapped. So the first call unpacks them, block by block, into the folder PATH.rows, and
    checks them there as `read` does. Later calls only compare the file's digest with the folder's digest.

    Args:
        path, spec, environment: as in `read`.

    Returns:
        As `read`, with read-only `np.memmap` for arrays.

    Raises:
        DatasetError, ConfigError: as `read`; or the folder cannot be written.
    """
    folder = Path(f"{os.fspath(path)}.rows")
    with h5.opened(path) as file:
        attributes, metadata, sizes = _described(file, path, spec, environment)
        if _unpacked(folder, attributes) is None:
            _unpack(file, folder, sizes, attributes, path)
    episodes = _unpacked(folder, attributes)
    if episodes is None:
        raise DatasetError(f"{folder}: expected the unpacked rows of {path}, found other rows; remove the folder")
    return sizes, episodes, metadata


def _unpacked(folder: Path, attributes: Mapping[str, Any]) -> Episodes | None:
    """Return the folder's arrays if they are whole and belong to the file with these attributes, else None."""
    try:
        if (folder / "digest").read_text() != attributes.get("digest"):
            return None
        return _map(folder)
    except (OSError, ValueError, EOFError):
        return None


def _is_own(folder: Path) -> bool:
    """Return whether the folder contains only what may be left of a file's rows."""
    return not folder.is_dir() or set(os.listdir(folder)) <= {"digest", *(f"{key}.npy" for key in KEYS)}


def _map(folder: Path) -> Episodes:
    return Episodes(*(np.load(folder / f"{key}.npy", mmap_mode="r") for key in KEYS))


def _unpack(file: Any, folder: Path, sizes: EnvSpec, attributes: Mapping[str, Any], path: str | os.PathLike) -> None:
    try:
        with replacing(folder) as partial:
            partial.mkdir()
            for key in KEYS:
                _unpack_array(file, key, partial / f"{key}.npy", path)
            episodes = _map(partial)
            check(sizes, episodes, str(path))
            _compare(attributes, digest(episodes, attributes), path)
            (partial / "digest").write_text(attributes["digest"])
            if _is_own(folder) and _unpacked(folder, attributes) is None:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        # another process may have done it at the same time
        if _unpacked(folder, attributes) is None:
            raise DatasetError(f"{folder}: could not write the unpacked rows: {error.strerror or error}") from error


def _unpack_array(file: Any, key: str, target: Path, path: str | os.PathLike) -> None:
    stored = _stored(file, key, path)
    if not stored.size:
        raise DatasetError(f"{path}: {key}: expected at least one episode, found shape {stored.shape}")
    # plain writes, because a mapped file on a full disk ends the interpreter
    with open(target, "wb") as out:
        header = {"descr": stored.dtype.str, "fortran_order": False, "shape": stored.shape}
        np.lib.format.write_array_header_1_0(out, header)
        width = stored.chunks[0] if stored.chunks else len(stored)
        for start in range(0, len(stored), width):
            out.write(h5.intact(lambda at=start: stored[at : at + width], key, path))
        out.flush()
        os.fsync(out.fileno())


def _described(
    file: Any, path: str | os.PathLike, spec: EnvSpec | None, environment: str | None
) -> tuple[dict[str, Any], dict[str, Any], EnvSpec]:
    """Return the attributes as stored, the attributes as mappings, and the sizes, before any array is read."""
    attributes = _attributes(file, path, environment)
    metadata = _unflatten(attributes)
    sizes = _spec(metadata, path)
    if spec is not None:
        require_spec(path, spec, sizes)
    missing = sorted(set(KEYS) - set(file))
    if missing:
        raise DatasetError(
            f"{path}: {', '.join(missing)}: missing; expected {', '.join(KEYS)},"
            f" found {', '.join(sorted(file)) or 'nothing'}"
        )
    return attributes, metadata, sizes


def _whole(file: Any, key: str, path: str | os.PathLike) -> np.ndarray:
    stored = _stored(file, key, path)
    array = aligned(stored.shape, stored.dtype)
    if array.size:
        h5.intact(lambda: stored.read_direct(array), key, path)
    return array


def _stored(file: Any, key: str, path: str | os.PathLike) -> Any:
    stored = h5.intact(lambda: file[key], key, path)
    if not getattr(stored, "shape", ()) or stored.dtype.hasobject:
        found = f"{stored.dtype} of shape {stored.shape}" if hasattr(stored, "shape") else h5.kind_of(stored)
        raise DatasetError(f"{path}: {key}: expected an array with rows, found {found}")
    h5.require_room(path, key, stored.size * stored.dtype.itemsize)
    return stored


def _compare(attributes: Mapping[str, Any], contents: str, path: str | os.PathLike) -> None:
    if attributes.get("digest") != contents:
        raise DatasetError(f"{path}: digest: damaged or edited, expected the SHA-256 of the contents, found another")


def _attributes(file: Any, path: str | os.PathLike, environment: str | None) -> dict[str, Any]:
    attributes = h5.intact(lambda: {key: _plain(value) for key, value in file.attrs.items()}, "attributes", path)
    if attributes.get("format") != FORMAT:
        raise DatasetError(
            f"{path}: format: expected {FORMAT!r}, found {guess.value(attributes.get('format'))}"
            f" (keys: {', '.join(sorted(file)) or 'none'})"
        )
    if attributes.get("format_version") != VERSION:
        raise DatasetError(
            f"{path}: format_version: expected {VERSION}, found {guess.value(attributes.get('format_version'))};"
            " collect the dataset again"
        )
    for key, value in attributes.items():
        if not _is_storable(value):
            raise DatasetError(f"{path}: {key}: expected text or a number, found {guess.value(value)}")
    if environment is not None and task(str(attributes.get("environment"))) != task(environment):
        found = guess.value(attributes.get("environment"))
        raise DatasetError(f"{path}: environment: expected {environment!r}, found {found}")
    return attributes


def _spec(metadata: Mapping[str, Any], path: str | os.PathLike) -> EnvSpec:
    stored = metadata.get("spec") if isinstance(metadata.get("spec"), dict) else {}
    expected = {field.name: field.type for field in dataclasses.fields(EnvSpec)}
    for key, kind in expected.items():
        if not isinstance(stored.get(key), kind):
            raise DatasetError(f"{path}: spec.{key}: expected {kind.__name__}, found {guess.value(stored.get(key))}")
    return EnvSpec(**{key: stored[key] for key in expected})


def require_spec(path: str | os.PathLike, expected: EnvSpec, found: EnvSpec) -> None:
    """Compare the sizes of a dataset with those of a task.

    Args:
        path: path of the dataset.
        expected: the task's sizes.
        found: the dataset's sizes.

    Raises:
        DatasetError: they differ.
    """
    if expected != found:
        raise DatasetError(f"{path}: spec: expected {_sizes(expected)}, found {_sizes(found)}")


def _sizes(spec: EnvSpec) -> str:
    kind = "discrete" if spec.discrete else "continuous"
    return (
        f"{spec.num_agents} agents, {spec.obs_dim} observation and {spec.state_dim} state features,"
        f" {spec.action_dim} {kind} actions"
    )


def plain(metadata: Mapping[str, Any], path: str | os.PathLike) -> dict[str, Any]:
    """Return metadata as flat attributes of Python's own types; a dot joins the names of a mapping, None is left out.

    Args:
        metadata: text, numbers and booleans, also of NumPy and JAX, or one level of mappings of these.
        path: path of the dataset, for messages.

    Raises:
        DatasetError: a value has another kind or is too large, or a name is not text or would be read back differently.
    """
    flat = {}
    for names, value in _leaves(metadata):
        for name in names:
            if not (isinstance(name, str) and _is_storable(name) and all(name.split(".")) and len(name) < 1000):
                raise DatasetError(
                    f"{path}: metadata: expected a name that is text without empty parts around dots,"
                    f" found {name!r:.80}"
                )
        if "." in names[0] and len(names) > 1:
            raise DatasetError(f"{path}: metadata: {names[0]}: expected no dot in the name of a mapping")
        if ".".join(names) in flat:
            raise DatasetError(f"{path}: metadata: {'.'.join(names)}: expected one value, found two")
        if value is not None:
            flat[".".join(names)] = _plain(value)
    for key, value in flat.items():
        if not _is_storable(value):
            raise DatasetError(f"{path}: metadata: {key}: expected text or a number, found {guess.value(value)}")
        if (group := key.partition(".")[0]) != key and group in flat:
            raise DatasetError(f"{path}: metadata: {group}: expected a value or values below it, found both")
    return flat


def _leaves(metadata: Mapping[Any, Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the names from the outermost to the innermost, and the value."""
    for key, value in metadata.items():
        if isinstance(value, Mapping):
            yield from (((key, inner), each) for inner, each in value.items())
        else:
            yield (key,), value


def _is_storable(value: Any) -> bool:
    """Return whether HDF5 stores the value as an attribute and reads the same value back."""
    if isinstance(value, str):
        return "\0" not in value and value.encode(errors="ignore").decode() == value
    return isinstance(value, float) or isinstance(value, int) and -(2**63) <= value < 2**64


def _plain(value: Any) -> Any:
    """Return a single number or text as Python's own type; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value


def _unflatten(attributes: Mapping[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for key, value in attributes.items():
        group, dot, inner = key.partition(".")
        if dot:
            inside = metadata.get(group)
            metadata[group] = {**(inside if isinstance(inside, dict) else {}), inner: value}
        else:
            metadata[key] = value
    return metadata


def digest(episodes: Episodes, attributes: Mapping[str, Any]) -> str:
    """Return the SHA-256 of arrays and attributes, without the attribute `digest`.

    Args:
        episodes: the data.
        attributes: attributes that can be written as JSON.
    """
    total = hashlib.sha256()
    for key, value in zip(KEYS, episodes, strict=True):
        total.update(f"{key} {value.dtype.str} {value.shape}".encode())
        total.update(np.ascontiguousarray(value).data)
    rest = {key: value for key, value in attributes.items() if key != "digest"}
    total.update(json.dumps(rest, sort_keys=True).encode())
    return total.hexdigest()
