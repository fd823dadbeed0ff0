"""The smallest sizes: a task with one agent is learned, and a task without agents is refused in one line."""

import dataclasses

import jax
import numpy as np
import pytest
from test_algorithms import CONFIGS, CONTINUOUS, SPEC, UPDATE, make_batch

import omcda_jax
from omcda_jax import BcqConfig, ConfigError, EnvSpec, OmcdaConfig


@pytest.mark.parametrize("name", ["omcda", "omcda-one-projected-identity"])
def test_one_agent_learns(name):
    spec = dataclasses.replace(SPEC, num_agents=1)
    state = omcda_jax.init(jax.random.key(0), spec, CONFIGS[name])
    for seed in range(3):
        state, metrics = UPDATE(state, make_batch(seed, spec=spec))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.extra, metrics)))
    np.testing.assert_allclose(metrics["allocation/budget"], [0.6], rtol=1e-6)
    np.testing.assert_allclose(metrics["allocation/weight_divergence"], [0.6], rtol=1e-3)


@pytest.mark.parametrize("name", ["num_agents", "obs_dim", "state_dim", "action_dim"])
def test_a_task_has_no_size_of_zero(name):
    with pytest.raises(ConfigError, match=f"^spec: {name}: expected a whole number of at least 1, found 0$"):
        dataclasses.replace(SPEC, **{name: 0})
    with pytest.raises(ConfigError, match=f"^spec: {name}: expected a whole number of at least 1, found 2.5$"):
        dataclasses.replace(CONTINUOUS, **{name: 2.5})
    assert EnvSpec(*np.array([1, 1, 1, 1]), True) == EnvSpec(1, 1, 1, 1, True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            OmcdaConfig(hidden_sizes=(0,)),
            r"omcda: hidden_sizes: expected one or more widths of at least 1, found \[0\]",
        ),
        (OmcdaConfig(hidden_sizes=()), r"omcda: hidden_sizes: expected one or more widths of at least 1, found \[\]"),
        (OmcdaConfig(mixer_hidden=0), r"omcda: mixer_hidden: expected a whole number of at least 1, found 0"),
        (BcqConfig(vae_hidden=(8, -1)), r"bcq: vae_hidden: expected one or more widths of at least 1, found \[8, -1\]"),
    ],
)
def test_networks_have_no_layer_of_zero(config, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        omcda_jax.init(jax.random.key(0), CONTINUOUS, config)
