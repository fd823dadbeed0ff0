"""One real update of OMCDA against its re-derivation: every metric, every gradient, and the whole next state.

The networks' parameters are read from the real state and run through a NumPy forward pass; everything after that is
`reference.py` in float64. The test side checks gradients without automatic differentiation: after the first update
Adam's first moment is (1 - beta1) times the clipped gradient. Its products with random directions are compared with
central differences of the reference losses. Their targets and weights stay at the parameters before the step.
"""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import omcda_jax
from omcda_jax import training

SPEC = omcda_jax.EnvSpec(num_agents=3, obs_dim=5, state_dim=6, action_dim=4, discrete=True)
ROWS = 24
SETTINGS = dict(
    d_tot=2.4,
    d_min=0.05,
    critic_warmup=5,
    hidden_sizes=(12, 8),
    mixer_hidden=7,
    gamma=0.9,
    influence_rate=0.3,
    level_rate=0.2,
    level_step=0.05,
    target_rate=0.1,
    policy_average_rate=0.02,
)
update = jax.jit(omcda_jax.update)
CASES = {
    "convex": {},
    "monotonic": dict(conservative_mixing="monotonic", influence_scale="raw"),
    "in_sample": dict(value_target="in_sample"),
    "not decoupled": dict(decoupled=False, allocation="projected", step_size=0.3),
    "not decoupled in_sample": dict(decoupled=False, value_target="in_sample", conservative_mixing="identity"),
    "capped, one critic, priced": dict(max_weight=1.5, critics=1, price=0.05),
    "warming up, primed": dict(priming=5),
    "gradient": dict(extraction="gradient"),
    "gradient priced": dict(extraction="gradient", price=0.1, critics=3),
    "gradient priced, projected": dict(extraction="gradient", price=0.01, allocation="projected", step_size=0.3),
    "gradient not decoupled in_sample": dict(extraction="gradient", decoupled=False, value_target="in_sample"),
    "gradient warming up": dict(extraction="gradient", price=0.1),
}


def make_batch(random):
    def avail():
        legal = random.random((ROWS, 3, 4)) < 0.7
        legal[..., 0] = True
        legal[:4, 1, 1:] = False  # agent 1 is dead in some rows
        return legal

    now, then = avail(), avail()
    action = np.array([[random.choice(np.flatnonzero(legal)) for legal in row] for row in now], np.int32)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    return omcda_jax.Batch(
        obs=normal(ROWS, 3, 5),
        global_state=normal(ROWS, 6),
        avail=now,
        action=action,
        reward=normal(ROWS),
        discount=(random.random(ROWS) < 0.8).astype(np.float32),
        next_obs=normal(ROWS, 3, 5),
        next_global_state=normal(ROWS, 6),
        next_avail=then,
        next_action=np.zeros((ROWS, 3), np.int32),
        first=np.zeros(ROWS, bool),
        last=np.zeros(ROWS, bool),
        return_to_go=np.where(random.random(ROWS) < 0.7, normal(ROWS), np.nan).astype(np.float32),
    )


def make_state(config, step, spec=SPEC):
    """A state in general position: separate target networks, wide outputs, uneven levels and budgets.

    Local deviation values are small enough that there is a level at which the weights spend the budget.
    """
    state = omcda_jax.init(jax.random.key(2), spec, config)
    other = omcda_jax.init(jax.random.key(3), spec, config)
    wider = lambda tree: jax.tree.map(lambda x: 2.5 * x, tree)
    extra = state.extra.replace(
        log_alpha=jnp.log(jnp.array([0.5, 1.0, 2.0])),
        budget=jnp.array([0.6, 1.4, 0.4]),
        influence=jnp.array([0.4, -0.1, 0.2]),
        value_size=jnp.float32(20.0),
    )
    params = wider(state.params | {"policy": other.params["policy"]})  # not the behaviour's twin any more
    targets = {group: wider(other.params[group]) for group in state.target_params}
    for tree in (params, targets):
        for group, part in (("deviation", "local"), ("value", "deviation")):
            if part in tree.get(group, {}):
                tree[group][part] = jax.tree.map(lambda x: 0.3 * x, tree[group][part])
    return state.replace(params=params, target_params=targets, extra=extra, step=jnp.int32(step))


