"""The public API: what is checked while tracing, actors on their own, and users' algorithms."""

import dataclasses
import json
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_algorithms import CONFIGS, CONTINUOUS, SPEC, after, make_batch

import omcda_jax
from omcda_jax import checkpoint, training
from omcda_jax.algorithms import ALGORITHMS, bc
from omcda_jax.learner import initial_population, initial_state

KINDS = {"discrete": SPEC, "continuous": CONTINUOUS}
NAMES = sorted(ALGORITHMS)
floats = lambda x: x.astype(np.float32)

# field, what is wrong with it, the expected and the found half of the message; B, N, O, S, A = 24, 3, 6, 5, 4 or 2
WRONG = {
    "obs_dim": ("obs", lambda x: x[..., :-1], "[B, N, O] = [24, 3, 6] of floats", "[24, 3, 5] of float32"),
    "obs of integers": ("obs", lambda x: x.astype(np.int32), "[24, 3, 6] of floats", "[24, 3, 6] of int32"),
    "state": ("global_state", lambda x: x[:, None], "[B, S] = [24, 5] of floats", "[24, 1, 5] of float32"),
    "reward [B, 1]": ("reward", lambda x: x[:, None], "[B] = [24] of floats", "[24, 1] of float32"),
    "mask of floats": ("avail", floats, "[B, N, A] = [24, 3, {A}] of booleans", "[24, 3, {A}] of float32"),
    "next mask": ("next_avail", floats, "[B, N, A] = [24, 3, {A}] of booleans", "[24, 3, {A}] of float32"),
    "avail missing": ("avail", lambda x: None, "[B, N, A] = [24, 3, {A}] of booleans", "None"),
    "rows": ("discount", lambda x: x[:-1], "[B] = [24] of floats", "[23] of float32"),
    "list": ("reward", lambda x: x.tolist(), "[B] = [24] of floats", "a list"),
    "obs missing": ("obs", lambda x: None, "[B, N, O] = [0, 3, 6] of floats", "None"),
    "obs of lists": ("obs", lambda x: x.tolist(), "[B, N, O] = [0, 3, 6] of floats", "a list"),
    "next_obs": ("next_obs", lambda x: x[:, :2], "[B, N, O] = [24, 3, 6] of floats", "[24, 2, 6] of float32"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.quick
def test_update_refuses_every_wrong_field_in_one_line(name, kind):
    spec = KINDS[kind]
    state, batch = omcda_jax.init(jax.random.key(0), spec, CONFIGS[name]), make_batch(0, spec=spec)
    for field, spoil, expected, found in WRONG.values():
        spoiled = batch.replace(**{field: spoil(getattr(batch, field))})
        with pytest.raises(omcda_jax.BatchError) as error:
            omcda_jax.update(state, spoiled)
        letters = lambda text: text.replace("{A}", str(spec.action_dim))
        message = str(error.value)
        assert message.startswith(f"batch.{field}: expected ") and "\n" not in message
        assert letters(expected) in message and message.endswith(f", found {letters(found)}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.quick
def test_actions_of_the_other_kind_are_refused(name):
    for spec, spoil, expected in (
        (SPEC, floats, "[B, N] = [24, 3] of integers, found [24, 3] of float32"),
        (CONTINUOUS, lambda x: x.astype(np.int32), "[B, N, A] = [24, 3, 2] of floats, found [24, 3, 2] of int32"),
    ):
        state, batch = omcda_jax.init(jax.random.key(0), spec, CONFIGS[name]), make_batch(0, spec=spec)
        with pytest.raises(omcda_jax.BatchError) as error:
            jax.eval_shape(omcda_jax.update, state, batch.replace(action=spoil(batch.action)))
        assert str(error.value) == f"batch.action: expected {expected}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.quick
def test_optional_fields_are_asked_for_by_those_that_read_them(name, kind):
    spec = KINDS[kind]
    state, batch = omcda_jax.init(jax.random.key(0), spec, CONFIGS[name]), make_batch(0, spec=spec)
    needs = ALGORITHMS[name].needs
    optional = {"next_action", "first", "last"}
    assert set(needs) == {"icq": {"next_action", "last"}, "comadice": {"first"}}.get(name, set())
    jax.eval_shape(omcda_jax.update, state, batch.replace(**dict.fromkeys(optional - set(needs))))
    for field in needs:
        with pytest.raises(omcda_jax.BatchError) as error:
            jax.eval_shape(omcda_jax.update, state, batch.replace(**{field: None}))
        assert str(error.value).startswith(f"batch.{field}: {name} needs [B")
        assert str(error.value).endswith(", found None")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.quick
def test_act_refuses_what_does_not_fit(name):
    state, batch = omcda_jax.init(jax.random.key(0), SPEC, CONFIGS[name]), make_batch(0)
    for obs, avail, message in (
        (batch.obs[..., :4], batch.avail, "obs: expected [..., N, O] = [..., 3, 6] of floats, found [24, 3, 4]"),
        (batch.obs, batch.avail[..., :2], "avail: expected [..., N, A] = [..., 3, 4] of booleans, found [24, 3, 2]"),
        (batch.obs, floats(batch.avail), "avail: expected [..., N, A] = [..., 3, 4] of booleans, found [24, 3, 4]"),
        (batch.obs, batch.avail[:5], "avail: expected the leading axes of obs [24, 3, 6], found [5, 3, 4]"),
    ):
        with pytest.raises(omcda_jax.BatchError) as error:
            omcda_jax.act(state, obs, avail)
        assert str(error.value).startswith(message)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_what_acts_alone_acts_as_the_state_does(name, kind, tmp_path):
    """Taken from a state, saved and loaded again: the same actions, and nothing of the optimiser."""
    spec = KINDS[kind]
    state, batch = after(CONFIGS[name], spec=spec), make_batch(1, spec=spec)
    ones = lambda *shape: jnp.full(shape, 0.5)
    scale = omcda_jax.Normaliser(ones(3, 6), 2 * ones(3, 6), ones(5), ones(5))
    state = state.replace(normaliser=scale)
    actor = omcda_jax.policy(state)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.dtype == jnp.float32)
    assert size(actor) < size((state.params, state.target_params, state.opt_state)) / 2
    checkpoint.save_policy(tmp_path / "policy", actor)
    loaded = checkpoint.load_policy(tmp_path / "policy")
    chex.assert_trees_all_equal(loaded, actor)
    assert jax.tree.structure(loaded) == jax.tree.structure(actor)
    for key in (None, jax.random.key(3)):
        expected = omcda_jax.act(state, batch.obs, batch.avail, key)
        np.testing.assert_array_equal(omcda_jax.act(actor, batch.obs, batch.avail, key), expected)
        np.testing.assert_array_equal(omcda_jax.act(loaded, batch.obs, batch.avail, key), expected)


def test_a_policy_is_not_written_over_and_a_damaged_one_is_refused(tmp_path):
    checkpoint.save_policy(tmp_path / "policy", omcda_jax.policy(after(CONFIGS["bc"])))
    with pytest.raises(omcda_jax.ConfigError, match="policy: expected a new folder"):
        checkpoint.save_policy(tmp_path / "policy", omcda_jax.policy(after(CONFIGS["bc"])))
    with pytest.raises(omcda_jax.ConfigError, match="nowhere: expected a folder written by save_policy"):
        checkpoint.load_policy(tmp_path / "nowhere")
    record = tmp_path / "policy" / "policy.json"
    text = record.read_text()
    record.write_text(text.replace('"obs_dim": 6', '"obs_dim": 7'))
    with pytest.raises(omcda_jax.ConfigError, match="policy: the policy is damaged: policy.json"):
        checkpoint.load_policy(tmp_path / "policy")
    record.write_text("{}")
    with pytest.raises(omcda_jax.ConfigError, match=f"policy: schema: expected {checkpoint.SCHEMA}, found 1"):
        checkpoint.load_policy(tmp_path / "policy")
    record.write_text(text)
    for file in sorted((tmp_path / "policy" / "arrays").rglob("*")):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(omcda_jax.ConfigError, match="policy: the policy (cannot be read|is damaged)"):
        checkpoint.load_policy(tmp_path / "policy")


def test_a_state_and_a_population_are_no_policy(tmp_path):
    state = after(CONFIGS["bc"])
    with pytest.raises(TypeError, match="actor: expected what omcda_jax.policy returns, found TrainState"):
        checkpoint.save_policy(tmp_path / "policy", state)
    population = omcda_jax.policy(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state))
    with pytest.raises(omcda_jax.ConfigError, match="expected the policy of one trial, found that of a population"):
        checkpoint.save_policy(tmp_path / "policy", population)


@pytest.mark.quick
def test_sizes_may_be_numpy_s():
    assert json.dumps(dataclasses.asdict(omcda_jax.EnvSpec(*map(np.int64, (3, 6, 5, 4)), True)))


@pytest.mark.quick
def test_a_state_may_be_donated_and_the_settings_used_again():
    rate = jnp.float32(1e-3)
    state = omcda_jax.init(jax.random.key(0), SPEC, omcda_jax.BcConfig(hidden_sizes=(4,), learning_rate=rate))
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf, state), donate_argnums=0)(state)
    assert float(rate) == pytest.approx(1e-3)


