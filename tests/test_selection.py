"""Offline selection: estimates against exact answers, and a trial chosen by the data alone."""

import concurrent.futures
import functools
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from test_against_reference import local_network, members, return_mixer
from test_algorithms import CASES, make_batch

import omcda_jax
from benchmarks import exact, probe, toy
from benchmarks import selection as study
from benchmarks.rows import put, read
from omcda_jax import data, envs, selection
from omcda_jax.algorithms import bc
from omcda_jax.checkpoint import load_policy
from omcda_jax.learner import make_train_step
from omcda_jax.runner import datasets, select
from omcda_jax.runner import run as runner
from omcda_jax.runner.jobs import Job, Saved
from omcda_jax.runner.presets import resolve
from omcda_jax.types import Actor, ConfigError

GAMMA = 0.7
PROBLEMS = {"discrete": exact.rings, "continuous": exact.leaning_rings}
HOMEWARD = np.array([0, -1, -1, -1, -1, 1, 1, 1])  # the way to place 0, from every place


def table_policy(spec, problem):
    """The actor that walks home to place 0, and its action probabilities [P, A] by place."""
    discrete, inputs = spec.discrete, spec.obs_dim + spec.num_agents
    if discrete:
        chosen = HOMEWARD + 1
        outputs = 10.0 * np.eye(3)[chosen]
    else:
        chosen = np.searchsorted(problem[0].actions, 0.6 * HOMEWARD)
        outputs = np.stack([np.arctanh(problem[0].actions[chosen]), np.full(exact.NUM_PLACES, -1.0)], axis=1)
    kernel = np.concatenate([outputs, np.zeros((spec.num_agents, outputs.shape[1]))])
    layers = {
        "Dense_0": {"kernel": np.eye(inputs), "bias": np.zeros(inputs)},
        "Dense_1": {"kernel": kernel, "bias": np.zeros(outputs.shape[1])},
    }
    params = {"policy": {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), layers)}}
    config = jax.tree.map(jnp.float32, bc.BcConfig(hidden_sizes=(inputs,)))
    return Actor(params, config, spec), np.eye(problem[0].behaviour.shape[1])[chosen]


@pytest.mark.parametrize("kind", PROBLEMS)
def test_fitted_q_evaluation_agrees_with_dynamic_programming(kind):
    """The data come from another policy, with less than half of the judged policy's value."""
    problem = PROBLEMS[kind](gamma=GAMMA, scales=(1.0, 0.5))
    dataset = data.returns_to_go(probe.rollouts(problem, episodes=600), [GAMMA])
    actor, policy = table_policy(dataset.spec, problem)
    settings = selection.FqeConfig(
        gamma=GAMMA, learning_rate=3e-3, target_rate=0.05, hidden_sizes=(64,), mixer_hidden=4, priming=50
    )
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), selection.init(jax.random.key(0), actor, settings))
    state, report = make_train_step(selection.FQE, data.sample, 128, 1000)(state, jax.device_put(dataset))
    assert not report.skipped.any()
    batch = data.gather(dataset, np.asarray(dataset.rows)[:: exact.EPISODE_STEPS])
    place = np.asarray(batch.obs).argmax(axis=-1)
    worth = lambda tables: sum(
        exact.evaluate(ring, table)[place[:, i]] for i, (ring, table) in enumerate(zip(problem, tables, strict=True))
    )
    expected, behaviour = worth([policy] * len(problem)), worth([ring.behaviour for ring in problem])
    assert behaviour.mean() < 0.5 * expected.mean()
    found = np.asarray(jax.jit(selection.value)(state, batch))
    assert found.mean() == pytest.approx(expected.mean(), rel=0.04)
    assert np.abs(found - expected).mean() < 0.06 * expected.mean()


def test_the_regression_starts_from_the_returns_to_go():
    batch = make_batch(0)
    near, far = (batch.replace(return_to_go=np.full_like(batch.reward, value)) for value in (0.0, 1000.0))
    state = selection.init(jax.random.key(0), fresh("bc")[1], selection.FqeConfig(hidden_sizes=(8,), priming=1))
    update = jax.jit(selection.update)
    primed, error = update(state, far)
    assert error["fqe/td"] > 500_000.0 > 5.0 > update(state, near)[1]["fqe/td"]
    assert update(primed, near)[1]["fqe/td"] == update(primed, far)[1]["fqe/td"], "only for one update"


