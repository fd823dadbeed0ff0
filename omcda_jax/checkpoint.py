"""Checkpoints of a TrainState that are verified when read; the only module that uses orbax.

Orbax writes a step atomically but checks nothing when it reads: a flipped bit comes back as a wrong number. So every
leaf's SHA-256 is stored with the state and compared on restore. A damaged step is put aside, and the step before it is
read. Only one process writes and reads a directory, and without devices: leaves go to disk as NumPy arrays.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from omcda_jax.files import replacing
from omcda_jax.types import Actor, ConfigError, EnvSpec, Normaliser, StorageError, TrainState, updates_done

# If you change what a record or a state's leaves on disk mean, raise this number.
SCHEMA = 4
QUARANTINE = "quarantine"
# A step that lacks a file is damaged. Every other OSError is the disk's or the network's.
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Checkpoints:
    """The newest checkpoints of one run; a context manager that exits only when the last one is on disk.

    Args:
        directory: folder of the steps; made by the first `save`.
        keep: how many of the newest steps stay.
        wait: `save` returns only when its step is on disk, not while a thread still writes it.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2, *, wait: bool = False):
        self.directory = os.path.abspath(directory)
        self._keep = keep
        self._wait = wait
        self._open_manager = None
        self._bytes = 0

    def save(self, state: TrainState, metadata: Mapping[str, Any], *, replace: bool = False) -> None:
        """Copy one step to the host and write it in the background.

        Args:
            state: unreplicated state; its `step` names the checkpoint.
            metadata: JSON values to keep with the state.
            replace: first remove all steps that are not older than this one.

        Raises:
            RuntimeError: if this step or a later one is already there.
            StorageError: this step, or the one before it, could not be written.
        """
        step, leaves = updates_done(state), jax.tree.map(_to_host, state)
        fingerprints = {name: _fingerprint(leaf) for name, leaf in _named_leaves(leaves)}
        record = {"schema": SCHEMA, "metadata": dict(metadata), "leaves": fingerprints}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves), record=ocp.args.JsonSave(record | {"sha256": _digest_json(record)})
        )
        with self._in_one_line():
            manager = self._manager()
            manager.wait_until_finished()
            self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(leaves))
            if replace:
                for later in [other for other in manager.all_steps() if other >= step]:
                    manager.delete(later)
            saved = manager.save(step, args=items)
        if not saved:
            newest = manager.latest_step()
            raise RuntimeError(f"{self.directory}: step {step} was not saved; newest step there: {newest}")
        if self._wait:
            self.wait()

    def wait(self) -> None:
        """Return when the last saved step is on disk.

        Raises:
            StorageError: it could not be written.
        """
        if self._open_manager is not None:
            with self._in_one_line():
                self._open_manager.wait_until_finished()

    def restore(self, template: TrainState, step: int | None = None) -> tuple[TrainState, dict] | None:
        """Read the newest step that is whole; a damaged step moves to `quarantine` with a warning that names it.

        Args:
            template: a state of the same structure; shapes and dtypes are enough (`jax.eval_shape` of `init`).
            step: the only step to read; None: any.

        Returns:
            (state, metadata), or None if no readable step exists.

        Raises:
            ConfigError: if a whole step contains a state of another structure, shape, dtype or schema.
            StorageError: files cannot be read. Nothing is put aside, because they may be whole.
        """
        if not os.path.isdir(self.directory):
            return None
        manager = self._manager()
        for found in sorted(manager.all_steps(), reverse=True):
            if step not in (None, found):
                continue
            try:
                record = _read_record(manager, found)
                self._check_template(found, record, template)
                leaves = _read_leaves(manager, found, record["leaves"], template)
            except (ConfigError, MemoryError):
                raise
            except Exception as error:  # whatever orbax raises on a damaged file
                self._check_readable(found, error)
                aside = self._quarantine(found)
                warnings.warn(
                    f"checkpoint {self.directory}/{found} is damaged and put aside as {aside}: {_shortened(error)}",
                    stacklevel=2,
                )
                manager.reload()
            else:
                return jax.tree.map(_from_host, leaves, template), record["metadata"]
        return None

    def close(self) -> None:
        """Wait for the last step and free orbax's resources.

        Raises:
            StorageError: the last step could not be written.
        """
        manager, self._open_manager = self._open_manager, None
        if manager is not None:
            with self._in_one_line():
                try:
                    manager.wait_until_finished()
                finally:
                    manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    def _manager(self) -> ocp.CheckpointManager:
        if self._open_manager is None:
            options = {"max_to_keep": self._keep, "cleanup_tmp_directories": True}
            if jax.process_count() > 1:
                options["create"] = False
                options["multiprocessing_options"] = _alone()
                os.makedirs(self.directory, exist_ok=True)
            self._open_manager = ocp.CheckpointManager(self.directory, options=ocp.CheckpointManagerOptions(**options))
        return self._open_manager

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """Turn any error that orbax raises while it writes into one line."""
        try:
            yield
        except Exception as error:  # OSError, or tensorstore's own words for it
            self._open_manager = None
            whole = steps_in(self.directory)
            raise StorageError(
                f"{self.directory}: a checkpoint could not be written ({_shortened(error)}): "
                f"more than {self._bytes} bytes needed, {_free_bytes(self.directory)} free; "
                f"{f'step {whole[-1]} is safe' if whole else 'no step is saved'}"
            ) from error

    def put_aside(self) -> list[str]:
        """Return the folders of the damaged steps that `restore` has put aside, now or earlier."""
        folder, name = os.path.split(self._aside(""))
        return [os.path.join(folder, found) for found in sorted(_listed(folder)) if found.startswith(name)]

    def _aside(self, step: int | str) -> str:
        parent, name = os.path.split(self.directory)
        return os.path.join(parent, QUARANTINE, f"{name}-{step}")

    def _check_readable(self, step: int, error: Exception) -> None:
        """Raise StorageError if `error` came from the disk or the network, so that the step may be whole."""
        path = os.path.join(self.directory, str(step))
        try:
            if isinstance(error, OSError) and not isinstance(error, MISSING):
                raise error
            for folder, _, names in os.walk(path, onerror=_refuse):
                for file in (Path(folder, name) for name in names):
                    if file.is_file():
                        file.read_bytes()
        except OSError as trouble:
            raise StorageError(
                f"checkpoint {path} could not be read ({_shortened(trouble)}); it may be whole, so it stays where it is"
            ) from error

    def _quarantine(self, step: int) -> str:
        aside = self._aside(step)
        os.makedirs(os.path.dirname(aside), exist_ok=True)
        if os.path.exists(aside):
            shutil.rmtree(aside)
        os.rename(os.path.join(self.directory, str(step)), aside)
        return aside

    def _check_template(self, step: int, record: Mapping[str, Any], template: TrainState) -> None:
        here = f"checkpoint {self.directory}/{step}"
        _check_schema(here, record)
        abstract = jax.tree.map(_on_disk, template)
        expected = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in _named_leaves(abstract)}
        found = {name: entry[:2] for name, entry in record["leaves"].items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ConfigError(
                    f"{here}: {name}: expected {_describe(expected.get(name))}, found {_describe(found.get(name))}"
                )


def save_policy(path: str | os.PathLike, actor: Actor) -> None:
    """Write an actor, without the rest of its state, into a folder of its own.

    Args:
        path: the folder; it appears only when everything is in it.
        actor: from `omcda_jax.policy`.

    Raises:
        ConfigError: the path exists already, or the policy is that of a population.
        StorageError: the folder could not be written.
        TypeError: `actor` is not an Actor, but a whole state for instance.
    """
    if not isinstance(actor, Actor):
        raise TypeError(f"actor: expected what omcda_jax.policy returns, found {type(actor).__name__}")
    if any(np.ndim(number) for number in jax.tree.leaves(actor.config)):
        raise ConfigError("actor: expected the policy of one trial, found that of a population")
    path = os.path.abspath(path)
    if os.path.exists(path):
        raise ConfigError(f"{path}: expected a new folder for the policy, found something there")
    arrays = jax.tree.map(_to_host, _policy_arrays(actor))
    record = {
        "schema": SCHEMA,
        "settings": f"{type(actor.config).__module__}:{type(actor.config).__qualname__}",
        "config": jax.tree.map(lambda number: np.asarray(number).item(), actor.config).__dict__,
        "spec": dataclasses.asdict(actor.spec),
        "leaves": jax.tree.map(_fingerprint, arrays),
    }
    record["sha256"] = _digest_json(record)
    try:
        with replacing(path) as partial:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=_alone()) as checkpointer:
                checkpointer.save(partial / "arrays", args=ocp.args.StandardSave(arrays))
            (partial / "policy.json").write_text(json.dumps(record, indent=2))
    except Exception as error:  # OSError, or tensorstore's own words for it
        raise StorageError(f"{path}: the policy could not be written ({_shortened(error)})") from error


