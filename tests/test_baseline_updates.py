"""The baselines' equations inside their updates, with real networks: closed forms and identities."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from test_against_reference import local_network, members, return_mixer
from test_algorithms import CASES, CONFIGS, CONTINUOUS, SPEC, UPDATE, after, make_batch
from test_continuous_against_reference import divergence, log_density, moments, network, values

import omcda_jax
from omcda_jax import networks
from omcda_jax.algorithms import bcq, cfcql, comadice, cql, icq, normalise, omar, omiga
from omcda_jax.distributions import sample_rows, support_rows, tanh_gaussian
from omcda_jax.networks import backbone
from omcda_jax.training import row_keys

BASELINES = ["bc", "bcq", "cql", "icq", "omar", "omiga", "cfcql", "comadice"]


def with_numbers(state, **numbers):
    return state.replace(config=state.config.replace(**{key: jnp.float32(value) for key, value in numbers.items()}))


def close(got, expected, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), got, expected)


def apart(config, spec):
    """A state with wide outputs, and target networks unrelated to the online networks."""
    state, other = (omcda_jax.init(jax.random.key(seed), spec, config) for seed in (0, 1))
    wider = functools.partial(jax.tree.map, lambda x: 2.0 * x)
    return state.replace(params=wider(state.params), target_params=wider(other.target_params))


def local_value(tree, obs, action):
    """[B, N] values for actions of either kind."""
    if action.ndim == 2:
        return reference.take(local_network(tree, obs), action)
    return network(tree, obs, action)[..., 0]


def team_value(critic, batch, local, later=False):
    return reference.mix_return(
        local, *return_mixer(critic["mixer"], batch.next_global_state if later else batch.global_state)
    )


@pytest.mark.parametrize("name", ["cql", "cfcql", "omar"])
def test_the_next_action_is_the_best_legal_one(name):
    """With one legal next action, the target is that action's value, whatever the values of the others."""
    state, batch = after(CONFIGS[name]), make_batch(4)
    nets, only = backbone(SPEC, state.config), np.broadcast_to(np.arange(4) == 2, batch.next_avail.shape)
    batch, critic = batch.replace(next_avail=only), nets.critic
    value = critic.q_tot(state.target_params["critic"], batch.next_obs, batch.next_global_state, jnp.full((24, 3), 2))
    y = batch.reward + 0.99 * batch.discount * value
    algorithm = {"cql": cql, "cfcql": cfcql, "omar": omar}[name]
    np.testing.assert_allclose(algorithm.estimate(state, batch).target, y, rtol=1e-6)
    q_tot = critic.q_tot(state.params["critic"], batch.obs, batch.global_state, batch.action)
    np.testing.assert_allclose(UPDATE(state, batch)[1]["critic/td"], np.mean(np.square(q_tot - y)), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("bc", "policy"),
        ("icq", "policy"),
        ("omiga", "policy"),
        ("omar", "policy"),
        ("bcq", "head"),
        ("cfcql", "behaviour"),
    ],
)
def test_an_agent_without_a_choice_teaches_no_policy(name, group):
    state, batch = after(CONFIGS[name]), make_batch(13)
    if name == "cfcql":
        state = state.replace(step=jnp.int32(0))
    avail, action, obs = batch.avail.copy(), batch.action.copy(), batch.obs.copy()
    avail[:, 0], action[:, 0] = np.arange(4) == 0, 0
    batch = batch.replace(avail=avail, action=action)
    obs[:, 0] += 1.0
    found = [UPDATE(state, one)[0].params[group] for one in (batch, batch.replace(obs=obs))]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_bcq_acts_within_the_actions_it_learns_with():
    """Threshold 1 leaves only the behaviour policy's mode."""
    state, batch = with_numbers(after(CONFIGS["bcq"]), threshold=1.0), make_batch(5)
    logits = bcq._networks(SPEC, state.config).head.apply(state.params["head"], batch.obs)
    expected = np.argmax(np.where(batch.avail, logits, -1e9), axis=-1)
    np.testing.assert_array_equal(omcda_jax.act(state, batch.obs, batch.avail), expected)


