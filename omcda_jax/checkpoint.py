"""Checkpoints of a TrainState that are verified when read; the only module that knows orbax.

Orbax writes a step atomically but checks nothing when it reads: a flipped bit comes back as a wrong number. So every
leaf's SHA-256 is stored beside the state and compared on restore, and a damaged step gives way to the one before it.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from omcda_jax.types import ConfigError, TrainState, updates_done


class Checkpoints:
    """The newest checkpoints of one run; a context manager.

    Args:
        directory: where the steps lie; made by the first `save`.
        keep: how many of the newest steps stay.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        self.directory = os.path.abspath(directory)
        self._keep = keep
        self._open_manager = None
        self._damaged: list[int] = []

    def save(self, state: TrainState, metadata: Mapping[str, Any]) -> None:
        """Writes one step and returns once it is complete on disk.

        Args:
            state: unreplicated state; its `step` names the checkpoint.
            metadata: JSON values to keep with it.

        Raises:
            RuntimeError: if this step or a later one is already there.
        """
        manager, step = self._manager(), updates_done(state)
        # A damaged newer step would make orbax skip this one without a word.
        for damaged in [found for found in self._damaged if found >= step]:
            manager.delete(damaged)
            self._damaged.remove(damaged)
        leaves = {name: _fingerprint(leaf) for name, leaf in _named_leaves(state)}
        record = {"metadata": dict(metadata), "leaves": leaves}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record | {"sha256": _digest_json(record)})
        )
        if not manager.save(step, args=items):
            raise RuntimeError(
                f"{self.directory}: step {step} was not saved; newest step there: {manager.latest_step()}"
            )

    def restore(self, template: TrainState) -> tuple[TrainState, dict] | None:
        """Reads the newest step that is whole; a damaged one is skipped with a warning that names it.

        Args:
            template: a state of the same structure; shapes and dtypes are enough (`jax.eval_shape` of `init`).

        Returns:
            (state, metadata), or None where no readable step exists.

        Raises:
            ConfigError: if a whole step holds a state of another structure, shape or dtype than `template`.
        """
        if not os.path.isdir(self.directory):
            return None
        manager = self._manager()
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                record = _read_record(manager, step)
                self._check_template(step, record["leaves"], template)
                return _read_state(manager, step, record["leaves"], template), record["metadata"]
            except ConfigError:
                raise
            except Exception as error:  # whatever orbax raises on a damaged file
                self._damaged.append(step)
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(f"checkpoint {self.directory}/{step} is damaged and skipped: {reason}", stacklevel=2)
        return None

    def close(self) -> None:
        """Frees orbax's resources."""
        if self._open_manager is not None:
            self._open_manager.close()
            self._open_manager = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    def _manager(self) -> ocp.CheckpointManager:
        if self._open_manager is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, cleanup_tmp_directories=True, enable_async_checkpointing=False
            )
            self._open_manager = ocp.CheckpointManager(self.directory, options=options)
        return self._open_manager

    def _check_template(self, step: int, leaves: Mapping[str, Any], template: TrainState) -> None:
        expected = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in _named_leaves(template)}
        found = {name: entry[:2] for name, entry in leaves.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ConfigError(
                    f"checkpoint {self.directory}/{step}: {name}: expected {_describe(expected.get(name))}, "
                    f"found {_describe(found.get(name))}"
                )


def _read_record(manager: ocp.CheckpointManager, step: int) -> dict:
    record = dict(manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record)
    if record.pop("sha256") != _digest_json(record):
        raise ValueError("its record does not match its checksum")
    return record


def _read_state(
    manager: ocp.CheckpointManager, step: int, leaves: Mapping[str, Any], template: TrainState
) -> TrainState:
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), template)
    state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state
    for name, leaf in _named_leaves(state):
        if _fingerprint(leaf) != leaves[name]:
            raise ValueError(f"{name} does not match its checksum")
    return state


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _fingerprint(leaf: jax.Array) -> list:
    """Shape, dtype and SHA-256 of the bytes of one leaf; a typed key counts by its data."""
    typed_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    values = np.asarray(jax.random.key_data(leaf) if typed_key else leaf)
    return [list(leaf.shape), str(leaf.dtype), hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()]


def _digest_json(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _describe(entry: list | None) -> str:
    return f"{entry[1]}{entry[0]}" if entry else "nothing"
