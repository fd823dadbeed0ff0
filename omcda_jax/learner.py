"""Training: k updates per compiled call, and a loop over such calls.

A batch is a pure function of the state's key and step, so a state restored at step n resumes exactly as if it had
never stopped. The dataset is an argument of the compiled call: it stays on the device and is never part of the program.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from omcda_jax.config import LearnerConfig, require
from omcda_jax.system import compiler_options
from omcda_jax.types import Algorithm, Batch, EnvSpec, Metrics, Normaliser, TrainState, check_seed, updates_done

# Folded into the state's key before the step, to keep batch keys apart from the keys an update derives itself.
_BATCH_STREAM = 0x6261_7463
# This many skipped updates in a row end a run: a bad batch causes one, a diverged trial skips all.
PATIENCE = 10
_AXIS = "devices"


class NonFiniteMetrics(RuntimeError):
    """Several updates in a row had a metric that was not finite; the message names the first by name and the update."""


def initial_state(
    algorithm: Algorithm, seed: int, spec: EnvSpec, config: Any, *, normalised: bool = False
) -> TrainState:
    """Return the algorithm's state before any update, with no two leaves sharing a buffer.

    Args:
        algorithm: the bundle whose `init` is called.
        seed: in [0, 2**32).
        spec: sizes of the task.
        config: the algorithm's settings.
        normalised: the state gets a normaliser that changes nothing, as a placeholder for the dataset's.

    Raises:
        ConfigError: the seed is out of range, or the algorithm refuses the settings for this task.
    """
    check_seed(seed)
    config = _concrete(config)
    begin = lambda key: _begin(algorithm, spec, normalised, key, config)
    return _run_once(begin, jax.random.key(seed), within=config)


def initial_population(
    algorithm: Algorithm, seeds: Sequence[int], spec: EnvSpec, configs: Sequence[Any], *, normalised: bool = False
) -> TrainState:
    """Return a stack of initial states, leaves [P, ...]; one program makes all trials, whatever their numbers.

    Args:
        algorithm, spec, normalised: as in `initial_state`.
        seeds: [P].
        configs: [P] settings that differ only in numbers.

    Raises:
        ConfigError: as `initial_state`.
    """
    for seed in seeds:
        check_seed(seed)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    for config in {repr(config): config for config in map(_concrete, configs)}.values():
        jax.eval_shape(lambda key: _begin(algorithm, spec, normalised, key, config), keys[0])  # noqa: B023 called at once
    numbers = jax.tree.map(lambda *values: jnp.asarray(values, jnp.float32), *configs)
    return _run_once(jax.vmap(lambda *trial: _begin(algorithm, spec, normalised, *trial)), keys, numbers)


def _concrete(config: Any) -> Any:
    """Return settings with NumPy numbers instead of JAX's, which would be traced and therefore pass every check."""
    is_number = lambda leaf: isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[()] if is_number(leaf) else leaf, config)