def fresh(name):
    config, spec = CASES[name]
    state = omcda_jax.init(jax.random.key(0), spec, config)
    return state, omcda_jax.policy(state), spec


@pytest.mark.quick
@pytest.mark.parametrize("name", CASES)
def test_every_algorithm_can_be_judged(name):
    """Only traced: what each estimate returns, and which algorithms lack which estimates."""
    config, spec = CASES[name]
    batch = make_batch(0, spec=spec)
    rows = batch.reward.shape[0]

    def estimates(key):
        trained = omcda_jax.init(key, spec, config)
        policy = omcda_jax.policy(trained)
        state = selection.init(key, policy, selection.FqeConfig(hidden_sizes=(8,)))
        state, metrics = selection.update(state, batch)
        found = [selection.value(state, batch)]
        if selection.has_critic(trained):
            found.append(selection.critic_value(trained, batch))
        clone = omcda_jax.policy(omcda_jax.init(key, spec, bc.BcConfig(hidden_sizes=(8,))))
        assert selection.departs(policy, clone, batch).shape == (rows, spec.num_agents)
        if selection.has_density(policy):
            found += list(selection.terms(state, clone, batch, jax.random.split(key, rows)))
        return found, metrics

    found, metrics = jax.eval_shape(estimates, jax.random.key(0))
    assert {value.shape for value in found} == {(rows,)}
    assert set(metrics) == {"fqe/td", "fqe/q", "gradient/critic"}
    lacking = (name.startswith("bc-") or name == "bc") + 3 * (name in ("bcq-continuous", "omar-continuous"))
    assert len(found) == 5 - lacking


def test_of_twin_critics_the_smaller_team_value_counts():
    state, _, spec = fresh("omcda")
    batch = make_batch(0)
    judge = jax.jit(selection.critic_value)
    one = lambda e: state.replace(
        target_params=state.target_params
        | {"return": jax.tree.map(lambda x: x[e : e + 1], state.target_params["return"])}
    )
    each = np.stack([judge(one(e), batch) for e in (0, 1)])
    assert (each[0] < each[1]).any() and (each[0] > each[1]).any()
    np.testing.assert_allclose(judge(state, batch), each.min(axis=0), rtol=1e-5)


def scaled_by(random, spec):
    factor = lambda *shape: random.uniform(0.5, 2.0, shape).astype(np.float32)
    agents, obs, size = spec.num_agents, spec.obs_dim, spec.state_dim
    return omcda_jax.Normaliser(factor(agents, obs), factor(agents, obs), factor(size), factor(size))


