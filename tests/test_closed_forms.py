"""The baselines' losses where they are known in closed form; each number is derived next to it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_algorithms
from test_algorithms import CONFIGS, CONTINUOUS, SPEC, after, largest_difference, make_batch

import omcda_jax
from omcda_jax import losses
from omcda_jax.acting import value_policy
from omcda_jax.algorithms import bcq, cfcql, comadice, cql, icq, normalise, omar
from omcda_jax.distributions import Measure, categorical, greedy, log_integral, sample_rows, tanh_gaussian
from omcda_jax.networks import backbone
from omcda_jax.reductions import batch_log_weights
from omcda_jax.training import row_keys

ALL = jnp.ones((1, 4), bool)


def everywhere(num_agents, num_actions):
    """Counts every discrete action once, in one row."""
    return Measure(None, jnp.zeros((1, num_agents, num_actions)))


def minimum(loss, start=0.0, steps=4000, rate=0.05):
    """Where gradient descent on a scalar loss of one number converges."""
    slope = jax.jit(jax.grad(loss))
    x = jnp.float32(start)
    for _ in range(steps):
        x = x - rate * slope(x)
    assert abs(float(slope(x))) < 1e-4
    return float(x)


@pytest.mark.quick
class TestSubstrate:
    def test_a_terminal_target_is_the_reward(self):
        got = losses.bellman_target(jnp.array([1.5]), jnp.zeros(1), 0.99, jnp.array([1e6]))
        np.testing.assert_array_equal(got, [1.5])

    def test_the_team_value_rises_in_each_local_one_so_the_joint_choice_is_everyones_own(self, random):
        weights, bias = np.abs(random.normal(size=3)), 0.7
        q = random.normal(size=(3, 4))
        gradient = jax.grad(lambda v: losses.mix(v, jnp.asarray(weights), jnp.asarray(bias)))(jnp.zeros(3))
        np.testing.assert_allclose(gradient, weights, rtol=1e-6)
        joint = {a: float(losses.mix(q[np.arange(3), a], weights, np.asarray(bias))) for a in np.ndindex(*(4,) * 3)}
        assert max(joint, key=joint.get) == tuple(np.argmax(q, axis=1))


@pytest.mark.quick
class TestCloning:
    def test_uniform_logits_over_the_legal_actions(self):
        avail = jnp.array([[True, True, True, False, False], [False, True, False, False, False]])
        policy = categorical(jnp.zeros((2, 5)), avail)
        np.testing.assert_allclose(-policy.log_prob(jnp.array([0, 1])), [np.log(3), 0.0], atol=1e-6)

    def test_a_constant_action_is_cloned_by_its_inverse_tanh(self):
        loss = lambda mean: -tanh_gaussian(mean[None], jnp.zeros(1), jnp.ones(1, bool)).log_prob(jnp.array([0.6]))
        assert minimum(loss, rate=0.2) == pytest.approx(np.arctanh(0.6), abs=1e-4)


class TestBcq:
    @pytest.mark.parametrize(("threshold", "chosen"), [(0.4, 1), (0.0, 2), (1.0, 0)])
    def test_the_best_of_the_likely_actions(self, threshold, chosen):
        logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
        allowed = bcq.allowed_actions(logits, ALL, threshold)
        if threshold == 0.4:
            np.testing.assert_array_equal(allowed, [[True, True, False, False]])
        assert greedy(jnp.array([[1.0, 2.0, 9.0, 9.0]]), allowed).mode() == chosen

    def test_illegal_actions_are_never_allowed(self):
        avail = jnp.array([[False, True, True, False]])
        np.testing.assert_array_equal(bcq.allowed_actions(jnp.array([[9.0, 1.0, 1.0, 9.0]]), avail, 0.3), avail)

    def test_share_of_the_smaller_critic(self):
        assert losses.best_and_worst(jnp.array([1.0, 3.0]), 0.75) == 1.5

    @pytest.mark.quick
    def test_divergence_of_the_latent(self):
        got = bcq.latent_divergence(jnp.array([1.0, 0.0]), jnp.log(jnp.array([1.0, 0.5])))
        np.testing.assert_allclose(got, [0.5, 0.318147], atol=1e-6)

    def test_the_perturbation_stays_within_its_reach(self, random):
        state = after(CONFIGS["bcq"], spec=CONTINUOUS)
        batch = make_batch(3, spec=CONTINUOUS)
        wild = jax.tree.map(lambda x: 100 * x, state.params["perturbation"])
        nets = bcq._networks(state.spec, state.config)
        action = jnp.where(batch.avail, jnp.asarray(batch.action), 0.0)
        moved = bcq.perturb(nets, wild, batch.obs, batch.avail, action, 0.05)
        distance = np.abs(moved - action)
        assert distance.max() <= 0.05 + 1e-6 and distance.max() > 0.04

    def test_the_perturbation_leaves_neither_the_bounds_nor_the_dimensions_an_agent_has(self):
        push = types.SimpleNamespace(
            perturbation=types.SimpleNamespace(apply=lambda params, obs, action: 9.0 + 0 * action)
        )
        moved = bcq.perturb(push, None, jnp.zeros((1, 3)), jnp.array([[True, False]]), jnp.array([[0.99, 0.0]]), 0.05)
        np.testing.assert_array_equal(moved, [[1.0, 0.0]])

    @pytest.mark.quick
    def test_the_head_s_loss_by_hand(self):
        """Legal probabilities 2/3 and 1/3: log 1.5 for the first, and half of the mean of log(2)^2 and 0."""
        logits, avail = jnp.array([[np.log(2), 0.0, 5.0]]), jnp.array([[True, True, False]])
        got = bcq.head_loss(logits, avail, jnp.array([0]), 0.5)
        np.testing.assert_allclose(got, [np.log(1.5) + np.log(2) ** 2 / 4], rtol=1e-5)

    def test_latents_to_generate_from_are_cut_normals(self):
        latent = bcq.prior(jax.random.key(0), 20_000)
        assert latent.min() == -0.5 and latent.max() == 0.5
        # P(|N(0, 1)| > .5) = .6171
        np.testing.assert_allclose(np.mean(np.abs(latent) == 0.5), 0.6171, atol=0.01)

    def reconstruction(self, mean, log_std, decoder, rows=20_000):
        """Mean loss of an agent that has one of two dimensions and always played .5; log_std before it is bounded."""
        latent = jnp.concatenate([jnp.full((rows, 1, 4), mean), jnp.full((rows, 1, 4), log_std)], axis=-1)
        nets = types.SimpleNamespace(
            encoder=types.SimpleNamespace(apply=lambda params, obs, action: latent),
            decoder=types.SimpleNamespace(apply=lambda params, obs, latent: decoder(latent)),
        )
        avail = jnp.broadcast_to(jnp.array([True, False]), (rows, 1, 2))
        batch = types.SimpleNamespace(obs=None, action=jnp.where(avail, 0.5, 0.0), avail=avail)
        keys = jax.random.split(jax.random.key(0), rows)
        return bcq.reconstruction_loss(nets, {"vae": {"encoder": None, "decoder": None}}, batch, keys).mean()

    def test_a_reconstruction_errs_by_what_the_decoder_makes_of_a_drawn_latent(self):
        """A latent from N(0, 1) has no divergence; (tanh(u + e) - .5)^2 with tanh u = .5 remains, by quadrature."""
        got = self.reconstruction(0.0, 0.0, lambda latent: latent[..., :2] + np.arctanh(0.5))
        e = np.linspace(-8, 8, 4001)
        error = np.square(np.tanh(np.arctanh(0.5) + e) - 0.5) * np.exp(-np.square(e) / 2) / np.sqrt(2 * np.pi)
        np.testing.assert_allclose(got, np.trapezoid(error, e), rtol=0.03)

    def test_half_the_mean_divergence_of_the_latent_is_added(self):
        """A perfect decoder; mean 1, deviation e^-10 bounded to e^-4: half of (8 - 1 + 1 + e^-8) / 2."""
        got = self.reconstruction(1.0, -10.0, lambda latent: jnp.full((*latent.shape[:-1], 2), np.arctanh(0.5)), rows=3)
        np.testing.assert_allclose(got, (8 + np.exp(-8)) / 4, rtol=1e-5)


class TestCql:
    @pytest.mark.quick
    def test_the_penalty_is_the_joint_one(self, random):
        q, w, data = random.normal(size=(3, 4)), np.abs(random.normal(size=3)), np.array([1, 3, 0])
        team = [sum(w[i] * q[i, a[i]] for i in range(3)) for a in np.ndindex(4, 4, 4)]
        chosen = w * q[np.arange(3), data]
        each = cql.conservative_penalty(
            jnp.asarray((w[:, None] * q)[None], jnp.float32), everywhere(3, 4), jnp.asarray(chosen[None], jnp.float32)
        )
        joint = np.log(np.exp(team).sum()) - chosen.sum()
        np.testing.assert_allclose(each.sum(), joint, rtol=1e-5)
        even = cfcql.counterfactual_penalty(each, cfcql.agent_weights(jnp.zeros((1, 3)), 0.0))
        np.testing.assert_allclose(3 * even, [joint], rtol=1e-5)

    @pytest.mark.quick
    def test_two_agents_by_hand(self):
        values = jnp.array([[[0.0, np.log(3)], [0.0, 2 * np.log(2)]]])
        each = cql.conservative_penalty(values, everywhere(2, 2), jnp.zeros((1, 2)))
        np.testing.assert_allclose(each[0], [np.log(4), np.log(5)], rtol=1e-6)
        np.testing.assert_allclose(each.sum(), 2.995732, atol=1e-5)

    def test_a_constant_value_costs_the_logarithm_of_the_legal_count(self):
        avail = jnp.array([[True, True, True, False], [False, True, False, False]])[None]
        measure = categorical(jnp.zeros((1, 2, 4)), avail).measure(avail)
        gap = cql.conservative_penalty(jnp.full((1, 2, 4), 7.0), measure, jnp.full((1, 2), 7.0))
        np.testing.assert_allclose(gap, [[np.log(3), 0.0]], atol=1e-6)
        assert gap[0, 1] == 0

    def test_the_penalty_does_not_move_the_level_of_the_values(self, random):
        q, data = jnp.asarray(random.normal(size=(1, 1, 4)), jnp.float32), 2
        slope = jax.grad(lambda v: cql.conservative_penalty(v, everywhere(1, 4), v[..., data]).sum())(q)
        np.testing.assert_allclose(slope.sum(), 0.0, atol=1e-6)

    def test_sums_and_means_over_samples(self):
        """10 uniform samples of a constant value: corrected, the log of the integral (2 q); released, of the sum."""
        uniform = Measure(jnp.zeros((1, 1, 10, 1)), jnp.full((1, 1, 10), np.log(2) - np.log(10)))
        zero, none = jnp.zeros((1, 1, 10)), jnp.zeros((1, 1))
        np.testing.assert_allclose(cql.conservative_penalty(zero, uniform, none), [[np.log(2)]], atol=1e-6)
        released = cql.conservative_penalty(zero, uniform, none, jnp.zeros(1))
        np.testing.assert_allclose(released, [[np.log(10)]], atol=1e-6)

    def test_the_released_penalty_drives_the_bias_down(self):
        """Constant values, three agents, 30 samples: 3 log 30 and 2 b: b counts three times, minus once."""
        measure = Measure(jnp.zeros((1, 3, 30, 1)), jnp.zeros((1, 3, 30)))
        total = lambda b: cql.conservative_penalty(jnp.zeros((1, 3, 30)), measure, jnp.zeros((1, 3)), b).sum()
        np.testing.assert_allclose(total(jnp.zeros(1)), 10.20359, atol=1e-4)
        np.testing.assert_allclose(jax.grad(total)(jnp.zeros(1)), [2.0], rtol=1e-6)

    def test_sampled_integral_of_a_known_function(self):
        """The integral of exp(a) over [-1, 1] is 2 sinh 1, whatever the proposals."""
        one = jnp.ones((1, 1, 1), bool)
        policy = tanh_gaussian(jnp.full((1, 1, 1), 0.4), jnp.full((1, 1, 1), -0.3), one)
        other = tanh_gaussian(jnp.full((1, 1, 1), -0.5), jnp.full((1, 1, 1), 0.0), one)
        measure = policy.measure(one, jax.random.key(0), 20_000, other)
        got = log_integral(measure.actions[..., 0], measure)
        np.testing.assert_allclose(got, np.log(2 * np.sinh(1)), atol=0.02)

    @pytest.mark.parametrize("spec", [SPEC, CONTINUOUS])
    def test_without_penalty_it_is_value_decomposition(self, spec):
        state = after(cql.CqlConfig(**test_algorithms.SMALL), spec=spec)
        batch = normalise(state, make_batch(21, spec=spec))
        plain, _ = test_algorithms.UPDATE(state.replace(config=state.config.replace(penalty=jnp.float32(0.0))), batch)
        nets = backbone(state.spec, state.config)
        there = value_policy(nets.policy, nets.critic, state.params, batch.next_obs, batch.next_avail)
        next_action = sample_rows(there, row_keys(state, batch, 3)[0])
        barred = state.target_params["critic"]
        next_value = nets.critic.q_tot(barred, batch.next_obs, batch.next_global_state, next_action)
        y = batch.reward + 0.99 * batch.discount * next_value
        assert largest_difference(plain.params, test_algorithms.UPDATE(state, batch)[0].params) > 0

        def decomposition(params):
            return jnp.mean(jnp.square(nets.critic.q_tot(params, batch.obs, batch.global_state, batch.action) - y))

        gradient = jax.grad(decomposition)(state.params["critic"])
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)))
        clipped = jax.tree.map(lambda g: g * jnp.minimum(1.0, 1.0 / norm), gradient)
        before, now = state.opt_state["critic"][1].mu, plain.opt_state["critic"][1].mu
        expected = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, before, clipped)
        assert largest_difference(expected, now) < 1e-6


class TestIcq:
    @pytest.mark.quick
    def test_weights_of_two_advantages(self):
        advantage = jnp.array([[0.0], [0.1 * np.log(3)]])
        weights = jnp.exp(batch_log_weights(advantage / 0.1, jnp.ones((2, 1), bool)))
        np.testing.assert_allclose(weights[:, 0], [0.5, 1.5], rtol=1e-5)

    @pytest.mark.parametrize("spec", [SPEC, CONTINUOUS])
    def test_a_high_temperature_weighs_all_rows_alike(self, spec):
        state = after(CONFIGS["icq"], spec=spec)
        state = state.replace(config=state.config.replace(policy_temperature=jnp.float32(1e9)))
        batch = make_batch(22, spec=spec)
        mask = np.asarray(batch.avail).sum(-1) > (1 if spec.discrete else 0)
        weights = icq.policy_log_weights(state, batch, mask)
        np.testing.assert_allclose(np.where(mask, weights, 0.0), 0.0, atol=1e-4)

    def test_a_row_a_time_limit_cut_teaches_the_critic_nothing(self):
        state, batch = after(CONFIGS["icq"]), make_batch(23)
        cut = batch.replace(last=np.arange(24) == 5, discount=np.ones(24, np.float32))
        one, _ = test_algorithms.UPDATE(state, cut)
        reward = cut.reward.copy()
        reward[5] += 100.0
        other, _ = test_algorithms.UPDATE(state, cut.replace(reward=reward))
        assert largest_difference(one.params, other.params) == 0
        moved, _ = test_algorithms.UPDATE(state, batch.replace(reward=reward))
        assert largest_difference(one.params, moved.params) > 0


class TestOmar:
    def policy(self, action):
        one = jnp.ones((1, 1, 1), bool)
        return tanh_gaussian(jnp.full((1, 1, 1), np.arctanh(action)), jnp.zeros((1, 1, 1)), one)

    @pytest.mark.parametrize(("coefficient", "loss"), [(0.5, 2.535), (1.0, 1.69), (0.0, 3.38)])
    def test_mixture_of_imitation_and_ascent(self, coefficient, loss):
        """q(a) = -2 (a - .3)^2, pi = -1, a* = .3: distance 1.69, q -3.38."""
        value = lambda a: -2 * jnp.square(a[..., 0] - 0.3)
        policy = self.policy(-1 + 1e-7)
        got = omar.rectified_loss(policy, value, jnp.full((1, 1, 1), 0.3), coefficient)
        np.testing.assert_allclose(got, [[loss]], rtol=1e-4)

    def test_nothing_is_imitated_where_the_policy_is_better(self):
        value = lambda a: -2 * jnp.square(a[..., 0] - 0.3)
        got = omar.rectified_loss(self.policy(0.3), value, jnp.full((1, 1, 1), -0.5), 1.0)
        np.testing.assert_allclose(got, 0.0, atol=1e-6)

    def test_the_elites_spread_is_unbiased(self):
        """The second round draws with the unbiased deviation of the first round's elites: sqrt(2) for -1 and 1.

        Both draws of the first round are elites, and clipping pins them to -1 or 1.
        """
        seen = []

        def score(actions):
            seen.append(actions)
            return actions[..., 0]

        omar.search(score, jax.random.key(0), (1000, 1), rounds=2, samples=2, elites=2, spread=1e9)
        ends = np.sort(np.asarray(seen[0][..., 0]), axis=-1)
        split = (ends[:, 0] < -0.99) & (ends[:, 1] > 0.99)  # elites -1 and 1: mean 0, unbiased deviation sqrt(2)
        second = np.asarray(seen[1][split][..., 0])
        inside = np.mean(np.abs(second) < 0.999)
        # P(|N(0, 2)| < 1) = .5205; the biased deviation 1 would leave .6827 inside
        np.testing.assert_allclose(inside, 0.5205, atol=0.05)

    def test_search_finds_the_best_action(self):
        target = jnp.array([[0.7, -0.4], [-0.2, 0.1]])
        score = lambda a: -jnp.sum(jnp.square(a - target[:, None]), axis=-1)
        found = omar.search(score, jax.random.key(0), (2, 2), rounds=6, samples=200, elites=10, spread=1.0)
        np.testing.assert_allclose(found, target, atol=0.03)

    def test_enumeration_of_one_legal_action_has_nothing_to_imitate(self):
        avail = jnp.array([[[False, True, False]]])
        policy = categorical(jnp.ones((1, 1, 3)), avail)
        q = jnp.array([[[5.0, 1.0, 9.0]]])
        np.testing.assert_allclose(omar.enumerated_loss(policy, q, avail, 1.0), 0.0, atol=1e-6)
        np.testing.assert_allclose(omar.enumerated_loss(policy, q, avail, 0.0), -1.0, atol=1e-6)

    @pytest.mark.quick
    def test_enumeration_by_hand(self):
        """pi = (.5, .25, .25), q = (0, 1, 4): -log .25 for the best action, E q = 1.25."""
        policy = categorical(jnp.log(jnp.array([[[0.5, 0.25, 0.25]]])), jnp.ones((1, 1, 3), bool))
        got = omar.enumerated_loss(policy, jnp.array([[[0.0, 1.0, 4.0]]]), jnp.ones((1, 1, 3), bool), 0.4)
        np.testing.assert_allclose(got, 0.4 * np.log(4) - 0.6 * 1.25, rtol=1e-6)


def value_loss(value, slope, exponent):
    """OMIGA's, of every exponent given."""
    return losses.normalisation_loss(exponent, slope * value, losses.largest_exponent(exponent))