def _run_once(function: Callable[..., Any], *arguments: Any, within: Any = None) -> Any:
    """Call a function as one program instead of hundreds, compiled for a single call.

    If an argument is traced, or a leaf of `within` (what the function closes over), the outer program includes it.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((arguments, within))):
        return jax.jit(function)(*arguments)
    (device,) = arguments[0].devices()
    program = jax.jit(function, compiler_options=compiler_options(device.platform, once=True))
    return program(*arguments)


def _begin(algorithm: Algorithm, spec: EnvSpec, normalised: bool, key: jax.Array, config: Any) -> TrainState:
    state = algorithm.init(key, spec, config)
    if not normalised:
        return state
    features = (spec.num_agents, spec.obs_dim), (spec.state_dim,)
    scales = [array(shape, jnp.float32) for shape in features for array in (jnp.zeros, jnp.ones)]
    return state.replace(normaliser=Normaliser(*scales))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How states are placed on devices: one trial spread over all by rows of its batch, or a population of trials.

    Attributes:
        devices: with several, the training call is a pmap. All of `jax.devices()` or, in one process, any local ones.
        population: the state is a stack of trials, leaves [P, ...], P a multiple of the number of devices.
    """

    devices: tuple[jax.Device, ...]
    population: bool = False

    @property
    def spread(self) -> bool:
        """True with more than one device."""
        return len(self.devices) > 1

    @property
    def local(self) -> list[jax.Device]:
        """Devices of this process."""
        return [device for device in self.devices if device.process_index == jax.process_index()]

    def place(self, state: TrainState) -> TrainState:
        """Return a state, which is the same in every process, as the training call takes it.

        Raises:
            ConfigError: the number of trials is not a multiple of the number of devices.
        """
        if not self.spread:
            return state
        if not self.population:
            return self._replicate(state)
        trials = np.size(state.step)
        require(trials % len(self.devices) == 0, "trials", f"a multiple of the {len(self.devices)} devices", trials)
        return jax.tree.map(lambda x: x.reshape(len(self.devices), -1, *x.shape[1:]), state)

    def place_dataset(self, dataset: Any) -> Any:
        """Return a dataset as the training call takes it: all that this process has of it, on each of its devices."""
        return self._replicate(dataset) if self.spread else jax.device_put(dataset)

    def _replicate(self, tree: Any) -> Any:
        # not flax's replicate, which first stacks a copy for each device on one of them
        sharding = NamedSharding(Mesh(np.array(self.local), (_AXIS,)), PartitionSpec(_AXIS))

        def spread(x):
            row = x[None]
            copies = [jax.device_put(row, device) for device in self.local]
            return jax.make_array_from_single_device_arrays((len(copies), *x.shape), sharding, copies)

        return jax.tree.map(spread, tree)

    def collect(self, tree: Any) -> Any:
        """Return a placed state, or a report of the training call, without the device axis."""
        if not self.spread:
            return tree
        if not self.population:
            return jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def broadcast(tree: Any) -> Any:
    """Return process 0's leaves in every process; the other processes' leaves only give shapes and dtypes."""
    if jax.process_count() == 1:
        return tree
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    plain = jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf), tree)
    sent = multihost_utils.broadcast_one_to_all(plain)
    return jax.tree.map(
        lambda leaf, like: jax.random.wrap_key_data(jnp.asarray(leaf)) if is_key(like) else jnp.asarray(leaf),
        sent,
        tree,
    )


def anywhere(condition: bool) -> bool:
    """Return whether the condition holds in any process; all processes must call this at the same point."""
    if jax.process_count() == 1:
        return condition
    return bool(np.any(multihost_utils.process_allgather(np.array(condition))))


class Report(NamedTuple):
    """Results of k updates; for a population, every array has a leading axis [P].

    Attributes:
        metrics: means over the updates that were kept; nan if none was.
        skipped: [k] bool, the update was not finite and changed only the step.
        suspects: by metric, whether it was not finite in any of the updates.
        seconds: seconds that the call took; only `train` sets it.
    """

    metrics: Metrics
    skipped: jax.Array
    suspects: dict[str, jax.Array]
    seconds: float | None = None