def layers(tree):
    """[(kernel, bias)] of every affine layer of a network in order, float64."""
    found = []

    def walk(node):
        if "kernel" in node:
            found.append(tuple(np.asarray(node[name], np.float64) for name in ("kernel", "bias")))
            return
        for name in sorted(node, key=lambda n: int(n.rsplit("_", 1)[-1]) if n.rsplit("_", 1)[-1].isdigit() else 0):
            walk(node[name])

    walk(tree)
    return found


def local_network(tree, obs):
    """[obs, one-hot agent] through the ReLU layers. -> [B, N, outputs]."""
    rows, agents, _ = obs.shape
    x = np.concatenate([obs.astype(np.float64), np.broadcast_to(np.eye(agents), (rows, agents, agents))], axis=-1)
    *hidden, (kernel, bias) = layers(tree)
    for weight, shift in hidden:
        x = np.maximum(x @ weight + shift, 0.0)
    return x @ kernel + bias


def return_mixer(tree, state):
    """w^r = |linear head| and beta^r of one hidden ReLU layer."""
    (hidden, shift), (kernel, bias), (last, last_bias) = layers(tree)
    x = np.maximum(state.astype(np.float64) @ hidden + shift, 0.0)
    return np.abs(x @ kernel + bias), (x @ last + last_bias)[:, 0]


def members(tree):
    """Stacked critics one by one."""
    return [jax.tree.map(lambda x, e=e: x[e], tree) for e in range(len(jax.tree.leaves(tree)[0]))]


def deviation_mixer(tree, state, kind):
    rows, agents = len(state), SPEC.num_agents
    if kind == "identity":
        return reference.identity_weights(rows, agents), np.zeros((rows, agents))
    (hidden, shift), (kernel, bias), *rest = layers(tree)
    x = np.maximum(state.astype(np.float64) @ hidden + shift, 0.0)
    raw = (x @ kernel + bias).reshape(rows, agents, agents)
    if kind == "convex":
        return reference.convex_weights(raw), np.zeros((rows, agents))
    ((last, last_bias),) = rest
    return reference.monotonic_weights(raw), x @ last + last_bias


