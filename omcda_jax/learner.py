"""Training: k updates per compiled call, and the loop that logs, saves, evaluates and stops cleanly.

A batch is a pure function of the state's key and step, so a state restored at step n goes on exactly as if it had
never stopped. The dataset is an argument of the compiled call: resident on the device and never copied into it.
"""

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.config import LearnerConfig
from omcda_jax.types import Algorithm, Batch, EnvSpec, Metrics, Normaliser, TrainState, updates_done

# Folded into the state's key before the step, to keep batch keys apart from the keys an update derives itself.
_BATCH_STREAM = 0x6261_7463


class NonFiniteMetrics(RuntimeError):
    """A metric became infinite or not a number; the message names it and the step."""


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


def make_train_step(
    algorithm: Algorithm,
    sample: Callable[[Any, jax.Array, int], Batch],
    batch_size: int,
    updates_per_call: int,
    *,
    population: bool = False,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Returns a compiled `(state, dataset) -> (state, metrics)` that does `updates_per_call` updates.

    The state passed in is donated: use the one returned. Metrics are means over the call's updates.

    Args:
        algorithm: the bundle whose `update` is called.
        sample: `sample(dataset, key, batch_size) -> Batch`, pure.
        batch_size: B.
        updates_per_call: k, the length of the scan.
        population: the state is a stack of P states, each on batches of its own; metrics lead with an axis [P].
    """

    def update_once(state: TrainState, dataset: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, _BATCH_STREAM), state.step)
        return algorithm.update(state, sample(dataset, key, batch_size))

    update = jax.vmap(update_once, in_axes=(0, None)) if population else update_once

    def train_step(state: TrainState, dataset: Any) -> tuple[TrainState, Metrics]:
        state, metrics = jax.lax.scan(lambda carry, _: update(carry, dataset), state, None, length=updates_per_call)
        return state, jax.tree.map(lambda values: jnp.mean(values, axis=0), metrics)

    return jax.jit(train_step, donate_argnums=0)


def train(
    train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    state: TrainState,
    dataset: Any,
    config: LearnerConfig,
    *,
    on_call: Callable[[int, Metrics], None] = lambda step, metrics: None,
    log: Callable[[int, Metrics, float], None] = lambda step, metrics, rate: None,
    save: Callable[[TrainState], None] = lambda state: None,
    evaluate: Callable[[TrainState], None] = lambda state: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Updates `state` until `config.updates` are done or `stop()` says so; either way the last state is saved.

    Args:
        train_step: from `make_train_step`, with `config.updates_per_call`.
        state: donated; where to start, whatever its step.
        dataset: what `train_step` takes.
        config: numbers of updates.
        on_call: `on_call(step, metrics)` after every call, for progress on the screen.
        log: `log(step, metrics, updates_per_second)` every `log_every` updates; metrics of the latest call, the
            rate over the calls since the last log.
        save: called every `checkpoint_every` updates and at the end.
        evaluate: called every `evaluate_every` updates, before the next call and so not after the last one; a state
            that starts at such a step is evaluated first, for a stop may have come between.
        stop: polled after every call and every evaluation.

    Returns:
        The state after the last update done.

    Raises:
        NonFiniteMetrics: before anything of that call is logged or saved.
    """
    step = saved = updates_done(state)
    logged, seconds = step, 0.0
    while step < config.updates and not stop():
        if config.evaluate_every and step and step % config.evaluate_every == 0:
            evaluate(state)
            if stop():
                break
        began = time.perf_counter()
        state, metrics = train_step(state, dataset)
        metrics = jax.device_get(metrics)
        seconds += time.perf_counter() - began
        step += config.updates_per_call
        check_finite(step, metrics)
        on_call(step, metrics)
        if step % config.log_every == 0 or step >= config.updates:
            log(step, metrics, (step - logged) / seconds)
            logged, seconds = step, 0.0
        if step % config.checkpoint_every == 0:
            save(state)
            saved = step
    if step > saved:
        save(state)
    return state


def check_finite(step: int, metrics: Metrics) -> None:
    """Raises NonFiniteMetrics naming the first metric that is infinite or not a number after `step` updates."""
    for key in sorted(metrics):
        if not np.all(np.isfinite(metrics[key])):
            raise NonFiniteMetrics(f"{key} is {np.asarray(metrics[key]).tolist()} after {step} updates")


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
