"""One OMIGA update against NumPy, written from its equations: losses and gradients of both kinds of actions.

y    = r + gamma nu [ sum_i w_i(s') v_i(o'_i) + b(s') ]            L_q  = mean (Q_tot - y)^2
z_i  = clip( w_i (q_i - v_i) / alpha, +-10 )                       L_v  = mean [ e^(z - M) + e^-M w v / alpha ]
M    = max(max z, -1), a constant                                  L_pi = -mean_valid [ e^z log pi(a|o) ]
"""

import jax
import numpy as np
import pytest
import reference
from test_against_reference import assert_gradients_agree, local_network, return_mixer
from test_algorithms import CONTINUOUS, SPEC, make_batch
from test_continuous_against_reference import log_density, moments, network

import omcda_jax

CONFIG = omcda_jax.OmigaConfig(alpha=2.0, gamma=0.9, hidden_sizes=(12, 8), mixer_hidden=7)


def local_q(tree, batch, discrete):
    if discrete:
        return reference.take(local_network(tree, batch.obs), batch.action)
    return network(tree, batch.obs, np.where(batch.avail, batch.action, 0.0))[..., 0]


def log_policy(tree, batch, discrete):
    if discrete:
        logits = local_network(tree, batch.obs)
        return reference.take(reference.masked_log_probabilities(logits, batch.avail), batch.action)
    return log_density(moments(tree, batch.obs), batch.action, batch.avail)


def constants(state, batch):
    target, discrete = state.target_params, state.spec.discrete
    next_v = local_network(target["value"], batch.next_obs)[..., 0]
    next_value = reference.mix_return(next_v, *return_mixer(target["critic"]["mixer"], batch.next_global_state))
    q = local_q(target["critic"]["local"], batch, discrete)
    slope = return_mixer(target["critic"]["mixer"], batch.global_state)[0] / 2.0
    v = local_network(state.params["value"], batch.obs)[..., 0]
    z = np.clip(slope * (q - v), -10, 10)
    valid = reference.informative(batch.avail) if discrete else batch.avail.any(axis=-1)
    target = reference.return_target(batch.reward, batch.discount, 0.9, next_value)
    return dict(target=target, q=q, slope=slope, weight=np.exp(z), highest=max(z.max(), -1.0), valid=valid)


def losses(params, batch, fixed, discrete):
    q_tot = reference.mix_return(
        local_q(params["critic"]["local"], batch, discrete),
        *return_mixer(params["critic"]["mixer"], batch.global_state),
    )
    v = local_network(params["value"], batch.obs)[..., 0]
    z = np.clip(fixed["slope"] * (fixed["q"] - v), -10, 10)
    scale = np.exp(-fixed["highest"])
    return {
        "critic": np.mean((q_tot - fixed["target"]) ** 2),
        "value": np.mean(np.exp(z) * scale + scale * fixed["slope"] * v),
        "policy": -reference.masked_mean(
            fixed["weight"] * log_policy(params["policy"], batch, discrete), fixed["valid"]
        ),
    }


@pytest.fixture(scope="module", params=[SPEC, CONTINUOUS], ids=["discrete", "continuous"])
def case(request):
    spec = request.param
    state, other = (omcda_jax.init(jax.random.key(seed), spec, CONFIG) for seed in (0, 1))
    wider = lambda tree: jax.tree.map(lambda x: 2.0 * x, tree)
    state = state.replace(params=wider(state.params), target_params=wider(other.target_params))
    batch = make_batch(7, spec=spec)
    after, metrics = jax.jit(omcda_jax.update)(state, batch)
    return state, batch, after, jax.device_get(metrics), constants(state, batch)


def test_losses_agree(case):
    state, batch, _, metrics, fixed = case
    assert np.any(batch.discount == 0)
    assert not state.spec.discrete or not np.all(fixed["valid"])
    expected = losses(state.params, batch, fixed, state.spec.discrete)
    for group, name in [("critic", "critic/td"), ("value", "value/loss"), ("policy", "policy/loss")]:
        assert metrics[name] == pytest.approx(expected[group], rel=1e-5, abs=1e-6), group


def test_gradients_agree_with_differences_of_the_reference_losses(case, random):
    state, batch, after, _, fixed = case
    loss = lambda params, group: losses(params, batch, fixed, state.spec.discrete)[group]
    assert_gradients_agree(state, after, loss, random, h=1e-6, tolerance=1e-5)