class TestOmiga:
    @pytest.mark.parametrize(("weight", "value"), [(1.0, 6.201145), (2.0, 7.168904)])
    @pytest.mark.quick
    def test_value_of_two_equally_likely_actions(self, weight, value):
        """v = (alpha / w) log E exp(w q / alpha), q in {0, 10}, alpha 10; at w = 1 the weights are .538, 1.462."""
        q, slope = jnp.array([0.0, 10.0]), weight / 10

        def loss(v):
            return jnp.mean(value_loss(jnp.full((2,), v), slope, slope * (q - v)))

        best = minimum(loss, rate=5.0)
        assert best == pytest.approx(value, abs=1e-3)
        weights = np.exp(slope * (np.asarray(q) - best))
        assert weights.mean() == pytest.approx(1.0, abs=1e-4)
        if weight == 1.0:
            np.testing.assert_allclose(weights, [0.537883, 1.462117], atol=1e-4)

    def test_the_value_of_a_single_action_is_its_q(self):
        loss = lambda v: value_loss(v, 0.1, 0.1 * (3.0 - v))
        assert minimum(loss, rate=5.0) == pytest.approx(3.0, abs=1e-3)

    def test_the_largest_exponent_only_scales(self, random):
        q, v, slope = jnp.asarray(random.normal(size=(3, 8, 2)), jnp.float32)
        slope = jnp.abs(slope)
        gradient = lambda q: jax.grad(lambda v: value_loss(v, slope, slope * (q - v)).sum())(v)
        ours = gradient(q)
        highest = max(float((slope * (q - v)).max()), -1.0)
        plain = jax.grad(lambda v: jnp.sum(jnp.exp(slope * (q - v)) + slope * v))(v)
        np.testing.assert_allclose(ours * np.exp(highest), plain, rtol=1e-4, atol=1e-5)

    @pytest.mark.quick
    def test_exponents_are_cut_at_10_and_the_loss_is_scaled_by_the_largest_but_not_below_minus_1(self):
        assert losses.largest_exponent(jnp.array([-30.0, -5.0])) == -1.0
        assert losses.largest_exponent(jnp.array([-0.5, -5.0])) == -0.5
        assert losses.largest_exponent(jnp.array([3.0, 50.0])) == 10.0
        exponent, linear = jnp.array([50.0, -50.0, 9.0]), jnp.array([1.0, 2.0, 0.0])
        got = losses.normalisation_loss(exponent, linear, jnp.float32(10.0))
        np.testing.assert_allclose(got, [1 + np.exp(-10), np.exp(-20) + 2 * np.exp(-10), np.exp(-1)], rtol=1e-5)

    @pytest.mark.parametrize("spec", [SPEC, CONTINUOUS])
    def test_a_large_level_clones(self, spec):
        state = after(CONFIGS["omiga"], spec=spec)
        state = state.replace(config=state.config.replace(alpha=jnp.float32(1e9)))
        batch = make_batch(24, spec=spec)
        new, _ = test_algorithms.UPDATE(state, batch)
        clone = omcda_jax.init(jax.random.key(1), spec, CONFIGS["bc"])
        clone = clone.replace(
            params={"policy": state.params["policy"]}, opt_state={"policy": state.opt_state["policy"]}
        )
        cloned, _ = test_algorithms.UPDATE(clone, batch)
        assert largest_difference(new.params["policy"], cloned.params["policy"]) < 1e-6