def constants(state, batch):
    """Everything that the losses keep fixed: targets, advantages, weights; and the reported quantities."""
    config = jax.tree.map(float, state.config)
    params, target, kind = state.params, state.target_params, config.conservative_mixing
    in_sample, alpha = config.value_target == "in_sample", np.exp(np.asarray(state.extra.log_alpha, np.float64))
    mask = reference.informative(batch.avail)
    pi, b, next_pi, next_b = (
        reference.masked_log_probabilities(local_network(params[group], obs), avail)
        for obs, avail in ((batch.obs, batch.avail), (batch.next_obs, batch.next_avail))
        for group in ("policy", "behaviour")
    )
    each = []  # of the return critics: q, w, v, team value now and at the next state
    for critic in members(target["return"]):
        q = local_network(critic["local"], batch.obs)
        w, bias = return_mixer(critic["mixer"], batch.global_state)
        next_w, next_bias = return_mixer(critic["mixer"], batch.next_global_state)
        if in_sample:
            v = local_network(params["value"]["return"], batch.obs)[..., 0]
            next_v = local_network(target["value"]["return"], batch.next_obs)[..., 0]
        else:
            v = reference.expectation(pi, q)
            next_v = reference.expectation(next_pi, local_network(critic["local"], batch.next_obs))
        teams = reference.mix_return(v, w, bias), reference.mix_return(next_v, next_w, next_bias)
        each.append((q, w, v, *teams))
    q_return, w, v_return, value, _ = each[0]
    next_value = np.min([one[4] for one in each], axis=0)
    if not in_sample and not config.decoupled:
        next_value = next_value - reference.divergence(next_pi, next_b) @ alpha
    advantage = w * (reference.take(q_return, batch.action) - v_return)
    found = dict(mask=mask, alpha=alpha, pi=pi, b=b, q_return=reference.take(q_return, batch.action), w=w)
    found["value_size"] = np.abs(value).mean()
    found["q_return_table"], found["v_return"] = q_return, v_return
    found["q_deviation_table"], found["v_deviation"] = np.zeros_like(q_return), np.zeros_like(v_return)
    found["return_target"] = reference.return_target(batch.reward, batch.discount, config.gamma, next_value)
    if config.priming > int(state.step):
        known = np.isfinite(batch.return_to_go)
        found["return_target"] = np.where(known, batch.return_to_go, found["return_target"])
    deviation_advantage, found["kappa"] = np.zeros((ROWS, 3)), np.ones((ROWS, 3))
    if config.decoupled:
        q_deviation = local_network(target["deviation"]["local"], batch.obs)
        mixing, _ = deviation_mixer(target["deviation"]["mixer"], batch.global_state, kind)
        next_mixing, shift = deviation_mixer(target["deviation"]["mixer"], batch.next_global_state, kind)
        kappa = found["kappa"] = reference.kappa(alpha, mixing)
        if in_sample:
            next_local = local_network(target["value"]["deviation"], batch.next_obs)[..., 0]
            next_deviation = reference.mix_deviation(next_local, next_mixing, shift)
            v = local_network(params["value"]["deviation"], batch.obs)[..., 0]
            deviation_advantage = kappa * (reference.take(q_deviation, batch.action) - v)
            found["v_deviation"] = v
        else:
            next_q = local_network(target["deviation"]["local"], batch.next_obs)
            next_deviation = reference.expected_deviation_value(next_q, next_pi, next_b, next_mixing, shift)
            deviation_advantage = reference.deviation_advantage(q_deviation, pi, batch.action, kappa)
            found["v_deviation"] = reference.expectation(pi, q_deviation)
        found["deviation_target"] = reference.deviation_target(batch.discount, config.gamma, next_deviation)
        found["q_deviation"] = reference.take(q_deviation, batch.action)
        found["q_deviation_table"] = q_deviation
    warm = int(state.step) >= config.critic_warmup
    found["lowest"] = max(config.alpha_min, config.price * 20.0 if warm else 0.0)
    bounds = np.log([found["lowest"], config.alpha_max])
    budget = np.asarray(state.extra.budget, np.float64)
    found["solution"] = np.array(
        [
            reference.solve_level(advantage[:, i], deviation_advantage[:, i], budget[i], mask[:, i], bounds)
            for i in range(3)
        ]
    )
    scores = advantage / np.exp(found["solution"]) + deviation_advantage
    ratio = np.stack([reference.density_ratio(scores[:, i], mask[:, i]) for i in range(3)], axis=1)
    found["warm"] = warm
    found["weights"] = np.minimum(ratio, config.max_weight) if warm else mask.astype(np.float64)
    found["influence"] = reference.influence(q_return, w, pi, b, mask, config.influence_epsilon)
    return found