def test_estimates_of_raw_batches_agree_with_numpy(random):
    """The critic is fitted on the judged policy's inputs; the clone has its own scale. Targets use target networks."""
    (one, _, spec), (other, _, _), (trained, _, _) = fresh("bc"), fresh("bc"), fresh("omcda")
    wider = lambda tree, by=3.0: jax.tree.map(lambda x: by * x, tree)
    policy, clone = (
        omcda_jax.policy(
            state.replace(target_params=wider(state.target_params, by), normaliser=scaled_by(random, spec))
        )
        for state, by in ((one, 3.0), (other, -2.0))
    )
    state, barred = (
        selection.init(jax.random.key(seed), policy, selection.FqeConfig(hidden_sizes=(8,))) for seed in (1, 2)
    )
    state = state.replace(params=wider(state.params), target_params=wider(barred.target_params))
    batch = make_batch(3)

    @jax.jit
    def judge(state, trained, batch):
        found = selection.terms(state, clone, batch, jax.random.split(jax.random.key(0), 24))
        _, metrics = selection.update(state, batch)
        values = selection.value(state, batch), selection.critic_value(trained, batch)
        return found, *values, metrics["fqe/td"], selection.departs(policy, clone, batch)

    targets = omcda_jax.init(jax.random.key(4), spec, CASES["omcda"][0]).target_params
    trained = trained.replace(target_params=wider(targets), normaliser=policy.normaliser)
    found, value, by_critic, error, departs = judge(state, trained, batch)

    obs = lambda actor, obs: (obs - actor.normaliser.obs_shift) * actor.normaliser.obs_factor
    scale = policy.normaliser
    places = [
        (place - scale.global_state_shift) * scale.global_state_factor
        for place in (batch.global_state, batch.next_global_state)
    ]
    log_probs = lambda actor, at, avail: reference.masked_log_probabilities(
        local_network(actor.params["policy"], obs(actor, at)), avail
    )
    pi, b = (log_probs(actor, batch.obs, batch.avail) for actor in (policy, clone))
    critic, now, then = state.target_params["critic"], obs(policy, batch.obs), obs(policy, batch.next_obs)
    q = local_network(critic["local"], now)
    team = lambda critic, local, at=0: reference.mix_return(local, *return_mixer(critic["mixer"], places[at]))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    close(found.action_value, team(critic, reference.take(q, batch.action)))
    close(found.state_value, team(critic, reference.expectation(pi, q)))
    close(found.log_ratio, (reference.take(pi, batch.action) - reference.take(b, batch.action)).sum(axis=-1))
    close(value, team(critic, reference.take(q, pi.argmax(axis=-1))))
    rare = b.max(axis=-1) - reference.take(b, pi.argmax(axis=-1)) > np.log(5)
    choice = np.asarray(batch.avail).sum(axis=-1) > 1
    assert 0 < rare[choice].sum() < choice.sum()
    np.testing.assert_array_equal(departs, np.where(choice, rare, np.nan))

    next_action = log_probs(policy, batch.next_obs, batch.next_avail).argmax(axis=-1)
    next_value = team(critic, reference.take(local_network(critic["local"], then), next_action), at=1)
    target = reference.return_target(batch.reward, batch.discount, 0.99, next_value)
    newest = state.params["critic"]
    q_tot = team(newest, reference.take(local_network(newest["local"], now), batch.action))
    close(error, np.square(q_tot - target).mean())

    acts = reference.masked_log_probabilities(local_network(trained.target_params["policy"], now), batch.avail)
    chosen = [
        team(one, reference.take(local_network(one["local"], now), acts.argmax(axis=-1)))
        for one in members(trained.target_params["return"])
    ]
    close(by_critic, np.min(chosen, axis=0))


def walk(random, episodes):
    """Two steps between two places: action a leads to place a four times of five, and pays 1 if it names the place.

    A step to place 1 by the first action ends the episode. After the second step the time limit ends it, and from
    there on place s is worth s.
    """
    behaviour, policy = np.array([[0.6, 0.4], [0.5, 0.5]]), np.array([[0.2, 0.8], [0.3, 0.7]])
    place = np.zeros((episodes, 3), int)
    ratio, reward, action = (np.zeros((episodes, 2)) for _ in range(3))
    action = action.astype(int)
    for t in range(2):
        here = place[:, t]
        action[:, t] = random.random(episodes) < behaviour[here, 1]
        reward[:, t] = action[:, t] == here
        ratio[:, t] = np.log(policy[here, action[:, t]] / behaviour[here, action[:, t]])
        place[:, t + 1] = np.where(random.random(episodes) < 0.8, action[:, t], 1 - action[:, t])
    length = np.where(place[:, 1] == 1, 1, 2)
    return ratio, reward, action, place, length, policy


def exact_walk(policy, gamma):
    """Backwards: the value of the second step, at place 0, and of the first."""
    after = lambda worth: np.array([[0.8, 0.2], [0.2, 0.8]]) @ worth  # by action
    second = policy[0] @ (np.array([1.0, 0.0]) + gamma * after(np.array([0.0, 1.0])))
    return policy[0] @ (np.array([1.0, 0.0]) + gamma * after(np.array([second, 0.0])))


def judged(walked, guess, gamma):
    """The estimate with a control variate that is right only in its form: V = E_pi Q."""
    ratio, reward, action, place, length, policy = walked
    table = guess * np.array([[1.0, 3.0], [-2.0, 0.5]])
    q = table[place[:, :2], action]
    values = (policy * table).sum(axis=1)[place]
    end = np.arange(len(length))
    values[end, length] = np.where(length == 2, place[:, 2], 0.0)
    return selection.doubly_robust(ratio, reward - q, values, length, gamma)