def test_discrete_bcq_s_target_is_the_barred_value_of_the_newest_choice():
    """The choice is the online critic's best among the actions at least .3 times as likely as the likeliest."""
    state, batch = apart(CONFIGS["bcq"], SPEC), make_batch(14)
    log_probs = reference.masked_log_probabilities(
        local_network(state.params["head"], batch.next_obs), batch.next_avail
    )
    allowed = np.exp(log_probs - log_probs.max(axis=-1, keepdims=True)) >= 0.3
    assert (allowed != batch.next_avail).any()
    q = local_network(state.params["critic"]["local"], batch.next_obs)
    action, barred = np.where(allowed, q, -np.inf).argmax(axis=-1), state.target_params["critic"]
    next_value = team_value(barred, batch, local_value(barred["local"], batch.next_obs, action), later=True)
    target = reference.return_target(batch.reward, batch.discount, 0.99, next_value)
    np.testing.assert_allclose(jax.jit(bcq.estimate)(state, batch).target, target, rtol=1e-4, atol=1e-5)


def test_continuous_bcq_agrees_with_numpy():
    """Target, losses and acting. The online VAE generates; the target uses target perturbation and critics."""
    state = apart(CONFIGS["bcq"], CONTINUOUS)
    batch = normalise(state, make_batch(8, spec=CONTINUOUS))
    params, barred = state.params, state.target_params

    @jax.jit
    def update(state, batch):
        estimates = bcq.estimate(state, batch)
        chosen = bcq.critic_loss, bcq.perturbation_loss
        by_name = [loss(state.params, state, batch, estimates)[0] for loss in chosen]
        action = bcq.act(bcq.policy(state), batch.obs, batch.avail)
        latent = bcq._prior_by_row(bcq._networks(CONTINUOUS, state.config), row_keys(state, batch, 3)[0], 10, 3)
        return estimates, by_name[0] | by_name[1], action, latent, bcq.prior(jax.random.key(0), 10, 1, 3, 4)

    estimates, by_name, acted, latent, fixed_latent = update(state, batch)

    def moved(perturbation, obs, avail, action):
        obs = np.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1]))
        action = np.clip(action + 0.05 * np.tanh(network(perturbation, obs, action)), -1, 1)
        return obs, np.where(avail, action, 0.0)

    def generated(obs, avail, latent):
        return np.where(avail, np.tanh(network(params["vae"]["decoder"], obs, latent)), 0.0)

    there = batch.next_obs, batch.next_avail
    points = moved(barred["perturbation"], *there, generated(*there, latent))
    q = np.stack([local_value(one, *points) for one in members(barred["critic"]["local"])])
    best = (0.75 * q.min(axis=0) + 0.25 * q.max(axis=0)).max(axis=0)
    next_value = team_value(barred["critic"], batch, best, later=True)
    target = reference.return_target(batch.reward, batch.discount, 0.99, next_value)
    np.testing.assert_allclose(estimates.target, target, rtol=1e-4, atol=1e-5)

    critics, here = members(params["critic"]["local"]), (batch.obs, batch.avail)
    each = [team_value(params["critic"], batch, local_value(one, batch.obs, batch.action)) for one in critics]
    error = sum(np.square(q - target) for q in each)
    np.testing.assert_allclose(by_name["critic/td"], error, rtol=1e-4, atol=1e-5)
    climbed = local_value(critics[0], *moved(params["perturbation"], *here, np.asarray(estimates.generated)))
    np.testing.assert_allclose(by_name["policy/loss"], -climbed, rtol=1e-4, atol=1e-5)

    latent = np.broadcast_to(fixed_latent, (10, 24, 3, 4))
    obs, action = moved(params["perturbation"], *here, generated(*here, latent))
    chosen = local_value(critics[0], obs, action).argmax(axis=0)
    np.testing.assert_allclose(acted, np.take_along_axis(action, chosen[None, ..., None], axis=0)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "loss", "group"),
    [
        ("bcq-continuous", bcq.perturbation_loss, "perturbation"),
        ("cql-released-continuous", cql.policy_loss, "policy"),
        ("omar", omar.policy_loss, "policy"),
        ("omar-continuous", omar.policy_loss, "policy"),
        ("cfcql-continuous", cfcql.policy_loss, "policy"),
    ],
)
def test_values_are_frozen_where_a_policy_climbs_them(name, loss, group):
    config, spec = CASES[name]
    state, batch = omcda_jax.init(jax.random.key(0), spec, config), make_batch(9, size=4, spec=spec)
    nothing, keys = jnp.zeros((4, 3, 2)), jax.random.split(jax.random.key(0), 4)
    estimates = types.SimpleNamespace(generated=nothing, best=nothing, weights=jnp.ones((4, 3)), policy_keys=keys)
    total = lambda params: loss(params, state, batch, estimates)[0]["policy/loss"].sum()
    slopes = jax.jit(jax.grad(total))(state.params)
    assert {one for one in slopes if any(np.any(leaf) for leaf in jax.tree.leaves(slopes[one]))} == {group}