def make_train_step(
    algorithm: Algorithm,
    sample: Callable[..., Batch],
    batch_size: int,
    updates_per_call: int,
    layout: Layout | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, Report]]:
    """Return a compiled `(state, dataset) -> (state, report)` that does `updates_per_call` updates.

    The state passed in is donated: use the one returned. N devices with B/N rows each do what one device does with B
    rows; OMCDA by gradient only if B/N is even, because its policy learns from every second row of each device. If any
    metric of an update is not finite, norms of gradients included, all devices skip the update: only the step advances,
    so the next batch is another one.

    Args:
        algorithm: the bundle whose `update` is called.
        sample: pure `sample(dataset, key, batch_size, part, parts, gamma) -> Batch` of the B / parts rows from
            part * B / parts on; `gamma` is the trial's discount factor, None if its algorithm has none.
        batch_size: B, of the whole batch.
        updates_per_call: k, the length of the scan.
        layout: None: one trial on one device.

    Raises:
        ConfigError: batch_size is not a multiple of the number of devices.
    """
    layout = layout or Layout((jax.devices()[0],))
    over_rows = layout.spread and not layout.population
    parts = len(layout.devices) if over_rows else 1
    require(batch_size % parts == 0, "learner.batch_size", f"a multiple of the {parts} devices", batch_size)

    def update_once(state: TrainState, dataset: Any) -> tuple[TrainState, tuple[Partial, jax.Array]]:
        part = jax.lax.axis_index(_AXIS) if over_rows else 0
        batch = _draw(sample, dataset, state, batch_size, part, parts)
        new, metrics = algorithm.update(state, batch, axis_name=_AXIS if over_rows else None)
        finite = _all_finite(metrics)
        numbers, shaped = ravel_pytree(metrics)
        learnt = ("params", "target_params", "opt_state", "extra")
        after, before = ({name: getattr(which, name) for name in learnt} for which in (new, state))
        kept = jax.tree.map(lambda x, y: jnp.where(finite, x, y), after, before)
        return state.replace(**kept, step=state.step + 1), (Partial(shaped, numbers), finite)

    def train_step(state: TrainState, dataset: Any) -> tuple[TrainState, Report]:
        def one(carry, _):
            return update_once(carry, dataset)

        # all metrics are one vector here: a few kernels to compile, not a few for each metric
        state, (metrics, finite) = jax.lax.scan(one, state, None, length=updates_per_call)
        shaped, (numbers,) = metrics.func, metrics.args
        mean = jnp.sum(jnp.where(finite[:, None], numbers, 0.0), axis=0) / jnp.sum(finite)
        suspect = jnp.any(~jnp.isfinite(numbers), axis=0).astype(mean.dtype)
        return state, Report(shaped(mean), ~finite, jax.tree.map(lambda flags: jnp.any(flags > 0), shaped(suspect)))

    if layout.population:
        train_step = _of_every_trial(train_step, layout.devices[0].platform)
    if layout.spread:
        devices = None if len(layout.devices) == jax.device_count() else layout.devices
        return jax.pmap(train_step, axis_name=_AXIS, devices=devices, donate_argnums=0)
    return jax.jit(train_step, donate_argnums=0)


def _of_every_trial(train_step: Callable[..., Any], platform: str) -> Callable[..., Any]:
    """Train one trial after the other on a CPU, whose caches have room for only one; elsewhere all side by side."""
    if platform == "cpu":
        return lambda states, dataset: jax.lax.map(lambda state: train_step(state, dataset), states)
    return jax.vmap(train_step, in_axes=(0, None))


def make_debug_step(
    algorithm: Algorithm, sample: Callable[..., Batch], batch_size: int, updates_per_call: int
) -> Callable[[TrainState, Any], tuple[TrainState, Report]]:
    """Return a step as `make_train_step` does for one trial on one device, but without scan, donation and guard.

    If any metric of an update is not finite, the update is done again, operation by operation. The guarded step would
    skip it silently; this one raises FloatingPointError at the first operation that produced a NaN.

    Args:
        algorithm, sample, batch_size, updates_per_call: as `make_train_step`.
    """

    draw = jax.jit(lambda state, dataset: _draw(sample, dataset, state, batch_size, 0, 1))
    compiled = jax.jit(algorithm.update)

    def train_step(state, dataset):
        rows = []
        for _ in range(updates_per_call):
            batch = draw(state, dataset)  # not under debug_nans: data may mark an unknown value by a NaN
            new, metrics = compiled(state, batch)
            if not _all_finite(metrics):
                with jax.disable_jit(), jax.debug_nans(True):
                    algorithm.update(state, batch)
                step = updates_done(state)
                raise FloatingPointError(f"update {step} gave infinite numbers, or NaNs only when compiled")
            state = new
            rows.append(metrics)
        means = jax.tree.map(lambda *values: np.mean(values, axis=0), *rows)
        return state, Report(means, np.zeros(updates_per_call, bool), dict.fromkeys(means, np.False_))

    return train_step