@pytest.mark.quick
def test_a_class_of_settings_is_no_settings():
    with pytest.raises(TypeError, match=r"such as OmcdaConfig\(\), found the class BcConfig"):
        omcda_jax.init(jax.random.key(0), SPEC, omcda_jax.BcConfig)


@pytest.mark.quick
def test_a_population_s_settings_may_hold_jax_s_numbers():
    configs = [omcda_jax.BcConfig(hidden_sizes=(4,), learning_rate=jnp.float32(rate)) for rate in (0.1, 0.2, -1)]
    state = initial_population(ALGORITHMS["bc"], [0, 0], SPEC, configs[:2])
    np.testing.assert_allclose(state.config.learning_rate, [0.1, 0.2])
    for begin in (
        lambda: initial_population(ALGORITHMS["bc"], [0, 0], SPEC, configs[1:]),
        lambda: initial_state(ALGORITHMS["bc"], 0, SPEC, configs[2]),
    ):
        with pytest.raises(omcda_jax.ConfigError, match="learning_rate: expected a positive number"):
            begin()


@pytest.mark.quick
def test_a_batch_has_transitions():
    batch = jax.tree.map(lambda leaf: leaf[:0], make_batch(0))
    with pytest.raises(omcda_jax.BatchError, match="batch: expected at least one transition, found none"):
        omcda_jax.update(omcda_jax.init(jax.random.key(0), SPEC, CONFIGS["bc"]), batch)