@pytest.mark.parametrize("spec", [SPEC, CONTINUOUS])
def test_cfcql_s_weights_and_actor_agree_with_numpy(spec):
    state = with_numbers(apart(CONFIGS["cfcql"], spec), temperature=5.0)
    batch = normalise(state, make_batch(10, spec=spec))
    params, (w, _) = state.params, return_mixer(state.params["critic"]["mixer"], batch.global_state)
    estimates = jax.jit(cfcql.estimate)(state, batch)
    if spec.discrete:
        favoured = w[..., None] * local_network(params["critic"]["local"], batch.obs)
        policies = [
            reference.masked_log_probabilities(logits, batch.avail)
            for logits in (favoured, local_network(params["behaviour"], batch.obs))
        ]
        apart_by = reference.divergence(*policies)
    else:
        apart_by = divergence(*(moments(params[group], batch.obs) for group in ("policy", "behaviour")), batch.avail)
    raw = np.exp(5.0 * (apart_by - apart_by.max(axis=-1, keepdims=True)))
    np.testing.assert_allclose(estimates.agents, raw / raw.sum(axis=-1, keepdims=True), rtol=1e-3, atol=1e-5)
    if not spec.discrete:
        policy = tanh_gaussian(*(jnp.asarray(x) for x in log_moments(params["policy"], batch.obs)), batch.avail)
        drawn = np.asarray(sample_rows(policy, estimates.policy_keys))
        found, _ = jax.jit(cfcql.policy_loss)(params, state, batch, estimates)
        expected = -w * local_value(params["critic"]["local"], batch.obs, drawn)
        np.testing.assert_allclose(found["policy/loss"], expected, rtol=1e-3, atol=1e-4)


def log_moments(tree, obs):
    mean, std = moments(tree, obs)
    return mean, np.log(std)


def test_released_cql_clones_with_raw_values_as_weights():
    state = apart(CASES["cql-released-continuous"][0], CONTINUOUS)
    batch = normalise(state, make_batch(11, spec=CONTINUOUS))
    found, _ = jax.jit(cql.policy_loss)(state.params, state, batch, None)
    q = local_value(state.params["critic"]["local"], batch.obs, batch.action)
    log_probs = log_density(moments(state.params["policy"], batch.obs), batch.action, batch.avail)
    np.testing.assert_allclose(found["policy/loss"], -(q * log_probs).sum(axis=-1), rtol=1e-4, atol=1e-4)


def test_cql_s_actor_climbs_by_the_mixer_s_weights():
    state = apart(CONFIGS["cql"], CONTINUOUS)
    batch = normalise(state, make_batch(11, spec=CONTINUOUS))
    keys = jax.random.split(jax.random.key(0), 24)
    estimates = types.SimpleNamespace(policy_keys=keys)
    found, _ = jax.jit(lambda *given: cql.policy_loss(*given, estimates))(state.params, state, batch)
    policy = tanh_gaussian(*(jnp.asarray(x) for x in log_moments(state.params["policy"], batch.obs)), batch.avail)
    q = local_value(state.params["critic"]["local"], batch.obs, np.asarray(sample_rows(policy, keys)))
    w, _ = return_mixer(state.params["critic"]["mixer"], batch.global_state)
    np.testing.assert_allclose(found["policy/loss"], -w * q, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["icq", "icq-continuous", "icq-released-continuous"])
