"""Which trial of a population to take, by the data alone: the estimates, how sure they are, and their files."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax import data, selection
from omcda_jax.algorithms import find
from omcda_jax.checkpoint import save_policy
from omcda_jax.config import ExperimentConfig, require, to_dict
from omcda_jax.learner import Guard, Layout, initial_state, make_train_step, train
from omcda_jax.metrics import Progress
from omcda_jax.runner import datasets
from omcda_jax.runner.jobs import Job, Saved, write_json
from omcda_jax.runner.presets import PRESETS
from omcda_jax.runner.processes import say
from omcda_jax.runner.report import align, text
from omcda_jax.types import Actor, Algorithm, Batch, ConfigError, EnvSpec, TrainState, updates_done

ESTIMATES = ("critic", "fqe", "dr")  # from cheap to costly; an estimate includes the cheaper ones
HELD_OUT = 0.2  # share of the episodes that no estimate is fitted on, unless data.held_out says otherwise
FITS = 2  # fits per trial, with different networks and batches
LARGEST_RATE = 0.05  # largest target rate that `fqe_settings` chooses
ROWS = 1024  # rows of the held-out episodes that are judged at a time

Labels = Sequence[Mapping[str, Any]]


class Order(NamedTuple):
    """What to choose by.

    Attributes:
        by: one of ESTIMATES.
        updates: number of updates that critics are fitted for.
        gamma: discount factor of the fitted estimates; None: the largest among the trials.
    """

    by: str
    updates: int
    gamma: float | None = None


def check(order: Order, job: Job, spec: EnvSpec) -> None:
    """Refuse, before any training, an order by which the trials cannot be chosen.

    Raises:
        ConfigError: there is only one trial, the algorithm has no such estimate, or a number is out of its range.
    """
    flag, name = f"--select={order.by}", job.config.algorithm.name
    if len(job.configs) < 2:
        raise ConfigError(f"{flag}: expected at least 2 trials to choose among, found {len(job.configs)}")
    each = job.config.learner.updates_per_call
    expected = f"a positive multiple of learner.updates_per_call={each}"
    fits = order.by != "critic"
    require(not fits or (order.updates > 0 and order.updates % each == 0), "--select_updates", expected, order.updates)
    gammas = sorted({trial.algorithm.gamma for trial in job.configs if hasattr(trial.algorithm, "gamma")})
    gamma, key = (order.gamma, "--select_gamma") if order.gamma is not None else (max(gammas, default=0), "gamma")
    require(0 <= gamma < 1, key, f"at least 0 and below 1 for {flag}", gamma)
    if not fits and order.gamma is not None:
        raise ConfigError(
            f"--select_gamma: expected none with {flag}, because each critic keeps its trial's own, found {gamma}"
        )
    if not fits and len(gammas) > 1:
        raise ConfigError(f"{flag}: expected trials with one gamma, so that their values compare, found {gammas}")
    template = job.template(spec)
    if order.by == "critic" and not selection.has_critic(template):
        raise ConfigError(f"{flag}: expected an algorithm with a critic, found {name}; --select=fqe fits one")
    if order.by == "dr" and not selection.has_density(jax.eval_shape(jax.vmap(job.algorithm.policy), template)):
        raise ConfigError(f"{flag}: expected a policy with action densities, found {name}'s; --select=fqe needs none")


class Cut(NamedTuple):
    """The data, split for the estimates.

    Attributes:
        fitted: episodes that critics and behaviour clones are fitted on, with returns-to-go.
        held_out: the E other episodes.
        gamma: discount factor of the fitted estimates.
        largest: largest return-to-go in all of the data, scaled; nan if a time limit cuts every episode short.
    """

    fitted: data.Dataset
    held_out: data.Dataset
    gamma: float
    largest: float

    @property
    def lengths(self) -> np.ndarray:
        """Steps of the held-out episodes, [E]."""
        rows = np.asarray(self.held_out.rows)
        return np.diff(np.append(np.flatnonzero(np.asarray(self.held_out.first)[rows]), len(rows)))

    @property
    def returns(self) -> np.ndarray:
        """Recorded discounted returns of the held-out episodes that were not cut short, scaled: [at most E]."""
        found = np.asarray(self.starts.return_to_go, np.float64)
        return found[~np.isnan(found)]

    @property
    def starts(self) -> Batch:
        """First steps of the held-out episodes, [E]."""
        rows = np.asarray(self.held_out.rows)
        return data.gather(self.held_out, rows[np.asarray(self.held_out.first)[rows]])


def cut(job: Job, saved: Saved, gamma: float | None = None) -> Cut:
    """Read the run's data again and split them in two by whole episodes.

    Raises:
        ConfigError, DatasetError: as in `datasets.load` and `data.split`; or the run was trained on other data.
    """
    config, path = job.config, datasets.path_of(job.config.data)
    dataset, metadata = datasets.load(config, path)
    if saved.metadata["data"].get("digest") != metadata.get("digest"):
        raise ConfigError(f"{path}: expected the data that {job.directory} was trained on, found other data")
    if gamma is None:
        gamma = max(getattr(trial.algorithm, "gamma", selection.FqeConfig.gamma) for trial in job.configs)
    largest = data.max_return_to_go(dataset, gamma)
    # with data.held_out, these are the episodes that the policies have not seen either
    parts = data.split(data.returns_to_go(dataset, [gamma]), config.data.held_out or HELD_OUT, config.data.seed)
    return Cut(*parts, gamma, largest)


def fqe_settings(config: ExperimentConfig, gamma: float, updates: int) -> selection.FqeConfig:
    """Return the settings of the fitted critic: the trials' networks, a fifth of priming, and fast enough targets.

    In the other four fifths, credit has to travel 2 / (1 - gamma) steps, and each step takes 1 / target_rate updates.
    """
    names = {field.name for field in dataclasses.fields(selection.FqeConfig)}
    preset = PRESETS[config.name].shared if config.name in PRESETS else {}
    shared = {key: value for key, value in preset.items() if key in names}
    networks = ("hidden_sizes", "mixer_hidden", "critic_layer_norm")
    own = {key: getattr(config.algorithm, key) for key in networks if hasattr(config.algorithm, key)}
    settings = selection.FqeConfig(**{**shared, **own, "gamma": gamma, "priming": updates // 5})
    needed = 2 / (1 - gamma) / (updates - settings.priming)
    return settings.replace(target_rate=max(settings.target_rate, min(needed, LARGEST_RATE)))


def fit(
    algorithm: Algorithm, state: TrainState, dataset: data.Dataset, config: ExperimentConfig, layout: Layout
) -> tuple[TrainState, Guard]:
    """Train a population on a part of the data for `config.learner.updates`; nothing is saved during training.

    Raises:
        NonFiniteMetrics: as in `learner.train`.
    """
    settings = config.learner
    guard = Guard(np.size(state.step))
    progress = Progress(settings.updates, shown=("fqe/td", "fqe/q", "policy/loss"))
    with datasets.place(config, dataset, layout) as dataset_at:
        step_once = make_train_step(algorithm, data.sample, settings.batch_size, settings.updates_per_call, layout)
        for step, new, report in train(
            step_once, layout.place(state), dataset_at, settings, layout=layout, guard=guard
        ):
            progress.update(step, report.metrics)
            state = new
    progress.close()
    return layout.collect(state), guard


def fit_values(job: Job, policies: Actor, parts: Cut, config: ExperimentConfig) -> tuple[TrainState, np.ndarray]:
    """Fit a critic to each of policies [P] FITS times; return states [P F] and whether each stayed finite."""
    settings, trials = fqe_settings(config, parts.gamma, config.learner.updates), len(job.configs)
    policies = jax.tree.map(lambda leaf: jnp.repeat(leaf, FITS, axis=0), policies)
    keys = jax.random.split(jax.random.key(config.data.seed), FITS)[jnp.tile(jnp.arange(FITS), trials)]
    fresh = jax.vmap(lambda key, policy: selection.init(key, policy, settings))(keys, policies)
    fresh = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), fresh)
    say(f"fitted Q evaluation: {FITS} fits each of {trials} trials, {config.learner.updates} updates")
    fitted, guard = fit(selection.FQE, fresh, parts.fitted, config, job.layout())
    return fitted, np.array([culprit is None for culprit in guard.culprits])


def fit_clone(state: TrainState, parts: Cut, config: ExperimentConfig) -> Actor:
    """Clone the behaviour policy on the same part of the data, for departures and the doubly robust estimate."""
    algorithm, own = find("bc"), getattr(config.algorithm, "hidden_sizes", None)
    settings = algorithm.config() if own is None else algorithm.config(hidden_sizes=own)
    fresh = initial_state(algorithm, config.data.seed, parts.fitted.spec, settings)
    fresh = fresh.replace(normaliser=jax.tree.map(lambda leaf: leaf[0], state.normaliser))
    fresh = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True)[None], fresh)
    say(f"clone of the data's policy: {config.learner.updates} updates")
    layout = Layout((jax.local_devices()[0],), population=True)
    clone, _ = fit(algorithm, fresh, parts.fitted, config, layout)
    return jax.tree.map(lambda leaf: leaf[0], algorithm.policy(clone))


def start_values(function: Any, states: TrainState, parts: Cut) -> np.ndarray:
    """Return `function(state, batch)` at the first states of the held-out episodes, trial by trial: [P, E]."""
    one_by_one = jax.jit(lambda states, batch: jax.lax.map(lambda state: function(state, batch), states))
    return np.asarray(one_by_one(states, parts.starts), np.float64)


def departures(policies: Actor, clone: Actor, parts: Cut) -> np.ndarray:
    """Return the share of the agents' actions in the held-out episodes by which policies [P] leave the data, [P]."""
    judge = jax.jit(
        lambda policies, batch: jax.lax.map(lambda policy: selection.departs(policy, clone, batch), policies)
    )
    found = in_blocks(lambda batch, _: judge(policies, batch), parts.held_out, np.asarray(parts.held_out.rows))
    return np.nan_to_num(np.nanmean(found, axis=(1, 2)))