def test_a_policy_whose_settings_are_something_else_is_refused(tmp_path):
    """The record names a class to import: only the class of an algorithm's settings is called."""
    checkpoint.save_policy(tmp_path / "policy", omcda_jax.policy(after(CONFIGS["bc"])))
    record = tmp_path / "policy" / "policy.json"
    values = json.loads(record.read_text())
    del values["sha256"]
    values |= {"settings": "os:system", "config": {"command": f"touch {tmp_path}/called"}}
    record.write_text(json.dumps(values | {"sha256": checkpoint._digest_json(values)}))
    with pytest.raises(omcda_jax.ConfigError, match="settings: expected an algorithm's settings, found 'os:system'"):
        checkpoint.load_policy(tmp_path / "policy")
    assert not (tmp_path / "called").exists()
    values |= {"settings": "omcda_jax.algorithms.bc:BcConfig", "config": {"gone": 1.0}}
    record.write_text(json.dumps(values | {"sha256": checkpoint._digest_json(values)}))
    with pytest.raises(omcda_jax.ConfigError, match="policy: settings: .*unexpected keyword argument 'gone'"):
        checkpoint.load_policy(tmp_path / "policy")


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_policy_acts_the_same_where_only_jax_is(kind, tmp_path):
    spec = KINDS[kind]
    state, batch = after(CONFIGS["omcda"], spec=spec), make_batch(1, spec=spec)
    (tmp_path / "policy.bin").write_bytes(omcda_jax.export(omcda_jax.policy(state)).serialize())
    np.savez(tmp_path / "seen.npz", obs=batch.obs, avail=batch.avail)
    script = (
        "import sys, numpy as np, jax, jax.export\n"
        "exported = jax.export.deserialize(bytearray(open('policy.bin', 'rb').read()))\n"
        "seen = np.load('seen.npz')\n"
        "for rows in (24, 7):\n"
        "    action = exported.call(seen['obs'][:rows], seen['avail'][:rows])\n"
        "    np.save(f'action_{rows}.npy', action)\n"
        "assert not {'omcda_jax', 'flax', 'optax', 'orbax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env={"JAX_PLATFORMS": "cpu"})
    expected = np.asarray(omcda_jax.act(state, batch.obs, batch.avail))
    for rows in (24, 7):
        np.testing.assert_allclose(np.load(tmp_path / f"action_{rows}.npy"), expected[:rows], atol=1e-6)


MINE = """
from typing import ClassVar
import flax.struct
from omcda_jax import acting, networks, training
from omcda_jax.training import static
from omcda_jax.types import Algorithm

@flax.struct.dataclass
class MineConfig:
    name: ClassVar[str] = "mine:ALGORITHM"
    learning_rate: "float" = 1e-3
    policy_average_rate: "float" = 1.0
    hidden_sizes: "tuple" = static((8,))

    def validate(self):
        training.check_numbers(self)

def init(key, spec, config):
    params = networks.init_params(key, spec, policy=networks.policy_network(spec, config.hidden_sizes))
    return training.new_state(key, spec, config, params, targets=["policy"])

def loss(params, state, batch, fixed):
    network = networks.policy_network(state.spec, state.config.hidden_sizes)
    policy = networks.action_distribution(network, params["policy"], batch.obs, batch.avail)
    return {"policy/loss": -policy.log_prob(batch.action)}, {}

def update(state, batch, *, axis_name=None):
    return training.descend(state, batch, [loss], None, axis_name)

ALGORITHM = Algorithm(MineConfig, init, update, acting.policy_of, acting.act_by_policy)
"""


@pytest.mark.quick
def test_an_algorithm_of_ones_own_is_used_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(f"from __future__ import annotations\n{MINE}")
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine

    rates = jnp.array([1e-3, 1e-2])
    begin = lambda rate: omcda_jax.init(jax.random.key(0), SPEC, mine.MineConfig(learning_rate=rate))
    population = jax.vmap(begin)(rates)
    np.testing.assert_array_equal(population.config.learning_rate, rates)
    population, metrics = jax.jit(jax.vmap(omcda_jax.update, in_axes=(0, None)))(population, make_batch(0))
    assert metrics["policy/loss"].shape == (2,)
    one = jax.tree.map(lambda leaf: leaf[0], population)
    assert omcda_jax.act(omcda_jax.policy(one), make_batch(0).obs).shape == (24, 3)
    with pytest.raises(omcda_jax.BatchError, match="batch.reward"):
        omcda_jax.update(one, make_batch(0).replace(reward=np.zeros((24, 1), np.float32)))
    with pytest.raises(omcda_jax.ConfigError, match="mine:ALGORITHM: learning_rate: expected a positive number"):
        omcda_jax.init(jax.random.key(0), SPEC, mine.MineConfig(learning_rate=-1.0))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("omgia", "no algorithm 'omgia'; did you mean 'omiga'"),
        ("nowhere_at_all:ALGORITHM", "No module named 'nowhere_at_all'"),
        ("math:pi", "found float"),
        ("math:tau_", "has no attribute"),
    ],
)
@pytest.mark.quick
def test_a_name_that_is_no_algorithm_is_refused_in_one_line(name, words):
    with pytest.raises(omcda_jax.ConfigError) as error:
        omcda_jax.algorithms.find(name)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_traced_number_is_a_population_over_it():
    """The same states as when made one by one, from one compilation."""
    config = CONFIGS["omcda"]
    budgets = jnp.array([0.6, 1.8])
    together = jax.vmap(lambda d: omcda_jax.init(jax.random.key(0), SPEC, config.replace(d_tot=d)))(budgets)
    for place, budget in enumerate((0.6, 1.8)):
        alone = omcda_jax.init(jax.random.key(0), SPEC, config.replace(d_tot=budget))
        of_one = jax.tree.map(lambda leaf: leaf[place], together)  # noqa: B023 called at once
        chex.assert_trees_all_close(
            dataclasses.replace(of_one, key=None), dataclasses.replace(alone, key=None), rtol=1e-6
        )