def test_icq_agrees_with_numpy(name):
    """Some rows are terminal, and some are cut by a time limit: their next values do not count."""
    config, spec = CASES[name]
    state = with_numbers(apart(config, spec), policy_temperature=0.5, value_temperature=0.5)
    row = np.arange(24)
    ends = {"discount": (row % 5 > 0).astype(np.float32), "last": np.isin(row, [3, 10, 11])}
    batch = normalise(state, make_batch(12, spec=spec).replace(**ends))
    released, params, barred = config.variant == "released", state.params, state.target_params["critic"]

    @jax.jit
    def update(state, batch):
        estimates = icq.estimate(state, batch)
        policy = networks.action_distribution(backbone(spec, config).policy, params["policy"], batch.obs, batch.avail)
        support = support_rows(policy, row_keys(state, batch, 1)[0], 4)
        return estimates, icq.critic_loss(params, state, batch, estimates)[0]["critic/td"], support.actions

    estimates, error, draws = update(state, batch)
    next_local = np.min(
        [local_value(one, batch.next_obs, batch.next_action) for one in members(barred["local"])], axis=0
    )
    next_value = team_value(barred, batch, next_local, later=True)
    rho = reference.density_ratio(next_value / 0.5, (batch.discount > 0) & ~batch.last)
    shrink = (0.8 * 0.99) ** row / 24 if released else 1.0
    target = reference.return_target(batch.reward, batch.discount, 0.99, shrink * rho * next_value)
    np.testing.assert_allclose(estimates.target, target, rtol=1e-4, atol=1e-5)

    critics = members(params["critic"]["local"])
    q = np.stack([local_value(one, batch.obs, batch.action) for one in critics])
    each = [q.min(axis=0)] if released else q
    expected = sum(np.square(team_value(params["critic"], batch, one) - target) for one in each)
    expected = np.where(batch.last & (batch.discount > 0), 0.0, expected)
    np.testing.assert_allclose(error, expected, rtol=1e-4, atol=1e-5)

    w, _ = return_mixer(params["critic"]["mixer"], batch.global_state)
    if spec.discrete:
        pi = reference.masked_log_probabilities(local_network(params["policy"], batch.obs), batch.avail)
        advantage = q[0] - reference.expectation(pi, local_network(critics[0], batch.obs))
    else:
        at_draws = np.min([values(one, batch.obs, np.asarray(draws)) for one in critics], axis=0)
        advantage = w * (q.min(axis=0) - (0.0 if released else at_draws.mean(axis=-1)))
    choice = reference.informative(batch.avail) if spec.discrete else np.ones((24, 3), bool)
    rho = np.stack([reference.density_ratio(advantage[:, i] / 0.5, choice[:, i]) for i in range(3)], axis=1)
    np.testing.assert_allclose(estimates.weights, rho, rtol=1e-3, atol=1e-5)
    factor = w / w.sum(axis=-1, keepdims=True) * rho / (24 if released else 1)
    np.testing.assert_allclose(estimates.factor, factor, rtol=1e-3, atol=1e-5)
    if name == "icq":
        mean = lambda x: np.array([reference.masked_mean(x[:, i], choice[:, i]) for i in range(3)])
        share = UPDATE(state, batch)[1]["policy/effective_share"]
        np.testing.assert_allclose(share, mean(rho) ** 2 / mean(rho**2), rtol=1e-3)


def test_omiga_s_weights_are_cut_at_e_to_the_10():
    state = with_numbers(after(CONFIGS["omiga"], updates=0), alpha=1e-5)
    weight = jax.jit(omiga.estimate)(state, make_batch(1)).weight
    np.testing.assert_allclose([weight.min(), weight.max()], np.exp([-10.0, 10.0]), rtol=1e-5)


DUALS = {  # w = max(0, f'^-1(x)), its slope, and f(w)
    "soft_chi_square": lambda x: (
        np.where(x < 0, np.exp(x), x + 1),
        np.where(x < 0, np.exp(x), 1),
        np.where(x < 0, (x - 1) * np.exp(x) + 1, x**2 / 2),
    ),
    "chi_square": lambda x: (
        np.maximum(x + 1, 0),
        np.where(x > -1, 1, 0),
        np.where(x > -1, x, -1) ** 2 / 2,
    ),
    "kl": lambda x: (np.exp(x - 1), np.exp(x - 1), np.exp(x - 1) * (x - 1)),
}


