"""Dense layers against NumPy: values and gradients, of a layer that narrows and of one that widens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omcda_jax.networks import AgentNetwork, _Dense

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
