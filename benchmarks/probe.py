"""OMCDA on the problem of `benchmarks/exact.py`: its levels, budgets, influence and true value next to the exact ones.

    python -m benchmarks.probe [--actions=continuous] [--updates=8000] [--batch_size=256] [--num_samples=4]
        [--value_target=in_sample] [--rules=uniform,softmax] [--episodes=1200]

The learner sees only episodes of 50 transitions of the behaviour policies. Its policy is then evaluated exactly in the
rings. `value` is V(pi). `gain` is its share of what the exact solution of the same rule adds to the behaviour's value.
alpha, influence and budget are means over the last quarter of the updates; value and KL are means over ten policies in
that quarter, each evaluated by itself. The exact rows are the split that the same rule reaches with perfect values; the
budget is counted by the account that the value form implies (see `benchmarks/exact.py`).
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import omcda_jax
from benchmarks import exact
from omcda_jax import networks
from omcda_jax.config import require
from omcda_jax.data import dataset as data
from omcda_jax.runner.frame import main
from omcda_jax.system import new_flags, printing

NUM_EPISODES = 1200
RULES = ("uniform", "softmax", "projected")
PROBLEMS = {"discrete": exact.rings, "continuous": exact.leaning_rings}

FLAGS, define = new_flags()
define("enum", "actions", "discrete", list(PROBLEMS), "Kind of the actions.")
define("integer", "num_samples", 4, "Actions drawn for an expectation, continuous.", lower_bound=2)
define("integer", "updates", 8_000, "Updates of each run.", lower_bound=40)
define("integer", "batch_size", 256, "Transitions in a batch.", lower_bound=2)
define("float", "target_rate", 0.02, "Rate at which the target networks follow.", lower_bound=0.0, upper_bound=1.0)
define("integer", "episodes", NUM_EPISODES, "Episodes of the data.", lower_bound=1)
define("enum", "value_target", "expectation", ["expectation", "in_sample"], "Form of the values.")
define("list", "rules", list(RULES), "Allocation rules to run.")
define("integer", "seed", 0, "Seed of the networks and the batches.")


class Learned(NamedTuple):
    """The outcome of one run.

    Attributes:
        value: [N] V_i of the policy, evaluated exactly.
        alpha: [N] levels.
        influence: [N].
        budget: [N] nats.
        divergence: [N] true mean KL divergence of the policy from the true behaviour policy over the data, nats.
        updates_per_second: rate without compilation.
    """

    value: np.ndarray
    alpha: np.ndarray
    influence: np.ndarray
    budget: np.ndarray
    divergence: np.ndarray
    updates_per_second: float


def rollouts(problem: list[exact.Ring], episodes: int = NUM_EPISODES, seed: int = 0) -> data.Dataset:
    """The dataset that `play` makes."""
    return data.from_arrays(*play(problem, episodes, seed))


def play(
    problem: list[exact.Ring], episodes: int = NUM_EPISODES, seed: int = 0
) -> tuple[omcda_jax.EnvSpec, data.Episodes]:
    """Episodes of the behaviour policies, every one cut by the time limit after `exact.EPISODE_STEPS` steps."""
    random = np.random.default_rng(seed)
    steps, agents = exact.EPISODE_STEPS, len(problem)
    place = np.zeros((episodes, steps + 1, agents), np.int64)
    chosen = np.zeros((episodes, steps + 1, agents), np.int32)
    reward = np.zeros((episodes, steps + 1), np.float32)
    for i, ring in enumerate(problem):
        place[:, 0, i] = _draw(random, np.broadcast_to(ring.start, (episodes, exact.NUM_PLACES)))
        for t in range(steps):
            chosen[:, t, i] = _draw(random, ring.behaviour[place[:, t, i]])
            place[:, t + 1, i] = _draw(random, ring.transition[place[:, t, i], chosen[:, t, i]])
        reward[:, :steps] += ring.reward[place[:, :steps, i]].astype(np.float32)
    rows = episodes * (steps + 1)
    obs = np.eye(exact.NUM_PLACES, dtype=np.float32)[place.reshape(rows, agents)]
    discrete = problem[0].actions is None
    action, action_dim = chosen, problem[0].behaviour.shape[1]
    if not discrete:
        action, action_dim = problem[0].actions.astype(np.float32)[chosen][..., None], 1
        action[:, -1] = 0
    spec = omcda_jax.EnvSpec(agents, exact.NUM_PLACES, agents * exact.NUM_PLACES, action_dim, discrete)
    return spec, data.Episodes(
        obs=obs,
        global_state=obs.reshape(rows, -1),
        avail=np.ones((rows, agents, action_dim), bool),
        action=action.reshape(rows, *action.shape[2:]),
        reward=reward.reshape(rows),
        length=np.full(episodes, steps, np.int32),
        terminated=np.zeros(episodes, bool),
        won=np.zeros(episodes, bool),
    )


def _draw(random: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    """One index per row of [E, K] probabilities."""
    return (random.random((len(probabilities), 1)) > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)


def policy_table(state: omcda_jax.TrainState, actions: np.ndarray | None = None) -> np.ndarray:
    """The policies that act at every place; continuous policies in cells around `actions`: [N, P, A]."""
    spec = state.spec
    obs = jnp.broadcast_to(jnp.eye(spec.obs_dim)[:, None], (spec.obs_dim, spec.num_agents, spec.obs_dim))
    avail = jnp.ones((*obs.shape[:-1], spec.action_dim), bool)
    network = networks.policy_network(spec, state.config.hidden_sizes)
    policy = networks.action_distribution(network, state.target_params["policy"], obs, avail)
    if spec.discrete:
        log_probs = policy.log_probs
    else:
        cells = jnp.broadcast_to(jnp.asarray(actions, obs.dtype)[:, None, None, None], (len(actions), *avail.shape))
        log_probs = jnp.moveaxis(jax.nn.log_softmax(policy.log_prob(cells), axis=0), 0, -1)
    return np.asarray(jnp.exp(log_probs), np.float64).transpose(1, 0, 2)


def train(
    problem: list[exact.Ring],
    dataset: data.Dataset,
    config: omcda_jax.OmcdaConfig,
    *,
    updates: int,
    batch_size: int,
    seed: int = 0,
    log: Callable[[str], None] | None = None,
) -> Learned:
    """Run `updates` updates of OMCDA in forty calls of one scan, and evaluate the result; `log` gets the progress."""

    # optimised even if the caller, for instance a test, compiles quickly
    @functools.partial(
        jax.jit, static_argnames="count", donate_argnums=0, compiler_options={"xla_backend_optimization_level": 2}
    )
    def run(state, dataset, count):
        def step(state, _):
            batch = data.sample(dataset, jax.random.fold_in(jax.random.key(seed), state.step), batch_size)
            return omcda_jax.update(state, batch)

        state, metrics = jax.lax.scan(step, state, length=count)
        return state, jax.tree.map(lambda x: x.mean(axis=0), metrics)

    state = omcda_jax.init(jax.random.key(seed), dataset.spec, config)
    calls = 40
    tables, history = [], []
    for call in range(calls):
        if call == 1:
            started = time.perf_counter()
        state, metrics = run(state, dataset, updates // calls)
        if call >= calls - calls // 4:
            tables.append(policy_table(state, problem[0].actions))
            history.append(jax.device_get(metrics))
        if log is not None and call % 10 == 9:
            table = policy_table(state, problem[0].actions)
            value = sum(exact.true_value(r, p) for r, p in zip(problem, table, strict=True))
            log(f"  {int(state.step)} updates: value {value:.2f}")
    rate = (calls - 1) * (updates // calls) / (time.perf_counter() - started)
    value = [[exact.true_value(r, p) for r, p in zip(problem, table, strict=True)] for table in tables]
    divergence = [
        [exact.divergence(r, p) @ exact.data_occupancy(r) for r, p in zip(problem, table, strict=True)]
        for table in tables
    ]

    def mean(key):
        return np.mean([metrics[f"allocation/{key}"] for metrics in history], axis=0)

    return Learned(
        np.mean(value, axis=0), mean("alpha"), mean("influence"), mean("budget"), np.mean(divergence, axis=0), rate
    )


def settings(rule: str, updates: int, value_target: str = "expectation", **changes) -> omcda_jax.OmcdaConfig:
    """The probe's configuration: small networks, fast target networks, identity deviation mixing."""
    base = dict(
        d_tot=exact.TOTAL_BUDGET,
        d_min=0.006,
        allocation=rule,
        step_size=0.01,
        value_target=value_target,
        conservative_mixing="identity",
        critic_warmup=updates // 8,
        gamma=exact.DISCOUNT,
        learning_rate=1e-3,
        target_rate=0.02,
        hidden_sizes=(64, 64),
        mixer_hidden=16,
    )
    return omcda_jax.OmcdaConfig(**{**base, **changes})


