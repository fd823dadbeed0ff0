"""The single training path: from a dataset and a state on disk to a trained state on disk."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from omcda_jax import data
from omcda_jax.config import ExperimentConfig
from omcda_jax.learner import Guard, Layout, anywhere, make_debug_step, make_train_step, train
from omcda_jax.runner.datasets import Source
from omcda_jax.runner.evaluation import Judge
from omcda_jax.runner.jobs import Job, Saved
from omcda_jax.runner.processes import say
from omcda_jax.runner.records import Records
from omcda_jax.system import Interruption, compiler_options, programs_read
from omcda_jax.types import ConfigError, TrainState, updates_done


def learn(job: Job, source: Source, saved: Saved, judge: Judge, interruption: Interruption) -> Saved:
    """Train to the end or until a signal; every saved state has what a later start needs.

    Args:
        job: the job to train; its directory is claimed.
        source: its dataset.
        saved: its state and metadata so far.
        judge: evaluates its states.
        interruption: polled between calls.

    Returns:
        The state after the last update, and the metadata in its checkpoint.

    Raises:
        ConfigError: the data are not those that the run began with.
        NonFiniteMetrics, StorageError: as in `learner.train` and `Checkpoints.save`.
    """
    if saved.metadata and saved.metadata["data"].get("digest") != source.metadata.get("digest"):
        raise ConfigError(
            f"{job.directory}: was started on other data than the file now contains; choose another {job.flag}"
        )
    settings, layout = job.config.learner, job.layout()
    state = begin(job, source) if saved.state is None else saved.state
    step = updates_done(state)
    say(f"{'resumed' if saved.metadata else 'starting'} at step {step} of {settings.updates}, in {job.directory}")
    warmup = _warmup(job.config)
    if warmup:
        say(f"note: all {settings.updates} updates are warm-up ({warmup}): the policy does not follow its values yet")
    guard = Guard(len(job.configs), saved.metadata.get("guard"))
    seconds = saved.metadata.get("seconds", 0.0)
    stopping = functools.partial(_is_stopping, job, interruption)
    unread = None  # the error of a closed output pipe, raised after the training so far is saved

    with source.opened as dataset_at:
        train_step, state = compile_step(job, layout, state, dataset_at(step))
        with Records(job, source.spec, source.metadata, guard, step, seconds) as records, interruption.deferring():
            if records.lack_evaluation(step) and not stopping():
                evaluate(step, layout.collect(state), judge, records, interruption)
            calls = () if stopping() else train(train_step, state, dataset_at, settings, layout=layout, guard=guard)
            try:
                for step, state, report in calls:
                    records.count(report)
                    if step % settings.log_every == 0 or step >= settings.updates:
                        records.log(step, report)
                    if step % settings.checkpoint_every == 0:
                        records.save(step, layout.collect(state))
                    records.show(step, report)
                    if records.lack_evaluation(step) and not stopping():
                        evaluate(step, layout.collect(state), judge, records, interruption)
                    if stopping():
                        break
            except BrokenPipeError as error:
                unread = error
            state = layout.collect(state)
            if step > records.saved:
                records.save(step, state)
            records.wait()
    if unread:
        raise unread
    return Saved(state, records.metadata)


def begin(job: Job, source: Source) -> TrainState:
    """Return the state before any update, with the data's normaliser if the config asks for one."""
    state = job.fresh(source.spec)
    if source.normaliser is None:
        return state
    spread = lambda x: jnp.stack([x] * len(job.configs)) if job.population else x
    return state.replace(normaliser=jax.tree.map(spread, source.normaliser))


def compile_step(job: Job, layout: Layout, state: TrainState, dataset: Any) -> tuple[Callable[..., Any], TrainState]:
    """Return the training call for data of this shape, and the state in the form that the call takes.

    Raises:
        ConfigError: --debug_nans with more than one trial or device; or as in `make_train_step`.
    """
    settings, began = job.config.learner, time.monotonic()
    sizes = (settings.batch_size, settings.updates_per_call)
    if job.switches.debug_nans:
        if job.population or jax.device_count() > 1:
            raise ConfigError("--debug_nans: expected one trial on one device, found more")
        return make_debug_step(job.algorithm, data.sample, *sizes), state
    train_step = make_train_step(job.algorithm, data.sample, *sizes, layout)
    state = layout.place(state)
    if jax.process_count() > 1:
        # ahead of time, pmap accepts only global arrays; at the call it accepts each process's own
        say(f"training on {len(layout.devices)} devices; the first call compiles the update")
    else:
        lowered, options = train_step.lower(state, dataset), compiler_options(layout.devices[0].platform)
        with programs_read() as read:
            train_step = lowered.compile(options)
        how = f"read from {jax.config.jax_compilation_cache_dir}" if read else "compiled"
        say(f"the update for {len(layout.devices)} device(s) was {how} in {time.monotonic() - began:.1f} s")
    return train_step, state


def evaluate(step: int, state: TrainState, judge: Judge, records: Records, interruption: Interruption) -> None:
    """Evaluate a state and record the result; a signal aborts the evaluation, and then nothing is recorded.

    Raises:
        ConfigError: raised by the judge; the state is saved first.
    """
    try:
        summaries = interruption.breaking_off(lambda: judge(state))
    except ConfigError:
        if step > records.saved:
            records.save(step, state)
            records.wait()
        raise
    if summaries is not None:
        records.add_evaluation(step, state, summaries)


def _warmup(config: ExperimentConfig) -> str | None:
    """The setting that makes all updates a warm-up, if there is one."""
    names = [field.name for field in dataclasses.fields(config.algorithm) if field.metadata.get("warmup")]
    lengths = {name: getattr(config.algorithm, name) for name in names}
    found = [f"algorithm.{name}={length}" for name, length in lengths.items() if length >= config.learner.updates]
    return found[0] if found else None


def _is_stopping(job: Job, interruption: Interruption) -> bool:
    """Whether to stop. A single trial stops in all processes after the same update, whichever got the signal."""
    return interruption.requested if job.population else anywhere(interruption.requested)