def in_blocks(function: Callable[[Batch, int], Any], dataset: data.Dataset, rows: np.ndarray) -> Any:
    """Return `function(batch, block)` on R rows, block by block, as arrays [P, R, ...] joined along the rows.

    The last block is filled up, so that all have one shape.
    """
    blocks = []
    for block, start in enumerate(range(0, len(rows), ROWS)):
        chosen = rows[np.minimum(np.arange(start, start + ROWS), len(rows) - 1)]
        blocks.append(jax.tree.map(np.asarray, function(data.gather(dataset, chosen), block)))
    return jax.tree.map(lambda *values: np.concatenate(values, axis=1)[:, : len(rows)], *blocks)


def doubly_robust(states: TrainState, clone: Actor, parts: Cut, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the doubly robust estimate of each episode [P F, E], and the effective share of the episodes [P F].

    Args:
        states: states of fitted Q evaluation.
        clone: clone of the behaviour policy.
        parts: the data.
        seed: seed of the samples of continuous actions.
    """
    held_out, lengths = parts.held_out, parts.lengths
    rows, ends = np.asarray(held_out.rows), np.cumsum(lengths) - 1
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(len(rows)) - np.repeat(ends + 1 - lengths, lengths)
    judge = jax.jit(
        lambda states, batch, keys: jax.lax.map(lambda state: selection.terms(state, clone, batch, keys), states)
    )

    def terms(batch, block):
        return judge(states, batch, jax.random.split(jax.random.fold_in(jax.random.key(seed), block), ROWS))

    def terms_afterwards(batch, block):
        after = batch.replace(obs=batch.next_obs, global_state=batch.next_global_state, avail=batch.next_avail)
        return terms(after, block)

    inside, after = in_blocks(terms, held_out, rows), in_blocks(terms_afterwards, held_out, rows[ends])
    reward, goes_on = np.asarray(held_out.reward)[rows], np.asarray(held_out.discount)[rows[ends]]

    def spread(values, extra=0):
        table = np.zeros((len(lengths), lengths.max() + extra))
        table[episode, step] = values
        return table

    found = []
    for ratio, q, v, beyond in zip(
        inside.log_ratio, inside.action_value, inside.state_value, after.state_value, strict=True
    ):
        values = spread(v, extra=1)
        values[np.arange(len(lengths)), lengths] = goes_on * beyond
        found.append(selection.doubly_robust(spread(ratio), spread(reward - q), values, lengths, parts.gamma))
    return np.stack([each for each, _ in found]), np.array([share for _, share in found])


class Estimates(NamedTuple):
    """The estimates, in the environment's units.

    Attributes:
        values: by estimate, [P, F, E] for P trials, F fits and E held-out episodes; nan where there is no number.
        departure: share of the agents' actions that leave the data, [P]; or None.
        effective_share: share of the episodes that remains effective under the doubly robust weights, [P]; or None.
    """

    values: dict[str, np.ndarray]
    departure: np.ndarray | None = None
    effective_share: np.ndarray | None = None


def estimate(job: Job, state: TrainState, parts: Cut, order: Order) -> Estimates:
    """Judge all trials by the requested estimate and the cheaper ones, as far as the algorithm has them.

    Raises:
        NonFiniteMetrics: no fit stayed finite, or the clone did not.
    """
    trials, scale = len(job.configs), job.config.data.reward_scale
    values: dict[str, np.ndarray] = {}
    if selection.has_critic(state):
        values["critic"] = start_values(selection.critic_value, state, parts)[:, None] / scale
    if order.by == "critic":
        return Estimates(values)
    learner = dataclasses.replace(job.config.learner, updates=order.updates)
    config = dataclasses.replace(job.config, learner=learner, data=dataclasses.replace(job.config.data, shards=1))
    policies, clone = jax.vmap(job.algorithm.policy)(state), fit_clone(state, parts, config)
    departure = departures(policies, clone, parts)
    near = departure <= selection.LARGEST_DEPARTURE
    fitted, finite = fit_values(job, policies, parts, config)
    by_fit = lambda found: np.where(finite[:, None], found, np.nan).reshape(trials, FITS, -1) / scale
    values["fqe"] = np.where(near[:, None, None], by_fit(start_values(selection.value, fitted, parts)), np.nan)
    if order.by == "fqe":
        return Estimates(values, departure)
    found, shares = doubly_robust(fitted, clone, parts, config.data.seed)
    # the importance weights do not depend on the fit
    share = shares.reshape(trials, FITS).min(axis=1)
    sane = near & (share >= selection.LEAST_EFFECTIVE_SHARE)
    values["dr"] = np.where(sane[:, None, None], by_fit(found), np.nan)
    return Estimates(values, departure, share)


def select(job: Job, labels: Labels, saved: Saved, order: Order) -> dict[str, Any]:
    """Judge the trials of a trained population, write selection.json and the chosen policy, and return the selection.

    Args:
        job: the job; its directory is claimed.
        labels: what each trial varies.
        saved: its trained state.
        order: what to choose by.

    Raises:
        ConfigError, DatasetError: as in `cut`.
        NonFiniteMetrics: as in `estimate`.
    """
    parts = cut(job, saved, order.gamma)
    found = estimate(job, saved.state, parts, order)
    diverged = np.array([bool(culprit) for culprit in saved.metadata["guard"]["culprits"]])
    for values in found.values.values():
        values[diverged] = np.nan
    scale = job.config.data.reward_scale
    compared = {name: selection.compare(values, job.config.data.seed) for name, values in found.values.items()}
    chosen = compared[order.by].chosen
    result = {
        "config": to_dict(job.config),
        "step": updates_done(saved.state),
        "by": order.by,
        "updates": order.updates,
        "fits": FITS,
        "gamma": parts.gamma,
        "episodes": saved.metadata["data"]["statistics"]["episodes"],
        "held_out_episodes": len(parts.lengths),
        "largest_return_to_go": None if np.isnan(parts.largest) else parts.largest / scale,
        "recorded": float(parts.returns.mean()) / scale if parts.returns.size else None,
        "chosen": chosen,
        "trials": [_entry(dict(label), index, compared, found) for index, label in enumerate(labels)],
    }
    place = os.path.join(job.directory, "selected")
    shutil.rmtree(place, ignore_errors=True)
    if chosen is not None:
        save_policy(place, job.algorithm.policy(jax.tree.map(lambda leaf: leaf[chosen], saved.state)))
    # written last, because it names the policy
    write_json(os.path.join(job.directory, "selection.json"), result)
    return result


def _entry(
    label: Mapping[str, Any], trial: int, compared: Mapping[str, selection.Comparison], found: Estimates
) -> dict[str, Any]:
    """The entry of one trial in selection.json; nan becomes None."""
    plain = lambda number: float(number) if np.isfinite(number) else None
    entry = {"trial": label}
    for name, table in compared.items():
        entry[name] = {key: plain(column[trial]) for key, column in table._asdict().items()}
    shares = {"departure": found.departure, "effective_share": found.effective_share}
    return entry | {name: float(values[trial]) for name, values in shares.items() if values is not None}


def table(result: Mapping[str, Any]) -> str:
    """Return a selection as lines of text: every trial's estimates, then the one to take.

    Args:
        result: what `select` writes to selection.json.
    """
    by, trials, largest = result["by"], result["trials"], result["largest_return_to_go"]
    others = [name for name in ESTIMATES if name in trials[0] and name != by]
    shares = {"departure": "departure", "effective_share": "effective episodes"}
    shares = {key: title for key, title in shares.items() if key in trials[0]}
    rows = [[*trials[0]["trial"], f"{by} [95 % interval]", "best", *others, *shares.values(), ""]]
    for one in trials:
        judged = one[by]
        figure = "{value:.3f} [{low:.3f}, {high:.3f}]".format(**judged) if judged["value"] is not None else "-"
        cells = [figure, f"{judged['best']:.0%}"]
        cells += ["-" if one[name]["value"] is None else f"{one[name]['value']:.3f}" for name in others]
        cells += [f"{one[key]:.1%}" for key in shares]
        rows.append([*map(text, one["trial"].values()), *cells, _note(one, by, largest)])
    cells = [""] * (len(rows[0]) - 3)
    whole = result["recorded"] is not None
    cells.insert(len(trials[0]["trial"]) - 1, f"{result['recorded']:.3f}" if whole else "-")
    rows.append(["data", *cells, "as recorded" if whole else "cut by the time limit, beyond which estimates continue"])
    who = (
        "which the policies and their critics learned from too" if by == "critic" else "which no estimate was fitted on"
    )
    if result["config"]["data"]["held_out"]:
        who = "which no estimate and no policy was fitted on"
    heading = (
        f"selection by {by}, on {result['held_out_episodes']} of {result['episodes']} episodes, {who}; returns "
        f"discounted by {result['gamma']:g}"
    )
    if result["chosen"] is None:
        return f"{heading}\n{align(rows)}\ntake none: no trial has an estimate"
    one = trials[result["chosen"]]
    named = ", ".join(f"{key}={text(value)}" for key, value in one["trial"].items())
    return f"{heading}\n{align(rows)}\ntake {named}: the best with probability {one[by]['best']:.2f} by {by}"


def _note(one: Mapping[str, Any], by: str, largest: float | None) -> str:
    """What to know of a trial's estimate."""
    value, most, least = one[by]["value"], selection.LARGEST_DEPARTURE, selection.LEAST_EFFECTIVE_SHARE
    if one.get("departure", 0.0) > most:
        return f"no estimate: more than {most:.0%} of the actions leave the data"
    if by == "dr" and one["effective_share"] < least:
        return f"no estimate: the weights amount to less than {least:.0%} of the episodes"
    over = None not in (value, largest) and value > largest
    return "above every return-to-go in the data: perhaps overestimated" if over else ""
