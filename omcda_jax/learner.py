"""Training: k updates per compiled call, and the loop that logs, saves, evaluates and stops cleanly.

A batch is a pure function of the state's key and step, so a state restored at step n goes on exactly as if it had
never stopped. The dataset is an argument of the compiled call: resident on the device and never copied into it.
"""

import dataclasses
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils

from omcda_jax.config import LearnerConfig, require
from omcda_jax.types import Algorithm, Batch, EnvSpec, Metrics, Normaliser, TrainState, updates_done

# Folded into the state's key before the step, to keep batch keys apart from the keys an update derives itself.
_BATCH_STREAM = 0x6261_7463


# Skipped updates in a row that end a run: a bad batch is one, a diverged trial never stops.
PATIENCE = 10
_AXIS = "devices"


class NonFiniteMetrics(RuntimeError):
    """Update after update was infinite or not a number; the message names the first metric that was, and the step."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived where nothing needs saving; no Exception, so that nobody takes it for a failure."""


def initial_state(
    algorithm: Algorithm, seed: int, spec: EnvSpec, config: Any, *, normalised: bool = False
) -> TrainState:
    """Returns the algorithm's state before any update, with no two leaves sharing a buffer.

    Args:
        algorithm: the bundle whose `init` is called.
        seed: any non-negative int.
        spec: sizes of the task.
        config: the algorithm's settings.
        normalised: the state gets a normaliser, one that changes nothing, in the place of the dataset's.

    Raises:
        ConfigError: where the algorithm refuses the settings for this task.
    """
    state = algorithm.init(jax.random.key(seed), spec, config)
    if normalised:
        features = (spec.num_agents, spec.obs_dim), (spec.state_dim,)
        scales = [array(shape) for shape in features for array in (jnp.zeros, jnp.ones)]
        state = state.replace(normaliser=Normaliser(*scales))
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True), state)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How states lie on devices: one trial spread over all of them by rows of its batch, or a population of trials.

    Attributes:
        devices: local devices; several make the training call a pmap.
        population: the state is a stack of trials, leaves [P, ...], P a multiple of the number of devices.
    """

    devices: tuple[jax.Device, ...]
    population: bool = False

    @property
    def spread(self) -> bool:
        """Whether there is more than one device."""
        return len(self.devices) > 1

    def place(self, state: TrainState) -> TrainState:
        """The state as the training call takes it.

        Raises:
            ConfigError: a population that the devices cannot share evenly.
        """
        if not self.spread:
            return state
        if not self.population:
            return jax_utils.replicate(state, self.devices)
        trials = np.size(state.step)
        require(trials % len(self.devices) == 0, "trials", f"a multiple of the {len(self.devices)} devices", trials)
        return jax.tree.map(lambda x: x.reshape(len(self.devices), -1, *x.shape[1:]), state)

    def place_dataset(self, dataset: Any) -> Any:
        """The dataset as the training call takes it: whole on every device."""
        return jax_utils.replicate(dataset, self.devices) if self.spread else dataset

    def collect(self, tree: Any) -> Any:
        """What `place` was given, or metrics of the training call, without the devices' axis."""
        if not self.spread:
            return tree
        if not self.population:
            return jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


class Report(NamedTuple):
    """What k updates came to; of a population everything leads with an axis [P].

    Attributes:
        metrics: means over the updates that were kept; not-a-number where none was.
        skipped: [k] bool, the update was not finite and left everything but the step as it was.
        suspects: by metric, whether it was not finite in one of them.
    """

    metrics: Metrics
    skipped: jax.Array
    suspects: dict[str, jax.Array]


def make_train_step(
    algorithm: Algorithm,
    sample: Callable[..., Batch],
    batch_size: int,
    updates_per_call: int,
    layout: Layout | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, Report]]:
    """Returns a compiled `(state, dataset) -> (state, report)` that does `updates_per_call` updates.

    The state passed in is donated: use the one returned. N devices at B/N rows each do what one does at B rows. An
    update that brings forth anything that is not finite is skipped, on all devices alike: only the step goes on, and
    with it the next batch.

    Args:
        algorithm: the bundle whose `update` is called.
        sample: `sample(dataset, key, batch_size, part, parts) -> Batch` of rows part * B / parts and on, pure.
        batch_size: B, of the whole batch.
        updates_per_call: k, the length of the scan.
        layout: None: one trial on one device.

    Raises:
        ConfigError: a batch that the devices cannot share evenly.
    """
    layout = layout or Layout((jax.devices()[0],))
    over_rows = layout.spread and not layout.population
    parts = len(layout.devices) if over_rows else 1
    require(batch_size % parts == 0, "learner.batch_size", f"a multiple of the {parts} devices", batch_size)

    def update_once(state: TrainState, dataset: Any) -> tuple[TrainState, tuple[Metrics, jax.Array]]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, _BATCH_STREAM), state.step)
        part = jax.lax.axis_index(_AXIS) if over_rows else 0
        batch = sample(dataset, key, batch_size, part, parts)
        new, metrics = algorithm.update(state, batch, axis_name=_AXIS if over_rows else None)
        finite = _all_finite((metrics, new.params))
        learnt = ("params", "target_params", "opt_state", "extra")
        after, before = ({name: getattr(which, name) for name in learnt} for which in (new, state))
        kept = jax.tree.map(lambda x, y: jnp.where(finite, x, y), after, before)
        return state.replace(**kept, step=state.step + 1), (metrics, finite)

    def train_step(state: TrainState, dataset: Any) -> tuple[TrainState, Report]:
        def one(carry, _):
            return update_once(carry, dataset)

        state, (metrics, finite) = jax.lax.scan(one, state, None, length=updates_per_call)
        return state, Report(
            metrics={name: _mean_where(finite, values) for name, values in metrics.items()},
            skipped=~finite,
            suspects={name: ~jnp.all(jnp.isfinite(values)) for name, values in metrics.items()},
        )

    if layout.population:
        train_step = jax.vmap(train_step, in_axes=(0, None))
    if layout.spread:
        return jax.pmap(train_step, axis_name=_AXIS, devices=layout.devices, donate_argnums=0)
    return jax.jit(train_step, donate_argnums=0)


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _mean_where(kept: jax.Array, values: jax.Array) -> jax.Array:
    mask = kept.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.sum(jnp.where(mask, values, 0.0), axis=0) / jnp.sum(kept)