class TestCfcql:
    @pytest.mark.quick
    def test_weights_and_penalty_by_hand(self):
        """Values w q = [0, log 3], [0, 2 log 2], data (0, 0), a uniform behaviour policy: gaps log 4, log 5."""
        values = jnp.array([[[0.0, np.log(3)], [0.0, 2 * np.log(2)]]])
        favoured = categorical(values, jnp.ones((1, 2, 2), bool))
        even = categorical(jnp.zeros((1, 2, 2)), jnp.ones((1, 2, 2), bool))
        divergence = favoured.kl(even)
        np.testing.assert_allclose(divergence, [[0.130812, 0.192745]], atol=1e-5)
        gap = log_integral(values, everywhere(2, 2)) - values[..., 0]
        for temperature, weights, penalty in [(0.0, [0.5, 0.5], 1.497866), (5.0, [0.423197, 0.576803], 1.515004)]:
            agents = cfcql.agent_weights(divergence, temperature)
            np.testing.assert_allclose(agents, [weights], atol=1e-5)
            np.testing.assert_allclose(cfcql.counterfactual_penalty(gap, agents), [penalty], atol=1e-5)

    def test_only_the_clone_learns_first_and_then_it_is_frozen(self):
        config = cfcql.CfcqlConfig(behaviour_updates=2, **test_algorithms.SMALL)
        states = [after(config, updates=n) for n in range(5)]
        moved = [
            {group: largest_difference(a.params[group], b.params[group]) > 0 for group in a.params}
            for a, b in zip(states, states[1:], strict=False)
        ]
        assert moved == [{"behaviour": True, "critic": False}] * 2 + [{"behaviour": False, "critic": True}] * 2
        assert int(states[-1].opt_state["critic"][1].count) == 2