@pytest.mark.parametrize(
    ("name", "form"),
    [("soft_chi_square", "released"), ("soft_chi_square", "dual"), ("chi_square", "dual"), ("kl", "released")],
)
def test_comadice_agrees_with_numpy(name, form):
    """The target by target networks, the value's loss, its slope in the multiplier, and the policy's weights."""
    config = CONFIGS["comadice"].replace(divergence=name, value_form=form, alpha=0.5)
    state = apart(config, SPEC)
    state.params["lambda_v"] = jnp.float32(0.3)
    batch, params, barred = make_batch(13), state.params, state.target_params

    @jax.jit
    def update(state, batch):
        estimates = comadice.estimate(state, batch)
        loss = lambda params: comadice.value_loss(params, state, batch, estimates)[0]["value/loss"]
        slope = jax.grad(lambda number: loss({**state.params, "lambda_v": number}).mean())(jnp.float32(0.3))
        e = comadice._advantage(state, state.params["critic"], state.params["value"], batch)
        weight = comadice._weight(state, jnp.float32(0.1), estimates._replace(advantage=e))
        return estimates.target, loss(state.params), slope, weight

    target, loss, slope, weight = update(state, batch)
    next_value = team_value(barred["critic"], batch, local_network(barred["value"], batch.next_obs)[..., 0], later=True)
    expected = reference.return_target(batch.reward, batch.discount, 0.99, next_value)
    np.testing.assert_allclose(target, expected, rtol=1e-4, atol=1e-5)
    w, _ = return_mixer(params["critic"]["mixer"], batch.global_state)
    q = local_value(params["critic"]["local"], batch.obs, batch.action)
    e = w * (q - local_network(params["value"], batch.obs)[..., 0])
    x = (e - 0.3) / 0.5
    ratio, steep, f = DUALS[name](x)
    assert (x < 0).any() and (x > 0).any()
    np.testing.assert_allclose(loss, (ratio * (e - 0.3) - 0.5 * f).mean(axis=-1) + 0.3, rtol=1e-4, atol=1e-5)
    expected = 1 - ratio.mean() - (steep * x).mean() * (form == "released")
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(weight, DUALS[name]((e - 0.1) / 0.5)[0], rtol=1e-4, atol=1e-5)


def test_the_search_returns_the_best_action_of_all_its_rounds():
    seen = []

    def score(actions):
        seen.append(np.asarray(actions[..., 0]))
        return jnp.sin(40.0 * actions[..., 0])

    found = omar.search(score, jax.random.key(1), (50, 1), rounds=3, samples=6, elites=2, spread=1.0)
    drawn = np.concatenate(seen, axis=-1)
    best = np.take_along_axis(drawn, np.sin(40.0 * drawn).argmax(axis=-1)[:, None], axis=-1)
    np.testing.assert_allclose(np.sin(40.0 * found), np.sin(40.0 * best), atol=1e-5)


def test_omar_searches_by_the_newest_critic():
    state, batch = apart(CONFIGS["omar"], CONTINUOUS), make_batch(15, spec=CONTINUOUS)
    barred = state.replace(params={**state.params, "critic": state.target_params["critic"]})
    search = jax.jit(omar.best_actions)
    found = [search(one, batch, jax.random.split(jax.random.key(0), 24)) for one in (state, barred)]
    best, other = (local_value(state.params["critic"]["local"], batch.obs, np.asarray(action)) for action in found)
    assert np.mean(best >= other - 1e-4) > 0.9 and np.mean(best - other) > 0.05


def test_omar_proposes_its_own_action_with_noise_of_a_given_width():
    policy = tanh_gaussian(jnp.full((1, 1, 2), 0.3), jnp.full((1, 1, 2), -1.0), jnp.ones((1, 1, 2), bool))
    proposed = omar.proposals(policy, 0.2)
    np.testing.assert_allclose(jnp.exp(proposed.log_std), 0.2, rtol=1e-6)
    np.testing.assert_array_equal(proposed.mode(), policy.mode())


@pytest.mark.parametrize("name", ["cql", "omar"])
def test_a_constant_value_costs_a_team_the_logarithm_of_the_legal_count_for_each_agent(name):
    state, batch = with_numbers(after(CONFIGS[name]), penalty=2.0), make_batch(1)
    critic = state.params["critic"]
    state.params["critic"] = {**critic, "local": jax.tree.map(jnp.zeros_like, critic["local"])}
    batch = batch.replace(avail=np.broadcast_to(np.arange(4) != 1, batch.avail.shape), action=0 * batch.action)
    metrics = UPDATE(state, batch)[1]
    np.testing.assert_allclose(metrics["critic/gap"], 3 * np.log(3.0), rtol=1e-6)
    np.testing.assert_allclose(metrics["critic/conservative"], 6 * np.log(3.0), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 5.0, 100.0])
