# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: -all
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own simulator and your own data
#
# You have logs of a team, and maybe a simulator to evaluate in. Here the team consists of two robots on a line. They
# are rewarded for being close to its middle, and the logs are those of a heuristic that drifts.
#
#     pip install 'omcda-jax[data,report,notebook]'

# %%
import os

import jax
import jax.numpy as jnp
import numpy as np

import omcda_jax
from omcda_jax import Environment, EnvSpec, TimeStep, data, evaluate, learner
from omcda_jax.config import LearnerConfig
from omcda_jax.data.formats import read
from omcda_jax.envs.base import Map, Units
from omcda_jax.runner import dataset_page, page
from omcda_jax.runner.replay import moving, recorded

TINY = "OMCDA_JAX_TINY" in os.environ  # sizes of the tests
EPISODES, UPDATES, PLAYED = (10, 20, 4) if TINY else (500, 2_000, 128)
HALF, LONGEST = 6, 20  # places on either side of the middle, steps of an episode

# %% [markdown]
# ## The simulator
#
# A simulator in JAX is two pure functions, `reset(key)` and `step(key, state, action)`. Each returns the state and a
# `TimeStep`. (A simulator outside JAX is a `HostEnvironment`; an environment of PettingZoo works by its name.) `map` is
# for pictures and may be left out.

# %%
spec = EnvSpec(num_agents=2, obs_dim=2, state_dim=2, action_dim=3, discrete=True)  # left, stay, right


def show(places, reward, end):
    """Return what a step shows."""
    return TimeStep(
        obs=jnp.stack([places, places[::-1]], axis=1) / HALF,  # own place, the other's
        global_state=places / HALF,
        avail=jnp.ones((2, 3), bool),
        reward=reward,
        terminated=end,
        truncated=jnp.zeros((), bool),
        won=end,
    )


def reset(key):
    """Begin an episode."""
    places = jax.random.randint(key, (2,), -HALF, HALF + 1)
    return (places, 0), show(places, jnp.zeros(()), jnp.zeros((), bool))


def step(key, state, action):
    """Take a step of the team."""
    places, time = state
    places = jnp.clip(places + action - 1, -HALF, HALF)
    end = (places == 0).all()
    shown = show(places, -jnp.abs(places).mean() / HALF, end)
    return (places, time + 1), shown.replace(truncated=(time + 1 >= LONGEST) & ~end)


def on_map(places):
    """Return the robots [..., 2] as units on a map."""
    places = np.asarray(places)
    same = np.ones(places.shape)
    rows = np.broadcast_to([0.0, 1.5], places.shape)
    agents = np.broadcast_to(np.arange(2), places.shape)
    return Units(np.stack([places, rows], axis=-1), 0.4 * same, same, 0 * agents, 0 * agents, agents)


picture = Map(("robot",), lambda state: on_map(state[0]), lambda states, actions: on_map(states * HALF))
environment = Environment("line/13", spec, LONGEST, None, {}, reset, step)

# %% [markdown]
# ## The data
#
# Logs become `Episodes`: rows one after the other. An episode of L steps takes L + 1 rows; the last one has the final
# observation, and zeros for action and reward. Here the logs come from a heuristic that drifts to the left. Its most
# frequent action is bad, so a greedy clone of it is bad too.

# %%
random = np.random.default_rng(0)
take = jax.jit(step)


def play(key):
    """Return the rows of an episode of the heuristic."""
    state, now = reset(key)
    rows, ended = [], False
    while not ended:
        toward = 1 - np.sign(np.asarray(state[0]))
        action = np.where(random.random(2) < 0.55, 0, toward)  # it usually drifts to the left
        state, after = take(key, state, action)
        rows.append((now, action, after.reward))
        now, ended = after, bool(after.terminated | after.truncated)
    return [*rows, (now, np.zeros(2), 0.0)]


logs = [play(key) for key in jax.random.split(jax.random.key(0), EPISODES)]
rows = [row for log in logs for row in log]
episodes = data.Episodes(
    obs=np.array([now.obs for now, _, _ in rows], np.float32),
    global_state=np.array([now.global_state for now, _, _ in rows], np.float32),
    avail=np.ones((len(rows), 2, 3), bool),
    action=np.array([action for _, action, _ in rows], np.int32),
    reward=np.array([reward for _, _, reward in rows], np.float32),
    length=np.array([len(log) - 1 for log in logs], np.int32),
    terminated=np.array([log[-1][0].terminated for log in logs]),
    won=np.array([log[-1][0].won for log in logs]),
)
data.write("line.h5", spec, episodes, {"environment": environment.name, "quality": "drift"})
data.statistics(episodes)

# %% [markdown]
# `write` checks the data: one line names a wrong shape, a missing final row or an illegal action. The next cell makes
# a page with figures and episodes (`omcda-jax data card line.h5 --html=line.html` makes it too, without the map):

# %%
made = dataset_page.of_dataset("line.h5", read("line.h5"))
page.write(".", made, "line.html")

# %%
seen = recorded(episodes, 0, picture)
moving(picture, seen.units, seen.reward)

# %% [markdown]
# ## Train and evaluate
#
# The defaults suit returns of a few units to a few dozen. In the first half of the updates the policy clones the
# behaviour while the critics learn its values.

# %%
dataset, _ = data.load("line.h5")
plan = LearnerConfig(updates=UPDATES, updates_per_call=UPDATES // 20, batch_size=64)


def train(config):
    """Return the state after all updates, and the last metrics."""
    algorithm, layout = omcda_jax.ALGORITHMS[config.name], learner.Layout((jax.devices()[0],))
    one_call = learner.make_train_step(algorithm, data.sample, plan.batch_size, plan.updates_per_call, layout)
    start = layout.place(learner.initial_state(algorithm, 0, spec, config))
    for _, state, report in learner.train(one_call, start, layout.place_dataset(dataset), plan, layout=layout):
        pass
    return layout.collect(state), report.metrics


configs = [
    omcda_jax.BcConfig(hidden_sizes=(64, 64)),
    omcda_jax.OmcdaConfig(d_tot=1.8, critic_warmup=UPDATES // 2, hidden_sizes=(64, 64), gamma=0.9),
]
states, metrics = {}, {}
for config in configs:
    states[config.name], metrics[config.name] = train(config)
print("budgets of the two robots, nats per step:", metrics["omcda"]["allocation/budget"])

# %%
results = {}
for name, state in states.items():
    evaluated = evaluate.make_evaluate(omcda_jax.act, environment, PLAYED)(state, jax.random.key(1))
    results[name] = evaluate.summarise(evaluated)
    print(f"{name:<6} return {results[name]['return_mean']:.3f} ± {results[name]['return_se']:.3f}")
print(f"logs   return {data.returns(episodes).mean():.3f}")

# %% [markdown]
# ## Go on
#
# Put the simulator into a file `line.py` with a function `make(scenario)` that returns the `Environment`. The command
# line then does all of this, resumes after a stop and writes reports:
#
#     omcda-jax run --config=smac_3m --config.data.environment=line/13 --config.data.path=line.h5 \
#         --config.data.quality=drift --config.data.reward_scale=1 --workdir=runs/line
#     omcda-jax watch runs/line
#
# `experiments/examples/environment_in_jax.py` is such a file; `own_algorithm.py` beside it is an algorithm of your own.