def group_losses(config, params, batch, fixed):
    """The loss of every parameter group at `params`, and the mixed action values; everything else is as in `fixed`."""
    pi, b = (
        reference.masked_log_probabilities(local_network(params[group], batch.obs), batch.avail)
        for group in ("policy", "behaviour")
    )
    q_return = [
        reference.mix_return(
            reference.take(local_network(critic["local"], batch.obs), batch.action),
            *return_mixer(critic["mixer"], batch.global_state),
        )
        for critic in members(params["return"])
    ]
    losses = dict(
        policy=reference.policy_loss(fixed["weights"], pi, batch.action, fixed["mask"]),
        behaviour=reference.behaviour_loss(b, batch.action, fixed["mask"]),
    )
    if config.extraction == "gradient":
        gain = fixed["w"] / fixed["alpha"] * (reference.expectation(pi, fixed["q_return_table"]) - fixed["v_return"])
        deviation = reference.expectation(pi, fixed["q_deviation_table"]) - fixed["v_deviation"]
        excess = reference.divergence(pi, fixed["b"]) - gain - fixed["kappa"] * deviation
        losses["policy"] = reference.masked_mean(excess, fixed["mask"])
    losses["return"] = sum(reference.return_critic_loss(one, fixed["return_target"]) for one in q_return)
    q_return = np.mean(q_return, axis=0)
    q_deviation = np.zeros((ROWS, 3))
    if config.decoupled:
        q = reference.take(local_network(params["deviation"]["local"], batch.obs), batch.action)
        mixing, shift = deviation_mixer(params["deviation"]["mixer"], batch.global_state, config.conservative_mixing)
        q_deviation = reference.mix_deviation(q, mixing, shift)
        losses["deviation"] = reference.deviation_critic_loss(q_deviation, fixed["deviation_target"])
    if config.value_target == "in_sample":
        losses["value"] = value_loss(config, params, batch, fixed)
    return losses, q_return, q_deviation


def assert_gradients_agree(state, after, loss, random, h=1e-5, tolerance=1e-4):
    """Compare the gradients of one update with central differences of the reference's `loss(params, group)`.

    After one step Adam's first moment is a tenth of the gradient, clipped to norm one.
    """
    for group in state.params:
        clipped = jax.tree.map(lambda x: np.asarray(x, np.float64) / 0.1, after.opt_state[group][1].mu)
        leaves, structure = jax.tree.flatten(clipped)
        length = lambda tree: np.sqrt(sum((x**2).sum() for x in tree))

        def slope(direction, group=group, structure=structure):
            def at(sign):
                step = jax.tree.unflatten(structure, [sign * h * d for d in direction])
                moved = jax.tree.map(lambda p, d: np.asarray(p, np.float64) + d, state.params[group], step)
                return loss({**state.params, group: moved}, group)

            return (at(1) - at(-1)) / (2 * h)

        norm = slope([x / length(leaves) for x in leaves])  # along the gradient the slope is its norm, before clipping
        assert length(leaves) == pytest.approx(min(norm, 1.0), rel=1e-3), group
        for _ in range(4):
            direction = [random.normal(size=x.shape) for x in leaves]
            direction = [x / length(direction) for x in direction]
            expected = max(norm, 1.0) * sum((x * d).sum() for x, d in zip(leaves, direction, strict=True))
            assert slope(direction) == pytest.approx(expected, abs=tolerance * max(norm, 1.0)), group


def value_loss(config, params, batch, fixed):
    """Normalisation and, when decoupled, regression; v^r stopped in the exponent, M stopped throughout.

    Every row counts: if an agent has no choice, its only action has density ratio one.
    """
    everyone, density = np.ones_like(fixed["mask"]), np.where(fixed["mask"], fixed["weights"], 1.0)
    v_return = local_network(params["value"]["return"], batch.obs)[..., 0]
    slope = fixed["w"] / fixed["alpha"]
    if not config.decoupled:
        z = slope * (fixed["q_return"] - v_return)
        return normalisation(z, slope * v_return, fixed)
    v_deviation = local_network(params["value"]["deviation"], batch.obs)[..., 0]
    stopped = fixed.setdefault("v_return_before", v_return)
    z = slope * (fixed["q_return"] - stopped) + fixed["kappa"] * (fixed["q_deviation"] - v_deviation)
    regression = reference.weighted_regression_loss(density, v_return, fixed["q_return"], everyone)
    return normalisation(z, fixed["kappa"] * v_deviation, fixed) + regression


