"""Dense layers against NumPy: values and gradients of a narrowing and of a widening layer; fresh networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omcda_jax import BcqConfig, EnvSpec, OmigaConfig
from omcda_jax.networks import AgentNetwork, _Dense, init_params, initialise, mixed_critic

SIZES = {"narrowing": (7, 3), "widening": (3, 7), "square": (5, 5), "one column": (6, 1)}


@pytest.fixture(params=SIZES)
def layer(request, random):
    inputs, outputs = SIZES[request.param]
    x = random.normal(size=(4, 2, inputs)).astype(np.float32)
    kernel, bias = (random.normal(size=shape).astype(np.float32) for shape in ((inputs, outputs), (outputs,)))
    return _Dense(outputs), {"params": {"kernel": kernel, "bias": bias}}, x


@pytest.mark.quick
def test_a_layer_and_its_gradients_are_those_of_numpy(layer, random):
    dense, params, x = layer
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    cotangent = random.normal(size=(4, 2, bias.size)).astype(np.float32)
    value, pull = jax.vjp(dense.apply, params, x)
    np.testing.assert_allclose(value, x @ kernel + bias, rtol=1e-5, atol=1e-6)
    of_params, of_x = jax.jit(pull)(cotangent)
    np.testing.assert_allclose(
        of_params["params"]["kernel"], np.einsum("bni,bno->io", x, cotangent), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(of_params["params"]["bias"], cotangent.sum((0, 1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_x, np.einsum("bno,io->bni", cotangent, kernel), rtol=1e-4, atol=1e-5)


@pytest.mark.quick
def test_gradients_of_several_networks_at_once_are_those_of_each(random):
    network = AgentNetwork((8, 6), outputs=2)
    x = jnp.asarray(random.normal(size=(5, 3, 4)), jnp.float32)
    params = [network.init(jax.random.key(seed), x) for seed in range(2)]
    gradient = jax.grad(lambda params: jnp.sum(jnp.square(network.apply(params, x))))
    together = jax.jit(jax.vmap(gradient))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *params))
    for place, alone in enumerate(params):
        jax.tree.map(
            lambda many, one, place=place: np.testing.assert_allclose(many[place], one, rtol=1e-4, atol=1e-5),
            together,
            gradient(alone),
        )


@pytest.mark.quick
def test_fresh_layers_are_uniform_up_to_one_over_the_root_of_their_inputs():
    params = initialise(AgentNetwork((64, 32), outputs=50), jax.random.key(0), jnp.zeros((1, 3, 97)))["params"]
    for name, inputs in (("Dense_0", 100), ("Dense_1", 64), ("Dense_2", 32)):
        kernel, bias, bound = params[name]["kernel"], params[name]["bias"], inputs**-0.5
        assert kernel.shape[0] == inputs
        assert 0.98 * bound < -kernel.min() <= bound and 0.98 * bound < kernel.max() <= bound
        assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.05) and abs(kernel.mean()) < 0.1 * bound
        assert 0.8 * bound < jnp.abs(bias).max() <= bound


@pytest.mark.quick
def test_hidden_layers_are_normalised_before_they_are_rectified(random):
    network = AgentNetwork((8, 6), outputs=2, layer_norm=True)
    obs = random.normal(size=(5, 3, 4)).astype(np.float32)
    params = initialise(network, jax.random.key(0), obs)
    x = np.concatenate([obs, np.broadcast_to(np.eye(3), (5, 3, 3))], axis=-1)
    for depth in range(3):
        layer = params["params"][f"Dense_{depth}"]
        x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        if depth < 2:
            x = np.maximum((x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True), 0.0)
    np.testing.assert_allclose(network.apply(params, obs), x, rtol=1e-3, atol=1e-4)


@pytest.mark.quick
@pytest.mark.parametrize("discrete", [True, False])
def test_critics_of_both_kinds_can_be_normalised(discrete):
    spec = EnvSpec(num_agents=3, obs_dim=4, state_dim=5, action_dim=2, discrete=discrete)
    for norm in (False, True):
        assert mixed_critic(spec, OmigaConfig(critic_layer_norm=norm)).local.layer_norm is norm


@pytest.mark.quick
def test_the_members_of_an_ensemble_and_the_networks_of_an_algorithm_start_apart():
    spec = EnvSpec(num_agents=3, obs_dim=4, state_dim=5, action_dim=2, discrete=False)
    pair = mixed_critic(spec, BcqConfig(hidden_sizes=(8,)))._replace(members=2)
    params = init_params(jax.random.key(0), spec, first=pair, second=pair)
    one, other = params["first"]["local"], params["second"]["local"]
    for leaf, beside in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.all(leaf[0] != leaf[1]) and np.all(leaf != beside)