def account(config: omcda_jax.OmcdaConfig, discrete: bool) -> str:
    """The account of spending: by the policy's own divergence, or by that of the weights on the data."""
    weighted = config.extraction == "weighted" or (config.extraction == "auto" and discrete)
    return "batch" if weighted and config.value_target == "expectation" else "mean"


def exact_split(table: exact.Frontier, config: omcda_jax.OmcdaConfig) -> exact.Allocation:
    """The split that the configuration's allocation rule converges to with exact values."""
    agents = len(table.spent)
    if config.allocation == "uniform":
        return exact.at_budget(table, np.full(agents, config.d_tot / agents))
    if config.allocation == "softmax":

        def share(m):
            raw = np.exp(m / np.abs(m).mean() / config.temperature)
            return config.d_min + (config.d_tot - agents * config.d_min) * raw / raw.sum()

        return exact.fixed_point(table, share, config.d_tot)
    return exact.equal_influence(table, config.d_tot, config.d_min)


def _row(name: str, value: np.ndarray, gain: str, *columns: np.ndarray) -> str:
    parts = [f"{name:<28}{value.sum():8.2f}{gain:>9}"]
    parts += ["".join(f"{x:8.3f}" for x in column) for column in columns]
    return " |".join(parts)


def work(values: flags.FlagValues) -> None:
    """Train under every rule and print the table."""
    for rule in values.rules:
        require(rule in RULES, "--rules", f"some of {', '.join(RULES)}", rule)
    problem = PROBLEMS[values.actions]()
    dataset = rollouts(problem, values.episodes)
    behaviour = exact.behaviour_value(problem)
    counted = account(settings("uniform", 8, values.value_target), dataset.spec.discrete)
    print(
        f"{dataset.rows.shape[0]} transitions, behaviour value {behaviour:.2f}, budget counted by the {counted} account"
    )
    print(f"{'':<28}{'value':>8}{'gain':>9} |{'alpha':^32} |{'influence':^32} |{'budget':^32} |{'KL':^32}")
    lines = []
    for rule in values.rules:
        config = settings(
            rule, values.updates, values.value_target, num_samples=values.num_samples, target_rate=values.target_rate
        )
        table = exact.frontier(problem, counted, config.influence_epsilon)
        best = exact_split(table, config)
        learned = train(
            problem, dataset, config, updates=values.updates, batch_size=values.batch_size, seed=values.seed
        )
        gain = (learned.value.sum() - behaviour) / (best.value.sum() - behaviour)
        print(_row(f"{rule}, learned", learned.value, f"{gain:.1%}", *_columns(learned)))
        print(_row(f"{rule}, exact", best.value, "100.0%", *_columns(best)), flush=True)
        lines.append(f"{rule}: {learned.updates_per_second:.0f} updates/s")
    for name, split in (("water-filling", exact.water_filling), ("best split", exact.best_split)):
        for kind in dict.fromkeys(("mean", counted)):
            found = split(exact.frontier(problem, kind, 1e-3))
            print(_row(f"{name}, exact, {kind}", found.value, "", *_columns(found)))
    print("; ".join(lines))


def _columns(result: Learned | exact.Allocation) -> tuple[np.ndarray, ...]:
    return result.alpha, result.influence, result.budget, result.divergence


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv, __doc__, FLAGS, work)))
