"""What the baselines' equations come to inside their updates, with real networks: closed forms and identities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_algorithms import CASES, CONFIGS, CONTINUOUS, SPEC, UPDATE, after, make_batch

import omcda_jax
from omcda_jax import networks
from omcda_jax.algorithms import bcq, cfcql, cql, icq, normalise, omar
from omcda_jax.distributions import tanh_gaussian
from omcda_jax.networks import backbone

BASELINES = ["bc", "bcq", "cql", "icq", "omar", "omiga", "cfcql", "comadice"]


def with_numbers(state, **numbers):
    return state.replace(config=state.config.replace(**{key: jnp.float32(value) for key, value in numbers.items()}))


def close(got, expected, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), got, expected)


@pytest.mark.parametrize("name", ["cql", "cfcql", "omar"])
def test_the_next_action_is_the_best_legal_one(name):
    """With one legal action next, the target is that action's value, whatever the others are worth."""
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
    """Threshold 1 leaves the behaviour's mode alone."""
    state, batch = with_numbers(after(CONFIGS["bcq"]), threshold=1.0), make_batch(5)
    logits = bcq._networks(SPEC, state.config).head.apply(state.params["head"], batch.obs)
    expected = np.argmax(np.where(batch.avail, logits, -1e9), axis=-1)
    np.testing.assert_array_equal(omcda_jax.act(state, batch.obs, batch.avail), expected)


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
    """The direction, for clipping changes the length, of the gradient in the weights of b(s)."""
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
    """The width of its policy network is not learnt and changes nothing: neither targets nor proposals have it."""
    state, batch = after(CONFIGS["omar"], spec=CONTINUOUS), make_batch(2, spec=CONTINUOUS)
    last = state.params["policy"]["params"]["Dense_2"]
    wider = {"kernel": last["kernel"].at[:, 2:].add(0.5), "bias": last["bias"].at[2:].add(0.5)}
    policy = {"params": {**state.params["policy"]["params"], "Dense_2": wider}}
    other = state.replace(params={**state.params, "policy": policy})
    (one, metrics), (two, again) = UPDATE(state, batch), UPDATE(other, batch)
    jax.tree.map(np.testing.assert_array_equal, one.params["critic"], two.params["critic"])
    jax.tree.map(np.testing.assert_array_equal, metrics, again)


def test_without_imitation_omar_s_actor_is_cql_s():
    """For mixer weights of one and a policy without width, whose draws are its mode."""
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
    # the narrowest width the networks allow is e^-5, not nothing
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
    """At a small alpha, so that the discrete cap of 2 holds some weights; x < 0: e^x, else x + 1."""
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
