"""What init, update and act of every algorithm promise."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import omcda_jax
from omcda_jax import (
    BcConfig,
    BcqConfig,
    CfcqlConfig,
    ComadiceConfig,
    CqlConfig,
    EnvSpec,
    IcqConfig,
    OmarConfig,
    OmcdaConfig,
    OmigaConfig,
    networks,
    training,
)
from omcda_jax.algorithms import ALGORITHMS, omcda
from omcda_jax.types import BatchError

SPEC = EnvSpec(num_agents=3, obs_dim=6, state_dim=5, action_dim=4, discrete=True)
CONTINUOUS = dataclasses.replace(SPEC, action_dim=2, discrete=False)
SMALL = {"hidden_sizes": (16, 16)}
CONFIGS = {
    "omcda": OmcdaConfig(critic_warmup=0, **SMALL),
    "omcda-one-projected-identity": OmcdaConfig(
        critic_warmup=0, critics=1, allocation="projected", conservative_mixing="identity", **SMALL
    ),
    "omcda-uniform-monotonic": OmcdaConfig(
        critic_warmup=0, allocation="uniform", conservative_mixing="monotonic", **SMALL
    ),
    "omcda-random-layer_norm": OmcdaConfig(critic_warmup=0, allocation="random", critic_layer_norm=True, **SMALL),
    "omcda-fixed-gradient": OmcdaConfig(
        critic_warmup=0, allocation="fixed", shares=(0.5, 0.3, 0.2), extraction="gradient", **SMALL
    ),
    "omcda-in_sample": OmcdaConfig(critic_warmup=0, value_target="in_sample", **SMALL),
    "omcda-not-decoupled": OmcdaConfig(critic_warmup=0, decoupled=False, **SMALL),
    "omcda-not-decoupled-in_sample": OmcdaConfig(critic_warmup=0, decoupled=False, value_target="in_sample", **SMALL),
    "bc": BcConfig(**SMALL),
    "bcq": BcqConfig(acting_samples=10, vae_hidden=(16, 16), **SMALL),
    "cql": CqlConfig(**SMALL),
    "icq": IcqConfig(**SMALL),
    "omar": OmarConfig(**SMALL),
    "omiga": OmigaConfig(**SMALL),
    "cfcql": CfcqlConfig(behaviour_updates=2, **SMALL),
    "comadice": ComadiceConfig(**SMALL),
    "comadice-dual": ComadiceConfig(value_form="dual", **SMALL),
}


CASES = {name: (config, SPEC) for name, config in CONFIGS.items()}
CASES |= {
    f"{name}-continuous": (CONFIGS[name], CONTINUOUS)
    for name in (
        "omcda",
        "omcda-in_sample",
        "omcda-not-decoupled",
        *(name for name in ALGORITHMS if name != "omcda"),
    )
}
RELEASED = {
    "cql-released-continuous": (CqlConfig(variant="released", **SMALL), CONTINUOUS),
    "icq-released-continuous": (IcqConfig(variant="released", **SMALL), CONTINUOUS),
}
CASES |= RELEASED


def make_batch(seed, size=24, spec=SPEC):
    """Random transitions with random legal actions.

    About every fifth agent-row has a single legal action. With continuous actions the first agent has one dimension;
    the rest is padding.
    """
    rng = np.random.default_rng(seed)
    shape = (size, spec.num_agents)

    def legal():
        if not spec.discrete:
            avail = np.ones((*shape, spec.action_dim), bool)
            avail[:, 0, 1:] = False
            return avail
        avail = rng.random((*shape, spec.action_dim)) < 0.6
        avail[..., 0] |= ~avail.any(-1)
        dead = rng.random(shape) < 0.2
        avail[dead] = np.arange(spec.action_dim) == 0
        return avail

    avail, next_avail = legal(), legal()
    normal = lambda *dims: rng.normal(size=dims).astype(np.float32)

    def choose(avail):
        draw = rng.random(avail.shape)
        return np.argmax(draw * avail, -1).astype(np.int32) if spec.discrete else (2 * draw - 1).astype(np.float32)

    return omcda_jax.Batch(
        obs=normal(*shape, spec.obs_dim),
        global_state=normal(size, spec.state_dim),
        avail=avail,
        action=choose(avail),
        reward=normal(size),
        discount=(rng.random(size) < 0.8).astype(np.float32),
        next_obs=normal(*shape, spec.obs_dim),
        next_global_state=normal(size, spec.state_dim),
        next_avail=next_avail,
        next_action=choose(next_avail),
        first=rng.random(size) < 0.1,
        last=rng.random(size) < 0.1,
    )


TRACES = []


def counted_update(state, batch):
    TRACES.append(state.config)
    return omcda_jax.update(state, batch)


UPDATE = jax.jit(counted_update)


def after(config, updates=3, seed=0, spec=SPEC):
    """A state after a few updates, so that nothing has its initial symmetry."""
    state = omcda_jax.init(jax.random.key(seed), spec, config)
    for i in range(updates):
        state, _ = UPDATE(state, make_batch(100 + i, spec=spec))
    return state


def numbers(state):
    return jax.tree.map(np.asarray, (state.params, state.target_params, state.opt_state, state.extra))


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), a, b)))


def test_the_configs_cover_every_algorithm():
    assert {config.name for config in CONFIGS.values()} == set(ALGORITHMS)
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.config().name == name


@pytest.fixture(params=CASES, scope="module")
def state(request):
    config, spec = CASES[request.param]
    return after(config, spec=spec)


def test_update_keeps_shapes_and_dtypes_and_moves_parameters(state):
    new, metrics = UPDATE(state, make_batch(1, spec=state.spec))
    chex.assert_trees_all_equal_shapes_and_dtypes(numbers(state), numbers(new))
    assert jax.tree.structure(state) == jax.tree.structure(new)
    assert int(new.step) == int(state.step) + 1
    chex.assert_tree_all_finite((numbers(new), metrics))
    frozen = {"behaviour"} if state.config.name == "cfcql" else set()
    for group in state.params:
        assert (largest_difference(state.params[group], new.params[group]) > 0) == (group not in frozen), group


# the samples of an expectation over continuous actions depend on a row's place in the batch
@pytest.mark.parametrize("state", [*CONFIGS, "bc-continuous"], indirect=True)
def test_rows_may_come_in_any_order(state):
    batch = make_batch(2, spec=state.spec)
    order = np.random.default_rng(0).permutation(batch.reward.shape[0])
    new, metrics = UPDATE(state, batch)
    shuffled, shuffled_metrics = UPDATE(state, jax.tree.map(lambda x: x[order], batch))
    chex.assert_trees_all_close(numbers(new), numbers(shuffled), atol=2e-5)
    chex.assert_trees_all_close(metrics, shuffled_metrics, atol=1e-4, rtol=1e-4)


def test_the_second_call_does_not_trace_again(state):
    before = len(TRACES)
    state, _ = UPDATE(state, make_batch(4, spec=state.spec))
    UPDATE(state, make_batch(5, spec=state.spec))
    assert len(TRACES) == before


DRAWING = [f"{name}-continuous" for name in ("omcda", "bcq", "cql", "icq", "omar", "cfcql")]


@pytest.mark.parametrize("state", [*ALGORITHMS, "omcda-in_sample", *DRAWING, *RELEASED], indirect=True)
def test_devices_reduce_to_one_batch_even_with_uneven_masks(state):
    batch = make_batch(3, spec=state.spec)
    if state.spec.discrete:
        first_device = (np.arange(24) < 6)[:, None]
        avail = np.where(first_device[..., None], np.arange(SPEC.action_dim) == 0, batch.avail)
        batch = batch.replace(avail=avail, action=np.where(first_device, 0, batch.action))
    whole, metrics = UPDATE(state, batch)
    shards = jax.tree.map(lambda x: x.reshape(4, 6, *x.shape[1:]), batch)
    spread = jax.jit(jax.vmap(lambda b: omcda_jax.update(state, b, axis_name="devices"), axis_name="devices"))
    parts, part_metrics = spread(shards)
    for device in range(4):
        part, part_metric = jax.tree.map(lambda x, i=device: x[i], (parts, part_metrics))
        chex.assert_trees_all_close(numbers(whole), numbers(part), atol=2e-5)
        chex.assert_trees_all_close(metrics, part_metric, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["omcda", "bc"])
def test_scan_equals_a_loop(name):
    state = after(CONFIGS[name])
    batches = [make_batch(10 + i) for i in range(3)]
    looped = state
    for batch in batches:
        looped, _ = UPDATE(looped, batch)
    scanned, metrics = jax.jit(lambda s, b: jax.lax.scan(omcda_jax.update, s, b))(
        state, jax.tree.map(lambda *x: jnp.stack(x), *batches)
    )
    chex.assert_trees_all_close(numbers(looped), numbers(scanned), atol=2e-5)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(metrics))


@pytest.mark.parametrize("sampled", [False, True])
def test_only_legal_actions_are_chosen(state, sampled):
    batch = make_batch(6, size=200, spec=state.spec)
    key = jax.random.key(7) if sampled else None
    action = omcda_jax.act(state, batch.obs, batch.avail, key)
    assert action.shape == batch.action.shape and action.dtype == batch.action.dtype
    if state.spec.discrete:
        assert np.all(np.take_along_axis(batch.avail, np.asarray(action)[..., None], -1))
    else:
        assert np.all(np.abs(action) <= 1) and np.all(np.where(batch.avail, 0, action) == 0)


def test_acting_is_decentralised_and_greedy_without_a_key(state):
    obs = make_batch(8, spec=state.spec).obs
    action = omcda_jax.act(state, obs)
    np.testing.assert_array_equal(action, omcda_jax.act(state, obs))
    others_changed = obs.copy()
    others_changed[:, 1:] += 1.0
    np.testing.assert_array_equal(omcda_jax.act(state, others_changed)[:, 0], action[:, 0])


@pytest.mark.parametrize("state", [name for name in CASES if name not in CONFIGS], indirect=True)
def test_what_the_padding_of_continuous_actions_holds_changes_nothing(state):
    batch = make_batch(17, spec=state.spec)
    other = batch.replace(
        action=np.where(batch.avail, batch.action, 0.7), next_action=np.where(batch.next_avail, batch.next_action, -0.7)
    )
    assert np.any(other.action != batch.action)
    chex.assert_trees_all_equal(UPDATE(state, batch), UPDATE(state, other))


def test_a_normaliser_is_part_of_the_policy():
    """Training and acting on raw features with a normaliser equals doing so on normalised features without one."""
    spec, rng = CONTINUOUS, np.random.default_rng(0)
    shift = lambda *shape: rng.normal(size=shape).astype(np.float32)
    factor = lambda *shape: rng.uniform(0.5, 2, size=shape).astype(np.float32)
    agents, obs, size = spec.num_agents, spec.obs_dim, spec.state_dim
    scale = omcda_jax.Normaliser(shift(agents, obs), factor(agents, obs), shift(size), factor(size))
    plain = after(CONFIGS["omcda"], spec=spec)
    raw = make_batch(18, spec=spec)
    scaled = raw.replace(
        obs=(raw.obs - scale.obs_shift) * scale.obs_factor,
        next_obs=(raw.next_obs - scale.obs_shift) * scale.obs_factor,
        global_state=(raw.global_state - scale.global_state_shift) * scale.global_state_factor,
        next_global_state=(raw.next_global_state - scale.global_state_shift) * scale.global_state_factor,
    )
    with_scale, metrics = UPDATE(plain.replace(normaliser=scale), raw)
    without, expected = UPDATE(plain, scaled)
    chex.assert_trees_all_close((numbers(with_scale), metrics), (numbers(without), expected), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(
        omcda_jax.act(with_scale, raw.obs, raw.avail), omcda_jax.act(without, scaled.obs, raw.avail), atol=1e-5
    )


def test_features_a_normaliser_drops_change_nothing():
    spec = CONTINUOUS
    factor = np.ones((spec.num_agents, spec.obs_dim), np.float32)
    factor[0, 4:] = 0.0
    scale = omcda_jax.Normaliser(np.zeros_like(factor), factor, np.zeros(5, np.float32), np.ones(5, np.float32))
    state = after(CONFIGS["omcda"], spec=spec).replace(normaliser=scale)
    batch = make_batch(19, spec=spec)
    padded, next_padded = batch.obs.copy(), batch.next_obs.copy()
    padded[:, 0, 4:] = 3.0
    next_padded[:, 0, 4:] = -2.0
    chex.assert_trees_all_equal(UPDATE(state, batch), UPDATE(state, batch.replace(obs=padded, next_obs=next_padded)))
    np.testing.assert_array_equal(omcda_jax.act(state, batch.obs), omcda_jax.act(state, padded))


def test_a_population_of_numbers_and_seeds_compiles_once():
    configs = [dataclasses.replace(CONFIGS["omcda"], d_tot=d, learning_rate=lr) for d, lr in [(0.3, 1e-3), (1.8, 1e-4)]]
    states = [after(config, seed=seed) for config in configs for seed in (0, 1)]
    batch = make_batch(9)
    update = jax.jit(jax.vmap(chex.assert_max_traces(omcda_jax.update, n=1), in_axes=(0, None)))
    population, _ = update(jax.tree.map(lambda *x: jnp.stack(x), *states), batch)
    population, metrics = update(population, batch)
    for i, state in enumerate(states):
        for _ in range(2):
            state, _ = UPDATE(state, batch)
        chex.assert_trees_all_close(numbers(jax.tree.map(lambda x, i=i: x[i], population)), numbers(state), atol=5e-5)
    np.testing.assert_allclose(metrics["allocation/budget"].sum(-1), [0.3, 0.3, 1.8, 1.8], rtol=1e-5)


def test_gradients_flow_through_an_update():
    state, batch = after(CONFIGS["omcda"]), make_batch(11)

    def next_budgets(d_tot):
        new, _ = omcda_jax.update(state.replace(config=state.config.replace(d_tot=d_tot)), batch)
        return jnp.sum(jnp.square(new.extra.budget))

    gradient = jax.jit(jax.grad(next_budgets))(0.6)
    step = 1e-3
    evaluate = jax.jit(next_budgets)
    numeric = (evaluate(0.6 + step) - evaluate(0.6 - step)) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-2)


@pytest.mark.parametrize("choice", [True, False], ids=["choices", "no choice anywhere"])
@pytest.mark.parametrize(("name", "key"), [("omiga", "alpha"), ("icq", "policy_temperature")])
def test_derivatives_of_the_next_parameters_are_numbers(name, key, choice):
    state, batch = after(CONFIGS[name]), make_batch(11)
    if not choice:
        batch = batch.replace(avail=jnp.arange(SPEC.action_dim) == jnp.zeros_like(batch.avail), action=0 * batch.action)

    def size(value):
        new, _ = omcda_jax.update(state.replace(config=state.config.replace(**{key: value})), batch)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(new.params))

    assert jnp.isfinite(jax.jit(jax.grad(size))(getattr(state.config, key)))


def test_the_derivative_of_a_step_is_that_of_differences():
    state, batch = after(CONFIGS["omar"]), make_batch(11)

    def size(value):
        new, _ = omcda_jax.update(state.replace(config=state.config.replace(coefficient=value)), batch)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(new.params["policy"]))

    value, step = float(state.config.coefficient), 2e-2
    evaluate = jax.jit(size)
    numeric = (evaluate(value + step) - evaluate(value - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(size))(value), numeric, rtol=0.1)


def test_each_group_learns_from_its_own_loss_only():
    state, batch = after(CONFIGS["omcda"]), make_batch(12)
    new, _ = UPDATE(state, batch)
    richer, _ = UPDATE(state, batch.replace(reward=batch.reward + 5.0))
    chex.assert_trees_all_equal(new.params["behaviour"], richer.params["behaviour"])
    chex.assert_trees_all_equal(new.params["deviation"], richer.params["deviation"])
    chex.assert_trees_all_equal(new.params["policy"], richer.params["policy"])
    assert largest_difference(new.params["return"], richer.params["return"]) > 0


def test_warm_up_clones_and_leaves_budgets_uniform():
    config = OmcdaConfig(critic_warmup=5, **SMALL)
    state = omcda_jax.init(jax.random.key(0), SPEC, config)
    clone = omcda_jax.init(jax.random.key(1), SPEC, BcConfig(**SMALL))
    clone = clone.replace(params={"policy": state.params["policy"]})
    for i in range(5):
        state, metrics = UPDATE(state, make_batch(i))
        clone, _ = UPDATE(clone, make_batch(i))
        np.testing.assert_allclose(metrics["allocation/budget"], 0.2, rtol=1e-5)
        np.testing.assert_array_equal(metrics["allocation/influence"], 0.0)
    chex.assert_trees_all_close(state.params["policy"], clone.params["policy"], atol=1e-6)
    weighted, _ = UPDATE(state, make_batch(5))
    cloned, _ = UPDATE(clone, make_batch(5))
    _, metrics = UPDATE(weighted, make_batch(6))
    assert np.all(metrics["allocation/influence"] != 0)
    assert largest_difference(weighted.params["policy"], cloned.params["policy"]) > 1e-5


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "bc"])
def test_a_primed_critic_learns_the_returns_it_is_given(name):
    """Rows with unknown return bootstrap; without returns the settings are refused, naming field and algorithm."""
    state = omcda_jax.init(jax.random.key(0), SPEC, CONFIGS[name].replace(priming=3))
    batch = make_batch(0).replace(return_to_go=jnp.full(24, 5.0))
    known = jnp.arange(24) < 12
    target = lambda batch, step=0: training.bootstrap(state.replace(step=jnp.int32(step)), batch, jnp.ones(24))
    bootstrapped = batch.reward + 0.99 * batch.discount
    np.testing.assert_array_equal(target(batch), 5.0)
    np.testing.assert_allclose(target(batch, step=3), bootstrapped, rtol=1e-6)
    partly = target(batch.replace(return_to_go=jnp.where(known, 5.0, jnp.nan)))
    np.testing.assert_allclose(partly, jnp.where(known, 5.0, bootstrapped), rtol=1e-6)
    with pytest.raises(
        BatchError, match=rf"batch.return_to_go: expected \[B\] of floats, because {name} has priming=3"
    ):
        jax.eval_shape(omcda_jax.update, state, make_batch(0))


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_no_level_falls_below_the_price_of_a_nat_once_the_warm_up_is_over(rate):
    for config in (CONFIGS["omcda"], CONFIGS["omcda-fixed-gradient"]):
        low = dict(alpha_init=0.01) if rate < 1 else {}
        config = config.replace(critic_warmup=2, level_rate=rate, price=10.0, d_tot=5.0, **low)
        state = after(config, updates=2)
        assert state.extra.value_size > 0
        warm = jnp.exp(state.extra.log_alpha)
        state, metrics = UPDATE(state, make_batch(3))
        assert metrics["allocation/price"] == pytest.approx(10 * float(state.extra.value_size), rel=1e-5)
        assert np.all(warm < metrics["allocation/price"])
        np.testing.assert_allclose(metrics["allocation/alpha"], metrics["allocation/price"], rtol=1e-4)


@pytest.mark.parametrize("name", ["omcda", "omcda-fixed-gradient"])
@pytest.mark.parametrize(("price", "level"), [(0.0, 0.02), (0.5, 0.5)])
def test_no_level_rises_above_its_largest_unless_a_nat_costs_more(name, price, level):
    """The budgets are almost zero, so that every level rises as far as it can."""
    state = after(CONFIGS[name])
    config = state.config.replace(
        alpha_max=jnp.float32(0.02), price=jnp.float32(price), level_rate=jnp.float32(1.0), level_step=jnp.float32(9.0)
    )
    extra = state.extra.replace(budget=jnp.full(3, 1e-9), value_size=jnp.float32(1.0))
    _, metrics = UPDATE(state.replace(config=config, extra=extra), make_batch(3))
    np.testing.assert_allclose(metrics["allocation/alpha"], level, rtol=1e-4)


def test_draws_differ_from_row_to_row_from_step_to_step_and_from_those_of_the_first_parameters():
    state, batch = omcda_jax.init(jax.random.key(0), SPEC, CONFIGS["bc"]), make_batch(0)
    bits = lambda keys: np.asarray(jax.random.key_data(keys)).reshape(-1, 2)
    steps = [state.replace(step=jnp.int32(step)) for step in range(4)]
    drawn = np.concatenate([bits(keys) for one in steps for keys in training.row_keys(one, batch, 2)])
    assert len(np.unique(drawn, axis=0)) == 4 * 2 * 24
    of_steps = bits(jnp.stack([jax.random.fold_in(state.key, step) for step in range(4)]))
    of_init = bits(jax.random.split(jax.random.key(0), 4))
    assert len(np.unique(np.concatenate([of_steps, of_init]), axis=0)) == 8


def test_held_groups_keep_parameters_moments_and_targets():
    old = after(CONFIGS["omiga"], updates=0)
    new, _ = UPDATE(old, make_batch(1))
    held = training.hold(new, old, {"critic": jnp.bool_(True), "value": jnp.bool_(False)})
    for group in ("critic", "value", "policy"):
        kept = old if group == "critic" else new
        for trees, source in zip(*((x.params, x.opt_state, x.target_params) for x in (held, kept)), strict=True):
            chex.assert_trees_all_equal(trees[group], source[group])


def test_gradients_are_reported_as_they_are_before_clipping():
    state, batch = after(CONFIGS["omiga"]), make_batch(1)
    norms = [UPDATE(state, batch.replace(reward=batch.reward + reward))[1]["gradient/critic"] for reward in (1e3, 2e3)]
    assert norms[0] > 100 and norms[1] / norms[0] == pytest.approx(2.0, rel=0.05)


def test_sampled_actions_are_as_frequent_as_the_policy_says():
    state = after(CONFIGS["bc"])
    obs = np.repeat(make_batch(0).obs[:1], 20_000, axis=0)
    drawn = np.asarray(omcda_jax.act(state, obs, key=jax.random.key(0)))
    network = networks.policy_network(SPEC, CONFIGS["bc"].hidden_sizes)
    expected = jax.nn.softmax(network.apply(state.target_params["policy"], obs[0]))
    frequency = (drawn[..., None] == np.arange(SPEC.action_dim)).mean(axis=0)
    np.testing.assert_allclose(frequency, expected, atol=0.02)


def test_an_agent_without_choices_stays_finite_and_teaches_nothing():
    config = CONFIGS["omcda"]
    state, batch = after(config), make_batch(13)
    avail = batch.avail.copy()
    avail[:, 0] = np.arange(SPEC.action_dim) == 0
    action = batch.action.copy()
    action[:, 0] = 0
    dead = batch.replace(avail=avail, action=action)
    new, metrics = UPDATE(state, dead)
    chex.assert_tree_all_finite((numbers(new), metrics))
    assert metrics["policy/divergence"][0] == 0 and metrics["allocation/weight_divergence"][0] == 0
    other_obs = dead.obs.copy()
    other_obs[:, 0] += 1.0
    moved, _ = UPDATE(state, dead.replace(obs=other_obs))
    chex.assert_trees_all_equal(new.params["behaviour"], moved.params["behaviour"])


@pytest.mark.parametrize("name", ["omcda", "omcda-fixed-gradient"])
def test_a_batch_without_choices_of_an_agent_leaves_its_level_and_influence(name):
    state = after(CONFIGS[name])
    rest = state.extra.replace(influence=jnp.full(3, 0.5))
    batch = make_batch(13)
    avail, action = np.array(batch.avail), np.array(batch.action)
    avail[:, 0], action[:, 0] = np.arange(SPEC.action_dim) == 0, 0
    moved, _ = UPDATE(state.replace(extra=rest), batch.replace(avail=avail, action=action))
    for before, now in ((rest.log_alpha, moved.extra.log_alpha), (rest.influence, moved.extra.influence)):
        assert before[0] == now[0] and np.all(before[1:] != now[1:])


def test_a_single_row_cannot_spend_a_budget_and_says_nothing_about_the_level():
    config = CONFIGS["omcda"]
    state, batch = after(config), make_batch(13)
    avail = np.array(batch.avail)
    avail[1:, 0] = np.eye(SPEC.action_dim)[np.array(batch.action[1:, 0])]
    avail[0, 0] = True
    moved, _ = UPDATE(state, batch.replace(avail=avail))
    assert moved.extra.log_alpha[0] == state.extra.log_alpha[0]


def test_the_behaviours_value_is_measured_from_the_first_update_on():
    config = CONFIGS["omcda"].replace(critic_warmup=4, level_rate=1e-4)
    sizes = [float(after(config, updates=n).extra.value_size) for n in (1, 2)]
    state, once = after(config, updates=0), []
    for i in range(2):
        estimates = omcda.estimate(state, make_batch(100 + i))
        once.append(float(jnp.mean(jnp.abs(estimates.return_value))))
        state, _ = UPDATE(state, make_batch(100 + i))
    np.testing.assert_allclose(sizes, [once[0], np.mean(once)], rtol=1e-5)


def test_continuous_omar_acts_alike_with_and_without_a_key():
    state, batch = omcda_jax.init(jax.random.key(0), CONTINUOUS, CONFIGS["omar"]), make_batch(0, spec=CONTINUOUS)
    greedy = omcda_jax.act(state, batch.obs)
    np.testing.assert_array_equal(omcda_jax.act(state, batch.obs, key=jax.random.key(1)), greedy)


def test_the_policy_is_the_behaviours_twin_until_the_warm_up_is_over():
    state = omcda_jax.init(jax.random.key(0), CONTINUOUS, OmcdaConfig(critic_warmup=3, **SMALL))
    for i in range(4):
        chex.assert_trees_all_equal(state.params["policy"], state.params["behaviour"])
        state, metrics = UPDATE(state, make_batch(i, spec=CONTINUOUS))
        np.testing.assert_allclose(metrics["policy/divergence"], 0.0, atol=1e-7)
    assert largest_difference(state.params["policy"], state.params["behaviour"]) > 0


@pytest.mark.parametrize("name", ["omcda", "bc"])
def test_the_policy_that_acts_is_an_average(name):
    state = after(dataclasses.replace(CONFIGS[name], policy_average_rate=0.25))
    batch = make_batch(20)
    new, _ = UPDATE(state, batch)
    mean = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, state.target_params["policy"], new.params["policy"])
    chex.assert_trees_all_close(new.target_params["policy"], mean, atol=1e-6)
    key = jax.random.key(0)
    acting = new.replace(params={**new.params, "policy": jax.tree.map(jnp.zeros_like, mean)})
    np.testing.assert_array_equal(omcda_jax.act(acting, batch.obs, key=key), omcda_jax.act(new, batch.obs, key=key))
    newest, _ = UPDATE(after(CONFIGS[name]), batch)
    chex.assert_trees_all_equal(newest.target_params["policy"], newest.params["policy"])


@pytest.mark.parametrize(
    ("config", "metric"), [(OmcdaConfig, "critic/q_return"), (OmigaConfig, "critic/q"), (BcqConfig, "critic/q")]
)
def test_layer_norm_bounds_what_a_critic_says_far_from_the_data(config, metric):
    def spread(layer_norm):
        state = omcda_jax.init(jax.random.key(0), CONTINUOUS, config(critic_layer_norm=layer_norm, **SMALL))
        far = make_batch(0, spec=CONTINUOUS)
        _, metrics = UPDATE(state, far.replace(obs=1e6 * far.obs))
        return abs(float(metrics[metric]))

    assert spread(True) < 10 < 100 < spread(False)


def test_ablations_are_what_they_say():
    uniform = after(CONFIGS["omcda-uniform-monotonic"])
    np.testing.assert_allclose(uniform.extra.budget, 0.2, rtol=1e-6)
    random = [after(CONFIGS["omcda-random-layer_norm"], seed=seed).extra.budget for seed in (0, 1)]
    start = omcda_jax.init(jax.random.key(0), SPEC, CONFIGS["omcda-random-layer_norm"]).extra.budget
    np.testing.assert_array_equal(random[0], start)
    assert np.all(random[0] != random[1])
    for budget in random:
        np.testing.assert_allclose(budget.sum(), 0.6, rtol=1e-6)
        assert np.all(budget >= 0.002)
    fixed = after(CONFIGS["omcda-fixed-gradient"]).extra
    np.testing.assert_allclose(fixed.budget, 0.002 + (0.6 - 3 * 0.002) * np.array([0.5, 0.3, 0.2]), rtol=1e-6)
    assert np.all(fixed.influence != 0)
    together = after(CONFIGS["omcda-not-decoupled"])
    assert "deviation" not in together.params and "return" in together.params


def test_the_penalty_enters_the_one_value_when_not_decoupled():
    """With one value, a larger level lowers the return target by gamma times the sum of alpha_i KL_i."""
    state = after(CONFIGS["omcda-not-decoupled"], updates=30)
    batch = make_batch(14).replace(discount=jnp.ones(24))
    errors = []
    for log_alpha in (-10.0, 0.0):
        extra = state.extra.replace(log_alpha=jnp.full((3,), log_alpha))
        _, metrics = UPDATE(state.replace(extra=extra), batch.replace(reward=jnp.full((24,), 100.0)))
        errors.append(float(metrics["critic/td_return"]))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"d_tot": 0.0}, ["d_tot", "positive", "0.0"]),
        ({"d_tot": -1.0}, ["d_tot", "positive", "-1.0"]),
        ({"d_tot": float("nan")}, ["d_tot", "positive", "nan"]),
        ({"d_min": -0.1}, ["d_min", "-0.1"]),
        ({"allocation": "fair"}, ["allocation", "softmax", "'fair'"]),
        ({"shares": (0.5, 0.3, 0.2)}, ["allocation", "fixed where shares are given", "'softmax'"]),
        ({"allocation": "fixed"}, ["shares", "3 numbers, one for each agent", "found 0"]),
        ({"allocation": "fixed", "shares": (0.5, 0.5)}, ["shares", "3 numbers, one for each agent", "found 2"]),
        ({"allocation": "fixed", "shares": (0.5, 0.3, 0.3)}, ["shares", "whose sum is 1", "[0.5, 0.3, 0.3]"]),
        ({"allocation": "fixed", "shares": (1.3, -0.3, 0.0)}, ["shares", "numbers >= 0", "[1.3, -0.3, 0.0]"]),
        ({"allocation": "fixed", "shares": (float("nan"), 0.5, 0.5)}, ["shares", "nan"]),
        ({"value_target": "q"}, ["value_target", "expectation", "'q'"]),
        ({"conservative_mixing": "deep"}, ["conservative_mixing", "convex", "'deep'"]),
        ({"influence_scale": "big"}, ["influence_scale", "relative", "'big'"]),
        ({"temperature": 0.0}, ["temperature", "positive"]),
        ({"gamma": 1.5}, ["gamma", "1.5"]),
        ({"critic_warmup": -1}, ["critic_warmup", "-1"]),
        ({"critic_warmup": 0, "price": 0.1}, ["price", "0 with critic_warmup=0", "0.1"]),
        ({"num_samples": 1}, ["num_samples", "at least 2", "1"]),
        ({"hidden_sizes": 256}, ["hidden_sizes", "one or more widths", "256"]),
        ({"hidden_sizes": (256.0,)}, ["hidden_sizes", "one or more widths", "256.0"]),
        ({"critics": 2.0}, ["critics", "a whole number", "2.0"]),
        ({"learning_rate": "1e-3"}, ["learning_rate", "a positive number", "'1e-3'"]),
        ({"alpha_max": float("inf")}, ["alpha_max", "a number above alpha_min=0.001", "inf"]),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, words):
    with pytest.raises(omcda_jax.ConfigError) as error:
        omcda_jax.init(jax.random.key(0), SPEC, OmcdaConfig(**settings))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"priming": 10, "behaviour_updates": 10}, ["priming", "0 or more than behaviour_updates=10", "10"]),
        ({"behaviour_updates": 0, "temperature": 0.5}, ["temperature", "0 with behaviour_updates=0", "0.5"]),
        ({"temperature": float("inf")}, ["temperature", "a number >= 0", "inf"]),
    ],
)
def test_bad_settings_of_cfcql_are_refused_in_one_line(settings, words):
    with pytest.raises(omcda_jax.ConfigError) as error:
        omcda_jax.init(jax.random.key(0), SPEC, CfcqlConfig(**settings))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_budget_below_the_floor_of_all_agents_is_refused():
    with pytest.raises(omcda_jax.ConfigError, match=r"d_tot.*3 \* 0.3.*found 0.6"):
        omcda_jax.init(jax.random.key(0), SPEC, OmcdaConfig(d_tot=0.6, d_min=0.3))


def test_an_unknown_configuration_is_refused():
    with pytest.raises(TypeError, match=r"OmcdaConfig\(\), found dict"):
        omcda_jax.init(jax.random.key(0), SPEC, {})