class TestComadice:
    @pytest.mark.quick
    def test_soft_chi_square(self):
        w, g = losses.soft_chi_square(jnp.array([-1.0, 0.0, 1.0]))
        np.testing.assert_allclose(w, [0.367879, 1.0, 2.0], atol=1e-6)
        np.testing.assert_allclose(g, [0.264241, 0.0, 0.5], atol=1e-6)
        slope = jax.vmap(jax.grad(lambda x: losses.soft_chi_square(x)[0]))(jnp.array([-1e-4, 1e-4]))
        np.testing.assert_allclose(slope, 1.0, atol=1e-3)

    @pytest.mark.quick
    def test_chi_square_and_kullback_leibler(self):
        """f(w) = (w - 1)^2 / 2, no weight below 0; f(w) = w log w, w = e^(x - 1), cut at x = 10."""
        w, f = losses.chi_square(jnp.array([-3.0, -0.5, 2.0]))
        np.testing.assert_allclose(w, [0.0, 0.5, 3.0])
        np.testing.assert_allclose(f, [0.5, 0.125, 2.0])
        w, f = losses.kullback_leibler(jnp.array([-1.0, 1.0, 2.0, 1e4]))
        np.testing.assert_allclose(w, [np.exp(-2), 1.0, np.e, np.exp(9)], rtol=1e-5)
        np.testing.assert_allclose(f, [-2 * np.exp(-2), 0.0, np.e, 9 * np.exp(9)], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", losses.F_DIVERGENCES)
    def test_derivatives_stay_numbers_far_from_the_data(self, name):
        for value in (-1e4, 1e4):
            slopes = jax.jacobian(losses.F_DIVERGENCES[name])(jnp.float32(value))
            assert np.all(np.isfinite(slopes))

    @pytest.mark.parametrize("name", losses.F_DIVERGENCES)
    def test_the_weight_maximises_the_dual(self, name):
        """x w - f(w) has slope w in x: the envelope theorem, which ties g = f(w) to w."""
        x = jnp.linspace(-3.0, 3.0, 13) + 0.05
        dual = lambda x: x * losses.F_DIVERGENCES[name](x)[0] - losses.F_DIVERGENCES[name](x)[1]
        np.testing.assert_allclose(jax.vmap(jax.grad(dual))(x), losses.F_DIVERGENCES[name](x)[0], atol=1e-4)

    @pytest.mark.parametrize(
        ("form", "initial", "value", "weights"),
        [
            ("dual", True, 5.671433, [0.567143, 1.432857]),
            ("released", True, -5.0, [1.5, 2.5]),
            ("released", False, 6.590461, None),
        ],
    )
    def test_value_of_two_equally_likely_actions(self, form, initial, value, weights):
        """One state, gamma 0, every row initial, q in {0, 10}, alpha 10, mixer weight 1."""
        q = jnp.array([0.0, 10.0])

        def loss(v):
            each = comadice.dual_value_loss(q - v, jnp.zeros(()), 10.0, divergence="soft_chi_square", form=form)
            return initial * v + jnp.mean(each)

        best = minimum(loss, rate=2.0)
        assert best == pytest.approx(value, abs=1e-3)
        if weights:
            got = comadice.policy_weight(q - best, jnp.zeros(()), 10.0, "soft_chi_square")
            np.testing.assert_allclose(got, weights, atol=1e-3)

    def test_the_multiplier_of_the_value_sees_the_released_gradient(self):
        """1 - E w - E x w'; the dual's would be 1 - E w."""
        e, multiplier = jnp.array([0.0, 4.0]), jnp.float32(0.5)

        def slope(form):
            loss = lambda m: m + jnp.mean(comadice.dual_value_loss(e, m, 2.0, divergence="soft_chi_square", form=form))
            return float(jax.grad(loss)(multiplier))

        x = (np.asarray(e) - 0.5) / 2
        w, steep = np.where(x < 0, np.exp(x), x + 1), np.where(x < 0, np.exp(x), 1.0)
        assert slope("dual") == pytest.approx(1 - w.mean(), abs=1e-5)
        assert slope("released") == pytest.approx(1 - w.mean() - (x * steep).mean(), abs=1e-5)