def test_a_constant_value_costs_cfcql_the_logarithm_of_the_legal_count(temperature):
    state, batch = with_numbers(after(CONFIGS["cfcql"]), temperature=temperature), make_batch(1)
    critic = state.params["critic"]
    state.params["critic"] = {**critic, "local": jax.tree.map(jnp.zeros_like, critic["local"])}
    batch = batch.replace(avail=np.broadcast_to(np.arange(4) != 1, batch.avail.shape), action=0 * batch.action)
    np.testing.assert_allclose(UPDATE(state, batch)[1]["critic/gap"], np.log(3.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "spec", "moves"),
    [
        (CONFIGS["cql"], SPEC, False),
        (CONFIGS["cql"], CONTINUOUS, False),
        (CASES["cql-released-continuous"][0], CONTINUOUS, True),
    ],
)
def test_only_the_released_penalty_moves_the_bias(config, spec, moves):
    """The direction of the gradient in the weights of b(s); clipping changes its length."""
    fresh, batch = omcda_jax.init(jax.random.key(0), spec, config), make_batch(1, spec=spec)

    def direction(penalty):
        gradients = UPDATE(with_numbers(fresh, penalty=penalty), batch)[0].opt_state["critic"][1].mu
        flat = gradients["mixer"]["params"]["Dense_2"]["kernel"].ravel()
        return flat / np.linalg.norm(flat)

    assert (direction(0.0) @ direction(1.0) < 0.99) == moves
    assert (np.abs(direction(0.0) - direction(1.0)).max() > 1e-4) == moves


@pytest.mark.parametrize("dimensions", [1, 2])
def test_proposals_are_weighed_by_their_own_densities(dimensions):
    everything = jnp.ones((1, 1, dimensions), bool)
    normal = lambda mean, log_std: tanh_gaussian(
        jnp.full(everything.shape, mean), jnp.full(everything.shape, log_std), everything
    )
    here, there = normal(0.4, -0.3), normal(-0.5, 0.0)
    measure = here.measure(everything, jax.random.key(0), 10, there)
    density = lambda policy, actions: jax.vmap(policy.log_prob, in_axes=2, out_axes=2)(actions)
    uniform, own, next_own = (slice(10 * part, 10 * part + 10) for part in range(3))
    # a density of 2^-d on [-1, 1]^d, and the mean of 30 draws: d = 1, K = 10 alone in the sum gives log 10 + log 2
    np.testing.assert_allclose(measure.log_weights[..., uniform], dimensions * np.log(2) - np.log(30), atol=1e-5)
    for part, policy in ((own, here), (next_own, there)):
        expected = -density(policy, measure.actions[..., part, :]) - np.log(30)
        np.testing.assert_allclose(measure.log_weights[..., part], expected, atol=1e-3)


def test_equal_next_values_of_8_and_rewards_of_1_make_icq_s_target_8_92():
    state = after(CONFIGS["icq"], updates=0)
    target = jax.tree.map(jnp.zeros_like, state.target_params["critic"])
    target["mixer"]["params"]["Dense_2"]["bias"] = jnp.array([8.0])
    state = state.replace(target_params={**state.target_params, "critic": target})
    ones, none = np.ones(4, np.float32), np.zeros(4, bool)
    batch = make_batch(0, size=4).replace(reward=ones, discount=ones, last=none)
    y = icq.td_target(state, batch)
    np.testing.assert_allclose(y, 8.92, rtol=1e-6)


def test_released_icq_s_targets_shrink_with_the_size_of_the_batch_and_along_it():
    state = after(CASES["icq-released-continuous"][0], updates=0, spec=CONTINUOUS)
    target = jax.tree.map(jnp.zeros_like, state.target_params["critic"])
    target["mixer"]["params"]["Dense_2"]["bias"] = jnp.array([8.0])
    state = state.replace(target_params={**state.target_params, "critic": target})
    ones, none = np.ones(4, np.float32), np.zeros(4, bool)
    batch = make_batch(0, size=4, spec=CONTINUOUS).replace(reward=ones, discount=ones, last=none)
    y = icq.td_target(state, batch)
    np.testing.assert_allclose(y, 1 + 0.99 * 8 / 4 * (0.8 * 0.99) ** np.arange(4), rtol=1e-6)


