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
# # A team from a dataset, in five minutes
#
# Three marines fight three others in SMAX. We take a dataset of a medium team, clone it, let OMCDA deviate from it
# where that pays most, and compare the two. This runs on a CPU: `pip install 'omcda-jax[smax,report,export,notebook]'`.

# %%
import os

import jax
import numpy as np
import plotly.graph_objects as go

import omcda_jax
from omcda_jax import data, envs, evaluate, learner
from omcda_jax.config import LearnerConfig
from omcda_jax.runner import dataset_figures
from omcda_jax.runner.presets import resolve
from omcda_jax.runner.replay import moving

TINY = "OMCDA_JAX_TINY" in os.environ  # sizes of the tests
EPISODES, UPDATES, PLAYED = (8, 20, 4) if TINY else (500, 4_000, 128)

# %% [markdown]
# ## The data
#
# The behaviour policies that collect datasets come with the package. The file is made once. A file of your own, or one
# of OG-MARL, OMIGA, CFCQL and others, is read the same way.

# %%
path = data.ensure("smax/3m", "medium", episodes=EPISODES)
spec, episodes, about = data.read(path)
print(about["description"])
data.statistics(episodes)

# %% [markdown]
# Returns have two peaks: won battles, which return 2, and lost battles.
# `omcda-jax data card FILE --html=card.html` makes a whole page of a dataset.

# %%
dataset_figures.histogram(data.returns(episodes), "return", "episodes")

# %%
dataset_figures.order(data.returns(episodes), "return")

# %% [markdown]
# ## Two algorithms
#
# The settings are those of the preset `smac_3m`, with half as many updates. First OMCDA's critics learn from the data's
# own returns while the policy clones. After `critic_warmup` updates the policy may deviate, by `d_tot` nats per step
# for the team.

# %%
warmup = [f"algorithm.priming={UPDATES // 2}", f"algorithm.critic_warmup={UPDATES // 2}"]
settings = {
    "bc": resolve("smac_3m", ["algorithm.name=bc"]).algorithm,
    "omcda": resolve("smac_3m", warmup).algorithm,
}
dataset = data.from_arrays(spec, episodes, reward_scale=10.0)
dataset = data.returns_to_go(dataset, [settings["omcda"].gamma])
settings["omcda"]


# %%
def train(config):
    """Return the state after all updates, and a row of metrics for every call of 1 % of them."""
    plan = LearnerConfig(updates=UPDATES, updates_per_call=UPDATES // (2 if TINY else 100))
    algorithm, layout = omcda_jax.ALGORITHMS[config.name], learner.Layout((jax.devices()[0],))
    step = learner.make_train_step(algorithm, data.sample, plan.batch_size, plan.updates_per_call, layout)
    start = layout.place(learner.initial_state(algorithm, 0, spec, config))
    rows = []
    for done, state, report in learner.train(step, start, layout.place_dataset(dataset), plan, layout=layout):
        rows.append({"updates": done} | report.metrics)
    return layout.collect(state), rows


# %%
states, metrics = {}, {}
for name, config in settings.items():
    states[name], metrics[name] = train(config)
    print(name, "policy/loss", metrics[name][-1]["policy/loss"])

# %% [markdown]
# ## Who may deviate
#
# Influence is the return that the team gains from one nat of an agent's deviation. It decides how the budget is shared:
# watch both.


# %%
def curves(key, title):
    """Return a figure of a metric of every agent over OMCDA's training."""
    values = np.stack([row[key] for row in metrics["omcda"]])
    updates = [row["updates"] for row in metrics["omcda"]]
    lines = [go.Scatter(x=updates, y=values[:, agent], name=f"agent {agent}") for agent in range(spec.num_agents)]
    return go.Figure(lines, {"xaxis": {"title": "updates"}, "yaxis": {"title": title}, "height": 320})


# %%
curves("allocation/influence", "influence, scaled reward per nat")

# %%
curves("allocation/budget", "budget, nats per step")

# %% [markdown]
# ## Which is better
#
# Both policies play greedy episodes from the same starts; the first line is the data.

# %%
environment = envs.make("smax/3m")
play = {name: evaluate.make_evaluate(omcda_jax.ALGORITHMS[name].act, environment, PLAYED) for name in states}
results = {name: evaluate.summarise(play[name](state, jax.random.key(1))) for name, state in states.items()}
print(f"{'data':<6} return {about['statistics']['return_mean']:.3f}, won {about['statistics']['win_rate']:.0%}")
for name, result in results.items():
    print(f"{name:<6} return {result['return_mean']:.3f} ± {result['return_se']:.3f}, won {result['win_rate']:.0%}")

# %% [markdown]
# One seed and two minutes say little; `omcda-jax compare --tasks=smac_3m --algorithms=bc,omcda --seeds=0,1,2` says
# more.
#
# ## A battle
#
# Press play. `omcda-jax watch RUN` makes a page of several episodes, beside those of the behaviour policy.

# %%
act = evaluate.greedily(omcda_jax.act)
(battle,) = evaluate.watch(act, environment, states["omcda"], seed=1, episodes=PLAYED)
moving(environment.map, battle.units, battle.reward)

# %% [markdown]
# ## Take the policy along
#
# A saved policy needs this package; an exported policy needs only JAX.

# %%
import shutil

from omcda_jax.checkpoint import load_policy, save_policy

actor = omcda_jax.policy(states["omcda"])
shutil.rmtree("tutorial_policy", ignore_errors=True)  # of an earlier run, which saving does not replace
save_policy("tutorial_policy", actor)
program = omcda_jax.export(actor).serialize()
print(f"{len(program) / 1e3:.0f} kB")

# %%
_, now = environment.reset(jax.random.key(2))
obs, avail = now.obs[None], now.avail[None]  # one team
chosen = {
    "state": omcda_jax.act(states["omcda"], obs, avail),
    "saved": omcda_jax.act(load_policy("tutorial_policy"), obs, avail),
    "exported": jax.export.deserialize(program).call(obs, avail),
}
{name: action.tolist() for name, action in chosen.items()}

# %% [markdown]
# Next: [your own simulator and your own data](own_data.ipynb), and [the book](../../docs/index.md).