def train(
    train_step: Callable[[TrainState, Any], tuple[TrainState, Report]],
    state: TrainState,
    dataset: Any,
    config: LearnerConfig,
    *,
    layout: Layout | None = None,
    on_call: Callable[[int, Metrics], None] = lambda step, metrics: None,
    log: Callable[[int, Metrics, float], None] = lambda step, metrics, rate: None,
    save: Callable[[TrainState], None] = lambda state: None,
    evaluate: Callable[[TrainState], None] = lambda state: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Updates `state` until `config.updates` are done or `stop()` says so; either way the last state is saved.

    Args:
        train_step: from `make_train_step`, with `config.updates_per_call` and this layout.
        state: donated; where to start, whatever its step; as `layout.place` gives it.
        dataset: what `train_step` takes; as `layout.place_dataset` gives it.
        config: numbers of updates.
        layout: None: one trial on one device. States are handed on, and returned, as `layout.collect` gives them.
        on_call: `on_call(step, metrics)` after every call, for progress on the screen.
        log: `log(step, metrics, updates_per_second)` every `log_every` updates; metrics of the latest call, with
            `guard/skipped`, the updates skipped since the start, and the rate over the calls since the last log.
        save: called every `checkpoint_every` updates and at the end.
        evaluate: called every `evaluate_every` updates, before the next call and so not after the last one; a state
            that starts at such a step is evaluated first, for a stop may have come between.
        stop: polled after every call and every evaluation.

    Returns:
        The state after the last update done.

    Raises:
        NonFiniteMetrics: after PATIENCE skipped updates in a row, of a population in every trial; the call that held
            the last of them is neither logged nor saved.
    """
    layout = layout or Layout((jax.devices()[0],))
    step = saved = updates_done(state)
    guard = _Guard(layout.population)
    logged, seconds = step, 0.0
    while step < config.updates and not stop():
        if config.evaluate_every and step and step % config.evaluate_every == 0:
            evaluate(layout.collect(state))
            if stop():
                break
        began = time.perf_counter()
        state, report = train_step(state, dataset)
        report = jax.device_get(layout.collect(report))
        seconds += time.perf_counter() - began
        step += config.updates_per_call
        guard.look(step, report)
        metrics = report.metrics | {"guard/skipped": guard.skipped}
        on_call(step, metrics)
        if step % config.log_every == 0 or step >= config.updates:
            log(step, metrics, (step - logged) / seconds)
            logged, seconds = step, 0.0
        if step % config.checkpoint_every == 0:
            save(layout.collect(state))
            saved = step
    state = layout.collect(state)
    if step > saved:
        save(state)
    return state


class _Guard:
    """Counts skipped updates and ends a run that does nothing else."""

    def __init__(self, population: bool):
        self._population = population
        self._in_a_row = 0
        self.skipped = 0

    def look(self, step: int, report: Report) -> None:
        skipped = np.atleast_2d(report.skipped)
        streak, longest = np.broadcast_to(self._in_a_row, len(skipped)), self._in_a_row
        for now in skipped.T:
            streak = np.where(now, streak + 1, 0)
            longest = np.maximum(longest, streak)
        self._in_a_row = streak
        total = self.skipped + skipped.sum(axis=1)
        self.skipped = total if self._population else total[0]
        if np.all(longest >= PATIENCE):
            suspects = [name for name, bad in sorted(report.suspects.items()) if np.any(bad)]
            name = suspects[0] if suspects else "a parameter"
            raise NonFiniteMetrics(f"{name} was not finite in {PATIENCE} updates in a row, up to update {step}")


class Interruption:
    """Turns SIGINT and SIGTERM into a request to stop; a second signal acts as it would have without us.

    A context manager, for the main thread. While `deferred` is False a signal raises Interrupted at once; set it
    True where work must first be saved, and poll `requested`.
    """

    def __init__(self):
        self.requested = False
        self.deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *unused: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        self.requested = True
        if not self.deferred:
            raise Interrupted(signal.Signals(number).name)