def test_at_a_high_temperature_icq_clones_each_agent_by_its_share_of_the_mixer():
    fresh, batch = with_numbers(after(CONFIGS["icq"], updates=0), policy_temperature=1e9), make_batch(6)
    nets = backbone(SPEC, fresh.config)
    weights = nets.critic.weights(fresh.params["critic"], batch.global_state)
    shares = weights / weights.sum(axis=-1, keepdims=True)
    choice = batch.avail.sum(axis=-1) > 1

    def cloning(params):
        policy = networks.action_distribution(nets.policy, params, batch.obs, batch.avail)
        return -jnp.sum(jnp.where(choice, shares * policy.log_prob(batch.action), 0.0)) / choice.sum()

    gradient = jax.grad(cloning)(fresh.params["policy"])
    assert np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient))) < 1  # nothing is clipped
    close(UPDATE(fresh, batch)[0].opt_state["policy"][1].mu, jax.tree.map(lambda g: 0.1 * g, gradient), atol=1e-6)


def test_at_a_high_temperature_icq_s_critic_is_sarsa_s():
    state, batch = with_numbers(after(CONFIGS["icq"]), value_temperature=1e9), make_batch(1)
    batch, nets, target = batch.replace(last=np.zeros(24, bool)), backbone(SPEC, state.config), state.target_params
    critic = {"local": jax.tree.map(lambda x: x[0], target["critic"]["local"]), "mixer": target["critic"]["mixer"]}
    value = nets.critic.q_tot(critic, batch.next_obs, batch.next_global_state, batch.next_action)
    y = icq.td_target(state, batch)
    np.testing.assert_allclose(y, batch.reward + 0.99 * batch.discount * value, rtol=1e-5, atol=1e-5)


def test_the_search_s_second_round_is_drawn_about_the_first_one_s_elites():
    seen, key = [], jax.random.key(0)

    def score(actions):
        seen.append(np.asarray(actions))
        return actions[..., 0]

    omar.search(score, key, (1000, 1), rounds=2, samples=20, elites=5, spread=0.3)
    elites = np.sort(seen[0][..., 0], axis=1)[:, -5:]
    noise = np.asarray(jax.random.normal(jax.random.split(key, 2)[1], (1000, 20, 1)))[..., 0]
    spread = elites.std(axis=1, ddof=1)[:, None]
    np.testing.assert_allclose(
        seen[1][..., 0], np.clip(elites.mean(axis=1)[:, None] + spread * noise, -1, 1), atol=1e-5
    )


def test_omar_evaluates_the_policy_that_acts():
    """The width of its policy network is not learnt and changes nothing: neither targets nor proposals use it."""
    state, batch = after(CONFIGS["omar"], spec=CONTINUOUS), make_batch(2, spec=CONTINUOUS)
    last = state.params["policy"]["params"]["Dense_2"]
    wider = {"kernel": last["kernel"].at[:, 2:].add(0.5), "bias": last["bias"].at[2:].add(0.5)}
    policy = {"params": {**state.params["policy"]["params"], "Dense_2": wider}}
    other = state.replace(params={**state.params, "policy": policy})
    (one, metrics), (two, again) = UPDATE(state, batch), UPDATE(other, batch)
    jax.tree.map(np.testing.assert_array_equal, one.params["critic"], two.params["critic"])
    jax.tree.map(np.testing.assert_array_equal, metrics, again)


def test_without_imitation_omar_s_actor_is_cql_s():
    """For mixer weights of one and a policy without width, so that its samples are its mode."""
    state, batch = after(CONFIGS["cql"], spec=CONTINUOUS), make_batch(3, spec=CONTINUOUS)
    mixer, policy = state.params["critic"]["mixer"]["params"], state.params["policy"]["params"]
    ones = {"kernel": jnp.zeros_like(mixer["Dense_1"]["kernel"]), "bias": jnp.ones(3)}
    narrow = {
        "kernel": policy["Dense_2"]["kernel"].at[:, 2:].set(0.0),
        "bias": policy["Dense_2"]["bias"].at[2:].set(-20.0),
    }
    params = {
        "policy": {"params": {**policy, "Dense_2": narrow}},
        "critic": {**state.params["critic"], "mixer": {"params": {**mixer, "Dense_1": ones}}},
    }
    state = state.replace(params=params)
    ascent = with_numbers(after(CONFIGS["omar"], updates=0, spec=CONTINUOUS).replace(params=params), coefficient=0.0)
    of_cql, of_omar = cql.estimate(state, batch), omar.estimate(ascent, batch)

    def of_actor(algorithm, state, estimates, policy):
        by_name, _ = algorithm.policy_loss({**params, "policy": policy}, state, batch, estimates)
        return by_name["policy/loss"].mean()

    losses = (
        functools.partial(of_actor, cql, state, of_cql),
        functools.partial(of_actor, omar, ascent, of_omar),
    )
    one, two = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(jax.grad(loss)(params["policy"]))]) for loss in losses
    )
    # the smallest width that the networks allow is e^-5, not zero
    assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.999
    assert abs(np.linalg.norm(one) / np.linalg.norm(two) - 1) < 0.02