def load_policy(path: str | os.PathLike) -> Actor:
    """Read what `save_policy` wrote; `omcda_jax.act` takes it.

    The settings' class is imported by its name, so a policy of your own algorithm needs its module. Load only policies
    from sources you trust.

    Args:
        path: the folder.

    Raises:
        ConfigError: there is no policy, or it is damaged, or it has another schema.
    """
    path = os.path.abspath(path)
    try:
        with open(os.path.join(path, "policy.json"), encoding="utf-8") as file:
            record = json.load(file)
        _check_schema(path, record)
        intact = record.pop("sha256") == _digest_json(record)
    except (OSError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: expected a folder written by save_policy: {_shortened(error)}") from error
    if not intact:
        raise ConfigError(f"{path}: the policy is damaged: policy.json does not match its checksum")
    template = jax.tree.map(lambda entry: np.zeros(*entry[:2]), record["leaves"], is_leaf=_is_list)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=_alone()) as checkpointer:
            arrays = checkpointer.restore(os.path.join(path, "arrays"), args=ocp.args.StandardRestore(template))
    except Exception as error:  # whatever orbax raises on a damaged file
        raise ConfigError(f"{path}: the policy cannot be read: {_shortened(error)}") from error
    if jax.tree.map(_fingerprint, arrays) != record["leaves"]:
        raise ConfigError(f"{path}: the policy is damaged: its arrays do not match their checksums")
    arrays = jax.tree.map(jnp.asarray, arrays)
    values = {key: tuple(value) if _is_list(value) else value for key, value in record["config"].items()}
    try:
        config = _settings(path, record)(**values)
    except TypeError as error:  # the class has other fields now
        raise ConfigError(f"{path}: settings: {_shortened(error)}") from error
    return Actor(
        params=arrays["params"],
        config=jax.tree.map(lambda number: jnp.asarray(number, jnp.float32), config),
        spec=EnvSpec(**record["spec"]),
        normaliser=Normaliser(**arrays["normaliser"]) if "normaliser" in arrays else None,
    )