def _draw(sample: Any, dataset: Any, state: TrainState, batch_size: int, part: Any, parts: int) -> Batch:
    """Draw the batch of the state's step: a function of its key and step alone."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, _BATCH_STREAM), state.step)
    return sample(dataset, key, batch_size, part, parts, getattr(state.config, "gamma", None))


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.isfinite(ravel_pytree(tree)[0]))


class Guard:
    """Counts of skipped updates, and the trials that skipped too many in a row.

    Args:
        trials: P, how many there are.
        saved: `counts` of an earlier start, to resume from.

    Attributes:
        skipped: [P] int, updates skipped.
        in_a_row: [P] int, updates skipped since the last kept one.
        culprits: [P], for a trial that once skipped PATIENCE updates in a row, the metric that was not finite then
            (the first by name, not in time); None for all others.
    """

    def __init__(self, trials: int = 1, saved: Mapping[str, Any] | None = None):
        saved = saved or {}
        self.skipped = np.array(saved.get("skipped", [0] * trials))
        self.in_a_row = np.array(saved.get("in_a_row", [0] * trials))
        self.culprits: list[str | None] = list(saved.get("culprits", [None] * trials))

    @property
    def counts(self) -> dict[str, Any]:
        """All counts as JSON values."""
        return {"skipped": self.skipped.tolist(), "in_a_row": self.in_a_row.tolist(), "culprits": self.culprits}

    def look(self, step: int, report: Report) -> None:
        """Count the updates that a call skipped.

        Raises:
            NonFiniteMetrics: every trial has skipped PATIENCE updates in a row.
        """
        longest = self.in_a_row
        for now in np.atleast_2d(report.skipped).T:
            self.in_a_row = np.where(now, self.in_a_row + 1, 0)
            self.skipped = self.skipped + now
            longest = np.maximum(longest, self.in_a_row)
        # a loss says more than its gradient's norm
        names = sorted(report.suspects, key=lambda name: (name.startswith("gradient/"), name))
        for trial in np.flatnonzero(longest >= PATIENCE):
            bad = [name for name in names if np.atleast_1d(report.suspects[name])[trial]]
            self.culprits[trial] = self.culprits[trial] or bad[0]
        if all(self.culprits):
            raise NonFiniteMetrics(
                f"{self.culprits[0]} was not finite in {PATIENCE} updates in a row, up to update {step}"
            )


def train(
    train_step: Callable[[TrainState, Any], tuple[TrainState, Report]],
    state: TrainState,
    dataset: Any,
    config: LearnerConfig,
    *,
    layout: Layout | None = None,
    guard: Guard | None = None,
) -> Iterator[tuple[int, TrainState, Report]]:
    """Update `state` until `config.updates` are done; a generator that waits after each call while its caller works.

        for step, state, report in train(train_step, state, dataset, config):
            if step % 1000 == 0:
                print(step, report.metrics["policy/loss"])

    Args:
        train_step: from `make_train_step`, with `config.updates_per_call` and this layout.
        state: state to start from, at any step, as `layout.place` gives it. It is donated.
        dataset: what `train_step` takes, as `layout.place_dataset` gives it; or a function of the number of updates
            done that returns what the next call takes.
        config: numbers of updates.
        layout: None: one trial on one device.
        guard: counts of earlier starts to resume from; None: from zero. It is up to date at every yield.

    Yields:
        After every call: the number of updates done; the state, which the next call donates (`layout.collect` removes
        its device axis); and the call's report on the host. Its metrics include `guard/skipped`, the number of updates
        skipped since the start.

    Raises:
        NonFiniteMetrics: after PATIENCE skipped updates in a row, in a population after every trial has had them; the
            call with the last of them is not yielded.
    """
    layout = layout or Layout((jax.devices()[0],))
    step = updates_done(state)
    guard = guard or Guard(np.size(state.step) if layout.population else 1)
    dataset_at = dataset if callable(dataset) else lambda step: dataset
    while step < config.updates:
        began = time.perf_counter()
        state, report = train_step(state, dataset_at(step))
        report = jax.device_get(layout.collect(report))
        seconds = time.perf_counter() - began
        step += config.updates_per_call
        guard.look(step, report)
        skipped = guard.skipped if layout.population else guard.skipped[0]
        yield step, state, report._replace(metrics=report.metrics | {"guard/skipped": skipped}, seconds=seconds)