@pytest.mark.quick
@pytest.mark.parametrize("guess", [0.0, 1.0])
def test_doubly_robust_is_right_whatever_the_fitted_critic_says(guess, random):
    gamma, walked = 0.9, walk(random, 40_000)
    parts, share = judged(walked, guess, gamma)
    expected, error = exact_walk(walked[-1], gamma), parts.std() / len(parts) ** 0.5
    assert abs(parts.mean() - expected) < 4 * error < 0.1
    steps = np.arange(2) < walked[4][:, None]
    recorded = (walked[1] * steps) @ gamma ** np.arange(2) + gamma**2 * (walked[4] == 2) * walked[3][:, 2]
    assert abs(recorded.mean() - expected) > 0.1, "the data's own returns are another policy's"
    assert 0.2 < share < 1.0


@pytest.mark.quick
def test_doubly_robust_is_the_weighted_sum_of_its_definition(random):
    ratio, value = random.normal(size=(7, 3)), random.normal(size=(7, 4))
    surprise, length, gamma = random.normal(size=(7, 3)), np.array([3, 3, 1, 2, 3, 1, 2]), 0.9
    parts, share = selection.doubly_robust(ratio, surprise, value, length, gamma)
    total = 0.0
    before = np.full(7, 1 / 7)
    least = 1.0
    for t in range(4):
        total += gamma**t * (before * value[:, t])[t <= length].sum()
        if t < 3:
            path = np.array([ratio[e, : min(t + 1, length[e])].sum() for e in range(7)])
            before = np.exp(path) / np.exp(path).sum()
            total += gamma**t * (before * surprise[:, t])[t < length].sum()
            least = min(least, 1 / np.square(before).sum() / 7)
    assert parts.mean() == pytest.approx(total, rel=1e-12)
    assert share == pytest.approx(least, rel=1e-12)


@pytest.mark.quick
def test_a_policy_that_never_acts_as_the_data_has_no_doubly_robust_figure():
    ratio = np.array([[-1e9, 0.0], [0.0, -1e9]])
    parts, share = selection.doubly_robust(ratio, np.ones((2, 2)), np.ones((2, 3)), np.array([2, 2]), 0.9)
    assert np.isnan(parts).all() and share == 0.0
    _, share = selection.doubly_robust(ratio[[1, 0]][:, :1], np.ones((2, 1)), np.ones((2, 2)), np.array([1, 1]), 0.9)
    assert share == 0.5, "all weight on one of the two episodes"


@pytest.mark.quick
def test_a_comparison_is_paired_over_episodes(random):
    episodes = 10.0 * random.normal(size=20)
    values = np.stack([episodes, episodes + 0.1, episodes + 0.1, np.full(20, np.nan)])[:, None]
    found = selection.compare(values)
    np.testing.assert_allclose(found.best, [0.0, 0.5, 0.5, 0.0])
    assert found.chosen == 1
    assert found.low[0] < found.value[0] < found.high[0] and np.isnan(found.value[3])
    assert found.high[0] - found.low[0] > 4.0, "single values are far less certain than differences"
    assert selection.compare(np.full((2, 1, 3), np.nan)).chosen is None


@pytest.mark.quick
def test_fits_that_disagree_make_a_comparison_uncertain():
    values = np.broadcast_to(np.array([[0.0, 3.0], [1.0, 1.0]])[..., None], (2, 2, 5))
    found = selection.compare(values)
    assert found.chosen == 0
    assert found.best == pytest.approx([0.5, 0.5], abs=0.05)