@pytest.mark.quick
def test_keys_of_initialisation_and_of_updates_are_different_streams():
    """No key of an initialisation is one that a step folds: on jax 0.10, split(key, n)[i] == fold_in(key, i)."""
    key = jax.random.key(0)
    state = omcda_jax.init(key, SPEC, CONFIGS["omcda"])
    steps = {bytes(np.asarray(jax.random.key_data(jax.random.fold_in(state.key, step)))) for step in range(64)}
    drawn = {bytes(np.asarray(jax.random.key_data(k))) for k in [*jax.random.split(key, 64), key, state.key]}
    assert len(steps) == 64 and not steps & drawn


def test_settings_that_forget_a_name_of_their_own_are_refused():
    class Mine(omcda_jax.OmcdaConfig):
        pass

    with pytest.raises(omcda_jax.ConfigError, match="omcda: expected settings of class OmcdaConfig, found .*Mine"):
        omcda_jax.init(jax.random.key(0), SPEC, Mine())


def test_settings_are_given_by_name():
    """Positional arguments would change their meaning with the order of fields."""
    with pytest.raises(TypeError):
        omcda_jax.OmcdaConfig(0.6)


def test_two_losses_of_one_name_are_refused():
    state = omcda_jax.init(jax.random.key(0), SPEC, CONFIGS["bc"])
    with pytest.raises(ValueError, match=r"losses: expected each name once, found \['policy/loss'\] twice"):
        training.descend(state, make_batch(0), [bc.policy_loss, bc.policy_loss], None)


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(), (24, 1), (3,), (12, 2)])
def test_a_loss_that_is_not_one_of_rows_is_refused(shape):
    state = omcda_jax.init(jax.random.key(0), SPEC, CONFIGS["bc"])
    expected = rf"losses: mine: expected \[B\] = \[24\] or \[B, N\] = \[24, 3\].*found {re.escape(str(list(shape)))}"
    with pytest.raises(ValueError, match=expected):
        training.descend(state, make_batch(0), [lambda *_: ({"mine": jnp.zeros(shape)}, {})], None)