def normalisation(z, linear, fixed):
    """The reference loss with M fixed at its first value: exp(-M) scales the loss and is a constant."""
    largest = lambda x: max(np.clip(x, -10, 10).max(), -1.0)
    top = fixed.setdefault("top", largest(z))
    return reference.normalisation_loss(z, linear, np.ones_like(fixed["mask"])) * np.exp(largest(z) - top)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(state, batch, next state, metrics, fixed quantities) of one real update."""
    batch = make_batch(np.random.default_rng(11))
    config = omcda_jax.OmcdaConfig(**{**SETTINGS, **CASES[request.param]})
    state = make_state(config, step=3 if "warming up" in request.param else 7)
    after, metrics = update(state, batch)
    return state, batch, after, jax.device_get(metrics), constants(state, batch)


def test_losses_and_values_agree(case):
    state, batch, _, metrics, fixed = case
    losses, q_return, q_deviation = group_losses(state.config, state.params, batch, fixed)
    names = {"return": "critic/td_return", "deviation": "critic/td_deviation"}
    for group, loss in losses.items():
        # Policy and value losses weight rows by a level that the library bisects to about 1e-5.
        tolerance = 1e-4 if group in ("policy", "value") else 1e-5
        # in-sample values are not the policy's, so a difference of large numbers remains
        assert metrics[names.get(group, f"{group}/loss")] == pytest.approx(loss, rel=tolerance, abs=1e-5), group
    assert metrics["critic/q_return"] == pytest.approx(q_return.mean(), rel=1e-5, abs=1e-6)
    if state.config.decoupled:
        np.testing.assert_allclose(metrics["critic/q_deviation"], q_deviation.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_levels_budgets_and_influence_agree(case):
    state, _, after, metrics, fixed = case
    config, before = state.config, state.extra
    priced = float(config.price) > 0
    assert (fixed["solution"] < np.log(1e3) - 0.5).all()
    assert priced or (fixed["solution"] > np.log(fixed["lowest"]) + 0.5).all()
    log_alpha = np.asarray(before.log_alpha) + 0.2 * (fixed["solution"] - np.asarray(before.log_alpha))
    if config.extraction == "gradient" and fixed["warm"]:
        budget = np.asarray(before.budget, np.float64)
        spent = [
            reference.masked_mean(reference.divergence(fixed["pi"], fixed["b"])[:, i], fixed["mask"][:, i])
            for i in range(3)
        ]
        log_alpha = np.asarray(before.log_alpha) + 0.05 * np.clip((spent - budget) / budget, -1, 1)
    if fixed["warm"]:
        log_alpha = np.maximum(log_alpha, np.log(fixed["lowest"]))
    np.testing.assert_allclose(after.extra.log_alpha, log_alpha, atol=5e-5)
    np.testing.assert_allclose(metrics["allocation/alpha"], np.exp(log_alpha), rtol=5e-5)
    assert metrics["allocation/price"] == pytest.approx(fixed["lowest"], rel=1e-5)
    # the mean of the first values, while that weights the newest value more: this is the fourth value
    size = 20.0 if fixed["warm"] else 20.0 + 0.25 * (fixed["value_size"] - 20.0)
    assert float(after.extra.value_size) == pytest.approx(size, rel=1e-5)
    rate = 0.3 if fixed["warm"] else 0.0
    smoothed = np.asarray(before.influence) + rate * (fixed["influence"] - np.asarray(before.influence))
    np.testing.assert_allclose(after.extra.influence, smoothed, rtol=1e-5, atol=1e-6)
    scaled = smoothed if state.config.influence_scale == "raw" else reference.relative(smoothed)
    if state.config.allocation == "projected":
        step = float(config.step_size) * 2.4 / 3
        scaled = scaled * reference.share_beyond(smoothed, 20.0 * float(config.price))
        budget = reference.allocate_projected(scaled, np.asarray(before.budget, np.float64), 2.4, 0.05, step)
    else:
        budget = reference.allocate_softmax(scaled, 2.4, 0.05, 1.0)
    np.testing.assert_allclose(after.extra.budget, budget, atol=1e-5)
    np.testing.assert_array_equal(metrics["allocation/budget"], after.extra.budget)


def test_divergences_agree(case):
    _, _, _, metrics, fixed = case
    mask, weights = fixed["mask"], fixed["weights"]
    divergence = reference.divergence(fixed["pi"], fixed["b"])
    for i in range(3):
        expected = reference.masked_mean(divergence[:, i], mask[:, i])
        assert metrics["policy/divergence"][i] == pytest.approx(expected, rel=1e-4)
        spent = reference.weight_divergence(weights[:, i], mask[:, i])
        assert metrics["allocation/weight_divergence"][i] == pytest.approx(spent, rel=1e-3, abs=1e-6)


def test_gradients_agree_with_differences_of_the_reference_losses(case, random):
    state, batch, after, _, fixed = case
    group_losses(state.config, state.params, batch, fixed)  # fixes what the value losses stop
    loss = lambda params, group: group_losses(state.config, params, batch, fixed)[0][group]
    assert_gradients_agree(state, after, loss, random)


def test_parameters_take_the_reference_step(case):
    state, _, after, _, fixed = case
    rate = float(state.config.learning_rate)
    if not fixed["warm"]:
        chex.assert_trees_all_equal(after.params["policy"], after.params["behaviour"])
    for group, params in state.params.items():
        if group == "policy" and not fixed["warm"]:
            continue
        gradient = [np.asarray(m, np.float64) / 0.1 for m in jax.tree.leaves(after.opt_state[group][1].mu)]
        before = [np.asarray(p, np.float64) for p in jax.tree.leaves(params)]
        zeros = [np.zeros_like(p) for p in before]
        expected, _, _ = reference.adam_step(before, gradient, zeros, zeros, 1, rate)
        for ours, theirs in zip(jax.tree.leaves(after.params[group]), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=rate * 2e-2)
    for group, target in state.target_params.items():
        old, new, ours = (
            [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
            for tree in (target, after.params[group], after.target_params[group])
        )
        rate = 0.02 if group == "policy" else 0.1
        for got, expected in zip(ours, reference.polyak(old, new, rate), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_optimiser_clips_each_group_and_follows_adam(random):
    shapes = {"large": [(3, 2), (2,)], "small": [(4,)]}
    draw = lambda size, group: [(size * random.normal(size=s)).astype(np.float32) for s in shapes[group]]
    params = {group: draw(1.0, group) for group in shapes}
    opt_state = training.init_optimiser(params)
    expected = {
        g: ([p.astype(np.float64) for p in ps], [np.zeros_like(p) for p in ps], [np.zeros_like(p) for p in ps])
        for g, ps in params.items()
    }
    step = jax.jit(training.apply_gradients)
    for count, size in zip(itertools.count(1), (10.0, 1.0, 0.1)):
        gradients = {"large": draw(size, "large"), "small": draw(0.1 * size, "small")}
        params, opt_state = step(params, gradients, opt_state, 5e-4)
        for group, (p, m, v) in expected.items():
            clipped = reference.clip_by_global_norm([g.astype(np.float64) for g in gradients[group]], 1.0)
            expected[group] = reference.adam_step(p, clipped, m, v, count, 5e-4)
            for ours, theirs in zip(params[group], expected[group][0], strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_behaviour_cloning_agrees():
    batch = make_batch(np.random.default_rng(12))
    state = omcda_jax.init(jax.random.key(3), SPEC, omcda_jax.BcConfig(hidden_sizes=(8,)))
    _, metrics = update(state, batch)
    policy = reference.masked_log_probabilities(local_network(state.params["policy"], batch.obs), batch.avail)
    expected = reference.behaviour_loss(policy, batch.action, reference.informative(batch.avail))
    assert float(metrics["policy/loss"]) == pytest.approx(expected, rel=1e-5)
