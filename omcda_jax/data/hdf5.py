"""The project's dataset file: HDF5, self-describing, checked from end to end.

Arrays, each chunked along its first axis, compressed (shuffle, gzip) and with a Fletcher-32 checksum per chunk. With E
episodes, T = sum(length) + E rows; the last row of an episode holds the true final observation, and zeros for the
action and the reward:

    obs         [T, N, O]  float32   local observations
    state       [T, S]     float32   global state
    avail       [T, N, A]  bool      legal actions; continuous: the dimensions of its action that an agent has
    action      [T, N]     int32     index; or [T, N, A] float32 in [-1, 1]
    reward      [T]        float32   team reward in the environment's own units
    length      [E]        int32     steps of each episode
    terminated  [E]        bool      the task itself ended; false: the time limit cut the episode
    won         [E]        bool      the team reached the goal

Attributes of the root; a dot groups related ones:

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

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omcda_jax.data.dataset import Episodes, check, statistics
from omcda_jax.types import ConfigError, DatasetError, EnvSpec

FORMAT = "omcda-jax-dataset"
VERSION = 1
_CHUNK_BYTES = 2**20


def require() -> Any:
    """Imports h5py.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f"dataset files need h5py ({error}): pip install 'omcda-jax[data]'") from error
    return h5py