@pytest.mark.parametrize("starts", [[0, 3], []])
def test_comadice_counts_the_values_of_the_batch_s_first_steps(starts):
    state, first = after(CONFIGS["comadice"]), np.isin(np.arange(24), starts)
    batch = make_batch(2).replace(first=first)
    values = np.asarray(backbone(SPEC, state.config).value.apply(state.params["value"], batch.obs))[..., 0]
    expected = 0.01 * values[first].mean() if starts else 0.0
    np.testing.assert_allclose(UPDATE(state, batch)[1]["value/start"], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("spec", [SPEC, CONTINUOUS])
def test_comadice_s_multiplier_and_weights(spec):
    """At a small alpha, so that the discrete cap of 2 limits some weights; x < 0: e^x, else x + 1."""
    fresh, batch = with_numbers(after(CONFIGS["comadice"], updates=0, spec=spec), alpha=0.1), make_batch(7, spec=spec)
    batch = normalise(fresh, batch)
    new, metrics = UPDATE(fresh, batch)
    nets, target = backbone(spec, fresh.config), fresh.target_params["critic"]
    q = networks.action_values(nets.critic.local, target["local"], batch.obs, batch.action)
    e = nets.critic.weights(target, batch.global_state) * (q - nets.value.apply(new.params["value"], batch.obs)[..., 0])
    choice = batch.avail.sum(axis=-1) > (1 if spec.discrete else 0)

    def weight(multiplier):
        x = (np.asarray(e) - float(multiplier)) / 0.1
        return np.where(x < 0, np.exp(np.minimum(x, 0)), x + 1)

    shortage = 1 - weight(0.0)[choice].mean()
    moment = 0.1 * np.clip(shortage, -1, 1)
    np.testing.assert_allclose(new.opt_state["lambda_e"][1].mu, moment, rtol=1e-4)
    each = weight(new.params["lambda_e"])
    assert (each[choice] > 2).any()
    each = np.minimum(each, 2) if spec.discrete else each
    omega = np.broadcast_to(np.where(choice, each, 0).sum(axis=-1, keepdims=True), choice.shape)
    np.testing.assert_allclose(metrics["policy/weight"], omega[choice].mean(), rtol=1e-4)


@pytest.mark.parametrize("name", BASELINES)
def test_agents_swapped_with_their_rows_of_the_networks_learn_and_act_swapped(name):
    order = np.array([2, 0, 1])

    def swap(tree, path=()):
        if "kernel" not in tree:
            return {key: swap(value, (*path, key)) if isinstance(value, dict) else value for key, value in tree.items()}
        kernel, bias = tree["kernel"], tree["bias"]
        if path[-1] == "Dense_0" and kernel.shape[-2] == SPEC.obs_dim + 3:
            kernel = kernel.at[..., -3:, :].set(kernel[..., -3:, :][..., order, :])
        if "mixer" in path and path[-1] == "Dense_1":
            kernel, bias = kernel[..., order], bias[..., order]
        return {"kernel": kernel, "bias": bias}

    state, batch = omcda_jax.init(jax.random.key(0), SPEC, CONFIGS[name]), make_batch(25)
    if name == "cfcql":  # past its cloning
        state = state.replace(step=jnp.int32(2))
    fields = ("obs", "avail", "action", "next_obs", "next_avail", "next_action")
    swapped = batch.replace(**{field: np.asarray(getattr(batch, field))[:, order] for field in fields})
    other = state.replace(params=swap(state.params), target_params=swap(state.target_params))
    # the optimisers' first moments are the gradients, up to a factor
    moments = lambda state: {group: found[1].mu for group, found in state.opt_state.items()}
    expected = {
        group: swap(mu) if isinstance(mu, dict) else mu for group, mu in moments(UPDATE(state, batch)[0]).items()
    }
    close(moments(UPDATE(other, swapped)[0]), expected, atol=1e-6)
    chosen = omcda_jax.act(state, batch.obs, batch.avail)
    np.testing.assert_array_equal(omcda_jax.act(other, swapped.obs, swapped.avail), np.asarray(chosen)[:, order])