def _settings(path: str, record: Mapping[str, Any]) -> type:
    """Return the class of a saved policy's settings; refuse anything else that the name leads to."""
    module, _, name = record["settings"].partition(":")
    try:
        settings = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path}: settings: cannot import {record['settings']!r}: {error}") from error
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings) and hasattr(settings, "validate")):
        raise ConfigError(f"{path}: settings: expected an algorithm's settings, found {record['settings']!r}")
    return settings


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def _policy_arrays(actor: Actor) -> dict[str, Any]:
    normaliser = {} if actor.normaliser is None else {"normaliser": actor.normaliser.__dict__}
    return {"params": actor.params, **normaliser}


def _alone() -> ocp.options.MultiprocessingOptions:
    """Let this process write and read by itself; otherwise orbax waits for all processes at every step."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


def _check_schema(here: str, record: Mapping[str, Any]) -> None:
    schema = record.get("schema", 1)
    if schema != SCHEMA:
        raise ConfigError(
            f"{here}: schema: expected {SCHEMA}, found {schema}; finish the run with the version of omcda-jax that "
            "started it, or start again in another directory"
        )


def digest(tree: Any) -> str:
    """Return the SHA-256 over names, shapes, dtypes and bytes of all leaves: equal only for bit-equal trees.

    Args:
        tree: a tree of arrays and typed keys.
    """
    return _digest_json({name: _fingerprint(leaf) for name, leaf in _named_leaves(jax.tree.map(_to_host, tree))})


def _read_record(manager: ocp.CheckpointManager, step: int) -> dict:
    record = dict(manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record)
    if record.pop("sha256") != _digest_json(record):
        raise ValueError("its record does not match its checksum")
    return record


def _read_leaves(manager: ocp.CheckpointManager, step: int, fingerprints: Mapping[str, Any], template: Any) -> Any:
    # orbax restores to the type of the template's leaves: here NumPy arrays, whatever the devices
    places = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.tree.map(_on_disk, template))
    state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(places))).state
    for name, leaf in _named_leaves(state):
        if _fingerprint(leaf) != fingerprints[name]:
            raise ValueError(f"{name} does not match its checksum")
    return state


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: Any) -> np.ndarray:
    """Copy a leaf, because its buffer may be donated while a thread still writes it; a typed key becomes its data."""
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _on_disk(leaf: Any) -> jax.ShapeDtypeStruct:
    if _is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _from_host(value: np.ndarray, like: Any) -> jax.Array:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(value))
    return jnp.asarray(value)


def _fingerprint(leaf: np.ndarray) -> list:
    return [list(leaf.shape), str(leaf.dtype), hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()]


def _digest_json(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _refuse(error: OSError) -> None:
    raise error


def _describe(entry: list | None) -> str:
    return f"{entry[1]}{entry[0]}" if entry else "nothing"


def _shortened(error: Exception) -> str:
    """Return the first line; a long one, which names file after file, keeps only its beginning and end."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) <= 160 else f"{text[:60]} ... {text[-90:]}"


def steps_in(directory: str) -> list[int]:
    """Return the steps that are whole in a directory of checkpoints, in order; none if there is no directory."""
    return sorted(int(name) for name in _listed(directory) if name.isdigit())


def _listed(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []


def _free_bytes(directory: str) -> int:
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return shutil.disk_usage(directory).free