@pytest.mark.quick
def test_a_loss_of_every_second_row_is_averaged_over_those_with_a_choice():
    batch = make_batch(0, size=5)
    avail = np.ones(batch.avail.shape, bool)
    avail[1, 0, 1:] = avail[2, 1, 1:] = avail[4, 1, 1:] = False  # agents 0 and 1 have one legal action there
    batch = batch.replace(avail=avail, action=np.zeros_like(batch.action))
    values = jnp.arange(9.0).reshape(3, 3)
    mine = lambda *_: ({"of_agents": values}, {"of_rows": values[:, 0]})
    _, metrics = training.descend(omcda_jax.init(jax.random.key(0), SPEC, CONFIGS["bc"]), batch, [mine], None)
    assert metrics["of_agents"] == pytest.approx((0 + 1 + 2 + 3 + 5 + 6 + 8) / 7)
    assert metrics["of_rows"] == 3


@pytest.mark.quick
def test_a_population_without_vmap_is_refused_in_one_line():
    begin = lambda rate: omcda_jax.init(jax.random.key(0), SPEC, CONFIGS["bc"].replace(learning_rate=rate))
    rates, batch = jnp.array([1e-3, 1e-2]), make_batch(0)
    words = r"expected one trial, found learning_rate of shape \[2\]; use jax.vmap over trials"
    with pytest.raises(omcda_jax.BatchError, match=f"config: {words}"):
        begin(rates)
    stack = jax.vmap(begin)(rates)
    with pytest.raises(omcda_jax.BatchError, match="state: expected one trial"):
        omcda_jax.update(stack, batch)
    for policy in (stack, jax.vmap(omcda_jax.policy)(stack)):
        with pytest.raises(omcda_jax.BatchError, match="policy: expected one trial"):
            omcda_jax.act(policy, batch.obs)


@pytest.mark.quick
def test_arguments_of_another_kind_are_named():
    state, batch = omcda_jax.init(jax.random.key(0), SPEC, CONFIGS["bc"]), make_batch(0)
    actor = omcda_jax.policy(state)
    assert omcda_jax.policy(actor) is actor
    for arguments, words in (
        ((actor, batch), "state: expected TrainState, found Actor"),
        ((batch, state), "state: expected TrainState, found Batch"),
        ((state, {"obs": batch.obs}), "batch: expected Batch, found dict"),
    ):
        with pytest.raises(TypeError, match=words):
            omcda_jax.update(*arguments)
    for seed in (0, np.int64(0), jnp.int32(0), jax.random.split(jax.random.key(0))):
        with pytest.raises(TypeError, match=r"key: expected jax.random.key\(seed\), found"):
            omcda_jax.init(seed, SPEC, CONFIGS["bc"])
    assert omcda_jax.init(jax.random.PRNGKey(0), SPEC, CONFIGS["bc"]).step == 0
    with pytest.raises(TypeError, match=r"key: expected jax.random.key\(seed\), found 7"):
        omcda_jax.act(state, batch.obs, batch.avail, 7)