def write_mixed_play(path, count=60):
    """Both agents play all actions at random, the paid action most often."""
    random = np.random.default_rng(0)
    episodes = toy.episodes(count)
    playing = np.arange(len(episodes.reward)) % (toy.LENGTH + 1) < toy.LENGTH
    action = np.where(playing[:, None], random.choice(3, p=[0.2, 0.6, 0.2], size=(len(playing), 2)), 0)
    reward = 0.25 * (action == 1).sum(axis=1) * playing
    episodes = episodes._replace(action=action.astype(np.int32), reward=reward.astype(np.float32))
    data.write(path, toy.SPEC, episodes, {"environment": "smax/toy", "quality": "medium", "versions": toy.VERSIONS})


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A run on the toy, with critics fitted in a few hundred updates; returns the exit status."""
    monkeypatch.setattr(envs, "make", lambda name: toy.environment())
    monkeypatch.setattr(
        select,
        "fqe_settings",
        lambda config, gamma, updates: selection.FqeConfig(
            gamma=gamma, hidden_sizes=(16,), mixer_hidden=4, learning_rate=0.01, target_rate=0.1, priming=100
        ),
    )
    monkeypatch.chdir(tmp_path)
    write_mixed_play("data.h5")
    return lambda *more: runner.main(["run.py", *toy.arguments("data.h5", *more)])


GAMMA_ONE = ("--config.algorithm.gamma=1", "--select=fqe")
TRIALS = (
    "--config.learner.mode=trials",
    "--config.learner.trials=algorithm.learning_rate=1e-9,0.01",
    "--config.algorithm.policy_average_rate=1",
)
DIRECTORY = Path("runs/smac_3m/medium/bc/trials")


def read_selection():
    return json.loads((DIRECTORY / "selection.json").read_text())


def test_the_trial_that_learnt_is_chosen_among_two(run, capsys):
    quick = "--config.evaluation.episodes=1"
    assert run(*TRIALS, quick, "--select=fqe", "--select_updates=400") == 0
    out = capsys.readouterr().out
    found = read_selection()
    assert (found["by"], found["chosen"], found["held_out_episodes"], found["episodes"]) == ("fqe", 1, 12, 60)
    assert "selection by fqe, on 12 of 60 episodes" in out
    assert "take algorithm.learning_rate=0.01: the best with probability 1.00 by fqe" in out
    returns = [
        one["evaluation"]["return_mean"] for one in json.loads((DIRECTORY / "result.json").read_text())["trials"]
    ]
    assert returns[1] == 2.0 > returns[0]
    # worth 2 undiscounted; the data pay .25 x .6 x 2 x 4 = 1.2 on average
    values = [one["fqe"]["value"] for one in found["trials"]]
    assert values[1] == pytest.approx(1.97, abs=0.15) and values[0] < 1.6
    held_out = data.split(data.load("data.h5")[0], select.HELD_OUT)[1]
    rewards = np.asarray(held_out.reward)[held_out.rows].reshape(12, toy.LENGTH)
    assert found["recorded"] == pytest.approx((rewards @ 0.99 ** np.arange(toy.LENGTH)).mean(), rel=1e-5)
    assert "as recorded" in select.table(found)
    cut = select.table(found | {"recorded": None, "largest_return_to_go": None}).splitlines()
    assert any(line.startswith("data") and "-  " in line and "cut by the time limit" in line for line in cut)
    actor = load_policy(DIRECTORY / "selected")
    played = omcda_jax.act(actor, jnp.zeros((2, 3)))
    np.testing.assert_array_equal(played, [1, 1])

    # the same command on the finished run chooses again; another estimate includes the first
    assert run(*TRIALS, quick, "--select=dr", "--select_updates=400") == 0
    again = read_selection()
    assert (again["by"], again["chosen"]) == ("dr", 1)
    assert [one["fqe"] for one in again["trials"]] == [one["fqe"] for one in found["trials"]]
    # the stochastic clone plays as the data do
    judged = again["trials"][1]
    assert judged["effective_share"] > 0.5
    assert judged["dr"]["value"] == pytest.approx(1.3, abs=0.3)
    assert "effective episodes" in capsys.readouterr().out

    rows = study.read_finished(DIRECTORY, "smac_3m", "dr", 400)
    assert [row["return_mean"] for row in rows] == returns and rows[1]["fqe"] == values[1]
    assert study.read_finished(DIRECTORY, "smac_3m", "dr", 500) is None
    config = json.loads((DIRECTORY / "result.json").read_text())["config"]
    assert study.read_finished(DIRECTORY, "smac_3m", "dr", 400, None, config) == rows
    other = config | {"learner": config["learner"] | {"trials": "seed=5..8"}}
    assert study.read_finished(DIRECTORY, "smac_3m", "dr", 400, None, other) is None
    assert "| smac_3m | fqe | 2 | 1.00 | learning_rate=0.01 | 2.00 | 2.00 | 0.00 | 0% | 50% |" in study.lines(rows)

    shutil.move("data.h5", "other.h5")
    write_mixed_play("data.h5", count=30)
    assert run(*TRIALS, quick, "--select=fqe", "--select_updates=400") == os.EX_CONFIG
    assert "data.h5: expected the data that" in capsys.readouterr().err
    assert read_selection() == again


def test_a_trial_that_leaves_the_data_has_no_estimate(run, monkeypatch, capsys):
    """The data play the paid action three times as often as each other one, which the untrained trial plays."""
    monkeypatch.setattr(selection, "LEAST_LIKELY", 0.5)
    words = (*TRIALS, "--config.evaluation.episodes=1", "--select=dr", "--select_updates=400")
    assert run(*words) == 0
    untrained, learnt = read_selection()["trials"]
    assert untrained["departure"] > selection.LARGEST_DEPARTURE and learnt["departure"] == 0.0
    assert untrained["fqe"]["value"] is untrained["dr"]["value"] is None
    assert (untrained["fqe"]["best"], learnt["fqe"]["best"]) == (0.0, 1.0)
    out = capsys.readouterr().out
    assert "departure" in out and "no estimate: more than 2% of the actions leave the data" in out

    monkeypatch.setattr(selection, "LEAST_LIKELY", 1.01)
    assert run(*words) == 0
    assert read_selection()["chosen"] is None and not (DIRECTORY / "selected").exists()
    out = capsys.readouterr().out
    assert out.count("no estimate: more than 2%") == 2 and "take none: no trial has an estimate" in out


@pytest.mark.quick
@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_policy_leaves_the_data_where_its_action_is_rare(kind):
    """Both policies walk home; where they disagree, the other's likeliest action is e^10 or many deviations away."""
    problem = PROBLEMS[kind](gamma=GAMMA, scales=(1.0, 0.5))
    dataset = probe.rollouts(problem, episodes=8)
    actor, _ = table_policy(dataset.spec, problem)
    batch = data.gather(dataset, np.asarray(dataset.rows))
    judge = jax.jit(selection.departs)
    np.testing.assert_array_equal(judge(actor, actor, batch), 0.0)
    layers = actor.params["policy"]["params"]
    moved = layers["Dense_1"]["kernel"].at[3].set(layers["Dense_1"]["kernel"][7])  # at place 3 the other way round
    other = actor.replace(
        params={"policy": {"params": layers | {"Dense_1": {"kernel": moved, "bias": layers["Dense_1"]["bias"]}}}}
    )
    there = np.asarray(batch.obs).argmax(axis=-1) == 3
    assert there.any() and not there.all()
    np.testing.assert_array_equal(judge(other, actor, batch), there)
    nowhere = batch.replace(avail=np.zeros_like(batch.avail))
    assert np.isnan(judge(other, actor, nowhere)).all(), "agents without a choice"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--select=fqe"],
            "--select=fqe: expected --config.learner.mode=trials, because it chooses among trials, found data",
        ),
        (
            [TRIALS[0], "--config.learner.trials=seed=3", "--select=fqe"],
            "expected at least 2 trials to choose among, found 1",
        ),
        (
            [*TRIALS, "--select=fqe", "--num_processes=2", "--process_id=0"],
            "all trials in one process, found --num_pro",
        ),
        ([*TRIALS, "--select=critic"], "--select=critic: expected an algorithm with a critic, found bc; --select=fqe"),
        (
            [*TRIALS, "--select=fqe", "--select_updates=15"],
            "--select_updates: expected a positive multiple of learner.",
        ),
        ([*TRIALS, "--select=fqe", "--select_updates=0"], "--select_updates: expected a positive multiple of learner."),
        (
            [*TRIALS, "--select=fqe", "--select_gamma=1"],
            "--select_gamma: expected at least 0 and below 1 for --select=fqe, found 1.0",
        ),
        (
            [TRIALS[0], "--config.algorithm.name=omiga", "--config.learner.trials=seed=0..1", *GAMMA_ONE],
            "gamma: expected at least 0 and below 1 for --select=fqe, found 1.0",
        ),
        (
            [*TRIALS, "--config.algorithm.name=omiga", "--select=critic", "--select_gamma=0.9"],
            "--select_gamma: expected none with --select=critic",
        ),
        ([*TRIALS, "--config.data.held_out=1"], "data.held_out: expected at least 0 and below 1, found 1.0"),
        ([*TRIALS, "--select=best"], "select"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_training(run, capsys, more, message):
    assert run(*more) == os.EX_CONFIG
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not DIRECTORY.exists()


@pytest.mark.parametrize("mode", ["device", "host"])
def test_policies_do_not_learn_from_what_is_held_out(run, mode):
    """A run draws from the rows that critics are fitted on, and from none that they are judged on."""
    more = ("--config.data.held_out=0.3", f"--config.data.placement={mode}", "--config.data.normalise=true")
    job, _ = runner.job_of(runner.parse(["run.py", *toy.arguments("data.h5", *TRIALS, *more)]))
    source = datasets.read_if_there(job)
    parts = select.cut(job, Saved(None, {"data": source.metadata}))
    assert len(parts.held_out.rows) == 18 * toy.LENGTH and len(parts.lengths) == 18
    scale = data.normaliser(parts.fitted)
    np.testing.assert_array_equal(source.normaliser.obs_shift, scale.obs_shift)
    with source.opened as dataset_at:
        drawn = dataset_at(0)
    rows = np.asarray(drawn.rows)[: int(drawn.starts[-1])]
    assert len(rows) == len(parts.fitted.rows) == 42 * toy.LENGTH
    own, fitted = np.asarray(drawn.action)[rows], np.asarray(parts.fitted.action)[np.asarray(parts.fitted.rows)]
    np.testing.assert_array_equal(own, fitted)


def test_generated_actions_have_no_density():
    config = resolve("mujoco_hopper_medium", ["algorithm.name=bcq"])
    job = Job([config, config], "nowhere", population=True)
    spec = CASES["bcq-continuous"][1]
    with pytest.raises(ConfigError, match="^--select=dr: expected a policy with action densities, found bcq's"):
        select.check(select.Order("dr", 1000), job, spec)
    select.check(select.Order("fqe", 1000), job, spec)


def test_the_fitted_critic_is_the_tasks():
    config = resolve("mujoco_hopper_medium", ["algorithm.hidden_sizes=32", "algorithm.gamma=0.9"])
    settings = select.fqe_settings(config, 0.95, 10_000)
    assert (settings.hidden_sizes, settings.gamma, settings.priming) == ((32,), 0.95, 2000)
    assert settings.critic_layer_norm and settings.target_rate == 0.01
    # 200 steps of credit in 8,000 updates, and a case that would need more than the largest rate
    assert select.fqe_settings(config, 0.99, 10_000).target_rate == pytest.approx(0.025)
    assert select.fqe_settings(config, 0.999, 10_000).target_rate == select.LARGEST_RATE


@pytest.mark.quick
def test_rank_correlation():
    """1 - 6 sum d^2 / (n (n^2 - 1)) ; ranks differ by 0 1 1 1 1, then by 1 2 0 1 4."""
    assert study.rank_correlation([1, 2, 3, 4, 5], [10, 30, 20, 60, 40]) == pytest.approx(1 - 6 * 4 / 120)
    assert study.rank_correlation([1, 2, 3, 4, 5], [10, 30, 20, 70, 5]) == pytest.approx(1 - 6 * 22 / 120)
    assert study.rank_correlation([1, 2, 2, 4], [1, 3, 3, 9]) == pytest.approx(1.0)
    assert study.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert np.isnan(study.rank_correlation([1, 1], [1, 2]))


@pytest.mark.quick
def test_regret_of_a_choice():
    """The second trial looks best and is worth 3; the best is worth 5 and the worst 1. The mean regret is 2."""
    trials = [("a", 5.0, 1.0), ("b", 3.0, 9.0), ("c", 1.0, None)]
    rows = [
        {"task": "t", "trial": name, "return_mean": true, "fqe": value, "effective_share": 0.02}
        for name, true, value in trials
    ]
    assert study.lines(rows) == [
        "| t | fqe | 2 | -1.00 | b | 3.00 | 5.00 | 2.00 | 50% | 50% |",
        "| t | dr | 0, weights of 2.0% of the episodes at most |",
    ]
    for row, share in zip(rows, (0.3, 0.1, 0.2), strict=True):
        row.update(fqe=None, departure=share)
    why = "at least 10.0% of the actions leave the data"
    assert study.lines(rows) == [f"| t | fqe | 0, {why} |", f"| t | dr | 0, {why} |"]


@pytest.mark.quick
def test_the_measured_rows_are_read():
    rows = read("benchmarks/results/selection.csv", study.COLUMNS)
    assert all(float(row["departure"]) <= selection.LARGEST_DEPARTURE for row in rows if row["fqe"])


@pytest.fixture
def order(tmp_path, monkeypatch):
    """Give the study's command further words; its exit status, and its runs, which are only noted."""
    monkeypatch.chdir(tmp_path)
    runs = []
    monkeypatch.setattr(study, "run_all", lambda children: runs.extend(children) is None)
    study.FLAGS.unparse_flags()
    words = ["selection", "--presets=smac_3m", "--trials=seed=0..1", "--csv=rows.csv"]
    return lambda *more: study.main([*words, *more], study.__doc__, study.FLAGS, study.work), runs


@pytest.mark.quick
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--presets=smac_3m,nope", "--presets: no config 'nope'"),
        ("--presets=smac_3m:nope", "quality: expected one of poor, medium, good, random, found 'nope' of 'smax/3m'"),
        ("--overrides=data.path=none.h5", "none.h5: expected a dataset file, found nothing there"),
        ("--overrides=learner.updtes=1", "learner.updtes: no such key; did you mean 'learner.updates'?"),
        ("--csv=/proc/nope/rows.csv", "expected a folder to write to"),
        ("--csv=others.csv", "others.csv, line 1: expected the columns task,algorithm,"),
    ],
)
def test_a_study_is_checked_before_its_first_run(order, capsys, word, message):
    give, runs = order
    Path("others.csv").write_text("a,b\n1,2\n")
    assert give(word) == 78 and not runs
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.quick
def test_a_run_that_failed_ends_the_study_with_1(order, monkeypatch):
    give, runs = order
    assert give() == 0
    monkeypatch.setattr(study, "run_all", lambda children: False)
    assert give() == 1
    assert [child.log for child in runs] == [Path("runs/selection/smac_3m/omcda/log.txt")]