def write(path: str | os.PathLike, spec: EnvSpec, episodes: Episodes, metadata: Mapping[str, Any]) -> None:
    """Writes a dataset file; the path holds either the whole file or what it held before.

    Args:
        path: where; its folder is made if missing.
        spec: the task's sizes.
        episodes: the data.
        metadata: further attributes: text, numbers, booleans, or one level of mappings of those; None is left out.

    Raises:
        DatasetError: the episodes are not valid, or the disk refuses the file.
        ConfigError: h5py is not installed.
    """
    check(spec, episodes, str(path))
    attributes = _flatten(
        {**metadata, "spec": dataclasses.asdict(spec), "statistics": statistics(episodes)}
        | {"format": FORMAT, "format_version": VERSION}
    )
    attributes["digest"] = digest(episodes, attributes)

    def fill(file):
        file.attrs.update(attributes)
        for key, value in episodes._asdict().items():
            rows = max(1, _CHUNK_BYTES // max(1, value[0].nbytes))
            chunks = (min(rows, len(value)), *value.shape[1:])
            compression = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
            file.create_dataset(key, data=value, chunks=chunks, **compression)

    store(path, fill)


def store(path: str | os.PathLike, fill: Callable[[Any], None]) -> None:
    """Writes an HDF5 file; the path holds either the whole file or what it held before.

    Args:
        path: where; its folder is made if missing.
        fill: puts the contents into the open h5py file.

    Raises:
        DatasetError: the disk refuses the file.
        ConfigError: h5py is not installed.
    """
    h5py = require()
    # built in memory: HDF5 can crash the interpreter when it meets a full disk itself
    # this file version keeps checksums of its own structures, which Fletcher-32 does not cover
    options = {"driver": "core", "backing_store": False, "libver": ("v110", "v110")}
    with h5py.File("dataset", "w", **options) as file:
        fill(file)
        file.flush()
        image = file.id.get_file_image()
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise DatasetError(f"{path}: could not write {len(image)} bytes: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def read_metadata(path: str | os.PathLike, *, environment: str | None = None) -> dict[str, Any]:
    """Reads only the attributes of a dataset file.

    Args:
        path: the file.
        environment: the environment it must be of; None accepts any.

    Returns:
        The attributes, with `spec`, `statistics`, `weights` and `versions` as mappings.

    Raises:
        DatasetError: no such file, not a dataset file, or of another environment.
        ConfigError: h5py is not installed.
    """
    with opened(path) as file:
        return _unflatten(_attributes(file, path, environment))


def read(
    path: str | os.PathLike, *, spec: EnvSpec | None = None, environment: str | None = None
) -> tuple[EnvSpec, Episodes, dict[str, Any]]:
    """Reads a dataset file and checks everything there is to check.

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
    with opened(path) as file:
        attributes = _attributes(file, path, environment)
        metadata = _unflatten(attributes)
        found = _spec(metadata, path)
        if spec is not None and spec != found:
            raise DatasetError(f"{path}: spec: expected {sizes(spec)}, found {sizes(found)}")
        missing = sorted(set(Episodes._fields) - set(file))
        if missing:
            raise DatasetError(
                f"{path}: {', '.join(missing)}: missing; expected {', '.join(Episodes._fields)},"
                f" found {', '.join(sorted(file)) or 'nothing'}"
            )
        arrays = {}
        for key in Episodes._fields:
            try:
                arrays[key] = file[key][()]
            except (OSError, RuntimeError, ValueError) as error:
                raise DatasetError(
                    f"{path}: {key}: damaged, expected intact checksums, found: {_one_line(error)}"
                ) from error
            if not isinstance(arrays[key], np.ndarray) or arrays[key].ndim == 0:
                raise DatasetError(f"{path}: {key}: expected an array with rows, found {arrays[key]!r}")
    episodes = Episodes(**arrays)
    check(found, episodes, str(path))
    if attributes.get("digest") != digest(episodes, attributes):
        raise DatasetError(f"{path}: digest: damaged or edited, expected the SHA-256 of the contents, found another")
    return found, episodes, metadata


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Any]:
    """Opens an HDF5 file for reading; whatever a damaged one raises becomes a DatasetError.

    Args:
        path: the file.
    """
    h5py = require()
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "nothing there"
        raise DatasetError(f"{path}: expected a dataset file, found {found}")
    try:
        with open(path, "rb") as file:
            start = file.read(16)
        if not start.startswith(b"\x89HDF\r\n\x1a\n"):
            what = repr(start) if start else "an empty file"
            raise DatasetError(f"{path}: expected an HDF5 file, found {what}{_guess(start)}")
        with h5py.File(path, "r") as file:
            yield file
    except (DatasetError, ConfigError):
        raise
    # a damaged header surfaces as almost any exception class
    except Exception as error:
        raise DatasetError(f"{path}: expected an intact HDF5 file, found: {_one_line(error)}") from error


def _guess(start: bytes) -> str:
    if start.lstrip().startswith(b"<"):
        return " (a web page?)"
    if start.startswith(b"version https"):
        return " (a Git LFS pointer?)"
    return ""


def _attributes(file: Any, path: str | os.PathLike, environment: str | None) -> dict[str, Any]:
    attributes = {key: value.item() if hasattr(value, "item") else value for key, value in file.attrs.items()}
    if attributes.get("format") != FORMAT:
        raise DatasetError(
            f"{path}: format: expected {FORMAT!r}, found {attributes.get('format')!r}"
            f" (keys: {', '.join(sorted(file)) or 'none'})"
        )
    if attributes.get("format_version") != VERSION:
        raise DatasetError(
            f"{path}: format_version: expected {VERSION}, found {attributes.get('format_version')!r};"
            " collect the dataset again"
        )
    if environment is not None and attributes.get("environment") != environment:
        raise DatasetError(f"{path}: environment: expected {environment!r}, found {attributes.get('environment')!r}")
    return attributes


def _spec(metadata: Mapping[str, Any], path: str | os.PathLike) -> EnvSpec:
    stored = metadata.get("spec", {})
    expected = {field.name: field.type for field in dataclasses.fields(EnvSpec)}
    for key, kind in expected.items():
        if not isinstance(stored.get(key), kind):
            raise DatasetError(f"{path}: spec.{key}: expected {kind.__name__}, found {stored.get(key)!r}")
    return EnvSpec(**{key: stored[key] for key in expected})


def sizes(spec: EnvSpec) -> str:
    """Says a task's sizes in words.

    Args:
        spec: the sizes.
    """
    kind = "discrete" if spec.discrete else "continuous"
    return (
        f"{spec.num_agents} agents, {spec.obs_dim} observation and {spec.state_dim} state features,"
        f" {spec.action_dim} {kind} actions"
    )


def _flatten(metadata: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for key, value in metadata.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": value[inner] for inner in value}
        else:
            flat[key] = value
    return {key: value for key, value in flat.items() if value is not None}


def _unflatten(attributes: Mapping[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for key, value in attributes.items():
        group, dot, inner = key.partition(".")
        if dot:
            metadata.setdefault(group, {})[inner] = value
        else:
            metadata[key] = value
    return metadata


def digest(episodes: Episodes, attributes: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of arrays and attributes, a `digest` among them left out.

    Args:
        episodes: the data.
        attributes: JSON-ready.
    """
    total = hashlib.sha256()
    for key, value in episodes._asdict().items():
        total.update(f"{key} {value.dtype.str} {value.shape}".encode())
        total.update(np.ascontiguousarray(value).data)
    rest = {key: value for key, value in attributes.items() if key != "digest"}
    total.update(json.dumps(rest, sort_keys=True).encode())
    return total.hexdigest()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