@pytest.mark.quick
def test_a_task_may_name_another_dataset(order):
    give, runs = order
    assert give("--presets=smac_3m,smac_3m:poor") == 0
    medium, poor = runs
    assert poor.log == Path("runs/selection/smac_3m-poor/omcda/log.txt") != medium.log
    assert set(poor.command) - set(medium.command) == {
        "--config.data.quality=poor",
        "--workdir=runs/selection/smac_3m-poor/omcda",
    }


@pytest.mark.quick
def test_rows_of_other_tasks_stay_in_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    row = lambda task, value: {"task": task, "algorithm": "omcda", "return_mean": value}
    of = lambda row: row["task"]
    put(path, study.COLUMNS, [row("a", 1), row("b", 2)], of)
    put(path, study.COLUMNS, [row("b", 3), row("b", 4)], of)
    read = [line.split(",") for line in path.read_text().splitlines()]
    place = read[0].index("return_mean")
    assert [(line[0], line[place]) for line in read[1:]] == [("a", "1"), ("b", "3"), ("b", "4")]


@pytest.mark.quick
def test_two_writers_lose_no_row(tmp_path):
    path, key = tmp_path / "rows.csv", lambda row: row["task"]
    write = lambda name: [put(path, ("task",), [{"task": f"{name}{number}"}], key) for number in range(10)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(write, "ab"))
    assert len(path.read_text().split()) == 1 + 20
