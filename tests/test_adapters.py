"""Environments of users: the examples, modules by name, and PettingZoo's parallel API."""

import dataclasses
import importlib
import json
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import omcda_jax
from omcda_jax import algorithms, data, envs
from omcda_jax.behaviour import acts
from omcda_jax.behaviour.policies import Quality
from omcda_jax.data.collect import collect
from omcda_jax.envs import contract, mpe
from omcda_jax.envs.base import HostEnvironment
from omcda_jax.envs.pettingzoo import _Single
from omcda_jax.runner import run
from omcda_jax.types import ConfigError, EnvSpec

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.syspath_prepend(str(ROOT / "tests"))


def random_episodes(environment, episodes, seed=0):
    """Uniform actions in a host environment with discrete actions."""
    rng, rows, lengths, ends = np.random.default_rng(seed), [], [], []
    simulators = environment.open(1)
    for episode in range(episodes):
        shown, length = simulators.reset(np.array([0]), np.array([episode])), 0
        done = False
        while not done:
            action = rng.integers(0, environment.spec.action_dim, (1, environment.spec.num_agents)).astype(np.int32)
            after = simulators.step(np.array([0]), action)
            rows.append((shown.obs[0], shown.global_state[0], shown.avail[0], action[0], after.reward[0]))
            shown, length = after, length + 1
            done = bool((after.terminated | after.truncated)[0])
        rows.append((shown.obs[0], shown.global_state[0], shown.avail[0], np.zeros_like(action[0]), np.float32(0)))
        lengths.append(length)
        ends.append(bool(shown.terminated[0]))
    obs, state, avail, action, reward = (np.stack(values) for values in zip(*rows, strict=True))
    ends = np.array(ends)
    return data.Episodes(obs, state, avail, action, reward, np.array(lengths, np.int32), ends, ends)


@pytest.mark.parametrize("name", ["environment_in_jax", "environment_in_python"])
def test_examples_are_short_and_learn_from_the_command_line(name, tmp_path, monkeypatch, capsys):
    assert len((ROOT / "experiments" / "examples" / f"{name}.py").read_text().splitlines()) <= 40
    game = envs.make("examples.environment_in_python/9")
    monkeypatch.chdir(tmp_path)
    own = {"environment": f"examples.{name}/9", "quality": "random"}
    data.write("data.h5", game.spec, random_episodes(game, 60), own)
    settings = {
        "algorithm.name": "bcq",
        "algorithm.hidden_sizes": "32",
        "algorithm.learning_rate": 0.003,
        "data.environment": f"examples.{name}/9",
        "data.quality": "random",
        "data.path": "data.h5",
        "learner.updates": 600,
        "learner.log_every": 600,
        "learner.evaluate_every": 0,
        "learner.checkpoint_every": 600,
        "evaluation.episodes": 16,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    assert run.main(["run.py", "--config=smac_3m", *flags, "--workdir=out"]) == 0
    result = json.loads(Path("out/result.json").read_text())
    # random agents sometimes meet in the middle; trained agents walk there
    assert result["evaluation"]["return_mean"] > data.read("data.h5")[2]["statistics"]["return_mean"] + 3


def test_a_module_without_make_is_named():
    with pytest.raises(ConfigError, match=r"environment json/9: expected a function make\(scenario\) in json"):
        envs.make("json/9")


CHANGES = {
    "nothing": (lambda made: None, "make(scenario) to return an Environment or a HostEnvironment, found None"),
    "name": (lambda made: dataclasses.replace(made, name="a/b"), "expected its name to be 'mine/any', found 'a/b'"),
    "horizon": (lambda made: dataclasses.replace(made, horizon=0), "expected a horizon of at least 1 step, found 0"),
    "spec": (
        lambda made: dataclasses.replace(made, spec=dataclasses.replace(made.spec, obs_dim=3)),
        "reset: obs: expected [{}2, 3] of floats, found [{}2, 2] of float",
    ),
    "reset": (
        lambda made: dataclasses.replace(made, **shown_otherwise(made, "reset", lambda shown: shown.obs)),
        "reset: expected a TimeStep, found ",
    ),
    "step": (
        lambda made: dataclasses.replace(
            made, **shown_otherwise(made, "step", lambda shown: shown.replace(avail=shown.reward))
        ),
        "step: avail: expected [{}2, 3] of booleans, found [",
    ),
}


def shown_otherwise(made, function, change):
    """The field of an environment with a `reset` or `step` that shows something else."""
    if isinstance(made, HostEnvironment):

        def opened(copies):
            simulators = made.open(copies)
            own = getattr(simulators, function)
            return simulators._replace(**{function: lambda *of: change(own(*of))})

        return {"open": opened}
    own = getattr(made, function)
    return {function: lambda *of: (lambda state, shown: (state, change(shown)))(*own(*of))}


@pytest.mark.parametrize("name", ["environment_in_jax", "environment_in_python"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_simulator_that_is_not_what_it_says_is_refused(name, change, monkeypatch):
    made, (alter, message) = envs.make(f"examples.{name}/9"), CHANGES[change]
    module = types.ModuleType("mine")
    module.__spec__ = importlib.machinery.ModuleSpec("mine", None)
    module.make = lambda scenario: alter(dataclasses.replace(made, name=f"mine/{scenario}"))
    monkeypatch.setitem(sys.modules, "mine", module)
    copies = "1, " if name == "environment_in_python" else ""
    with pytest.raises(ConfigError, match=re.escape(message.format(copies, copies))):
        envs.make("mine/any")


def test_an_env_state_that_changes_its_form_is_refused():
    made = envs.make("examples.environment_in_jax/9")

    def step(key, env_state, action):
        after, shown = made.step(key, env_state, action)
        return (after[0].astype(float), after[1]), shown

    message = re.escape("step: env_state[0]: expected [2] of int32, as reset gives, found [2] of float32")
    with pytest.raises(ConfigError, match=message):
        contract.check(dataclasses.replace(made, step=step), made.name)
    longer = dataclasses.replace(made, step=lambda *of: (lambda state, shown: ((*state, 0), shown))(*made.step(*of)))
    with pytest.raises(ConfigError, match="step: expected an env_state of the form that reset gives"):
        contract.check(longer, made.name)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("environment_in_jax", {"horizon": "9"}, "expected a horizon of at least 1 step, found '9'"),
        ("environment_in_jax", {"reset": None}, "expected reset to be a function, found None"),
        ("environment_in_python", {"open": lambda copies: None}, "expected open.copies. to return Simulators, found N"),
    ],
)
def test_parts_of_a_simulator_that_are_missing_are_named(name, change, message):
    made = envs.make(f"examples.{name}/9")
    with pytest.raises(ConfigError, match=message):
        contract.check(dataclasses.replace(made, **change), made.name)


def test_an_env_state_of_a_class_of_ones_own_is_fine():
    made = envs.make("examples.environment_in_jax/9")
    reset = lambda key: (lambda state, shown: (Places(*state), shown))(*made.reset(key))
    step = lambda key, state, action: (lambda state, shown: (Places(*state), shown))(
        *made.step(key, (state.places, state.time), action)
    )
    contract.check(dataclasses.replace(made, reset=reset, step=step), made.name)


@jax.tree_util.register_pytree_node_class
class Places:
    def __init__(self, places, time):
        self.places, self.time = places, time

    def tree_flatten(self):
        return (self.places, self.time), None

    @classmethod
    def tree_unflatten(cls, nothing, leaves):
        return cls(*leaves)


def test_a_module_that_lacks_a_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match="lacking/9: cannot import lacking: ModuleNotFoundError: No module named 'no_such"
    ):
        envs.make("lacking/9")


def test_pettingzoo_discrete():
    environment = envs.make("pettingzoo/particles?horizon=9")
    spec = environment.spec
    assert (spec.num_agents, spec.obs_dim, spec.state_dim, spec.action_dim, spec.discrete) == (2, 3, 6, 3, True)
    assert environment.horizon == 9 and "pettingzoo" in environment.versions
    simulators = environment.open(2)
    first = simulators.reset(np.array([0, 1]), np.array([3, 4]))
    start = [np.random.default_rng(seed).integers(10) for seed in (3, 4)]
    np.testing.assert_array_equal(first.obs[:, 0], np.repeat(start, 3).reshape(2, 3))
    np.testing.assert_array_equal(first.obs[:, 1], first.obs[:, 0] * [1, 1, 0])
    np.testing.assert_array_equal(first.global_state, first.obs.reshape(2, 6))
    assert first.avail.all() and first.reward.sum() == 0
    both, action = np.array([0, 1]), np.array([[1, 2], [0, 1]])
    second = simulators.step(both, action)
    np.testing.assert_array_equal(second.reward, [2, 2])  # the mean of 1 and 3
    after = simulators.step(both, action)
    # the short body left: it sees nothing and can do nothing
    assert not after.obs[:, 1].any() and not (after.terminated | after.truncated).any()
    np.testing.assert_array_equal(after.avail[0], [[1, 1, 1], [1, 0, 0]])
    last = simulators.step(both[1:], action[1:])
    np.testing.assert_array_equal(last.reward, [0.5])
    last = simulators.step(both[1:], action[1:])
    assert last.truncated.all() and not last.terminated.any()
    np.testing.assert_array_equal(last.obs[0, 0], [start[1] + 4] * 3)


def test_pettingzoo_horizon_cuts_what_does_not_end_itself():
    simulators = envs.make("pettingzoo/particles?horizon=3&limit=100").open(1)
    simulators.reset(np.array([0]), np.array([0]))
    ends = [simulators.step(np.array([0]), np.zeros((1, 2), int)).truncated[0] for _ in range(3)]
    assert ends == [False, False, True]


def test_pettingzoo_actions_reach_the_environment_in_its_own_units():
    particles = importlib.import_module("particles")
    env = particles.parallel_env(continuous=True)
    single = _Single(env, "particles")
    assert single.spec.action_dim == 2 and not single.spec.discrete
    shown = single.reset(0)
    np.testing.assert_array_equal(shown.avail, [[1, 1], [1, 0]])
    single.step(np.array([[-1.0, 1.0], [0.0, 9.0]]))
    np.testing.assert_allclose(env.last["tall"], [0.0, 6.0])
    np.testing.assert_allclose(env.last["short"], [3.0])
    # an agent that left has no actions
    np.testing.assert_array_equal(single.step(np.zeros((2, 2))).avail, [[1, 1], [0, 0]])
    env = particles.parallel_env()
    single = _Single(env, "particles")
    single.reset(0)
    single.step(np.array([2, 0]))
    assert env.last == {"tall": 7, "short": 5}


def test_pettingzoo_takes_all_observations_where_state_is_no_method():
    env = importlib.import_module("particles").parallel_env()
    env.state = {"of": "the author's own"}
    assert _Single(env, "particles").spec.state_dim == 6


def test_pettingzoo_continuous_agents_that_leave_have_no_choice_in_the_data():
    environment = envs.make("pettingzoo/particles?horizon=4&continuous=True")
    episodes, _ = collect(environment, [()], Quality(("random",)), act=acts.uniform(False), episodes=3, seed=0)
    dataset = data.from_arrays(environment.spec, episodes)
    batch = data.gather(dataset, jnp.asarray(dataset.rows))
    assert not batch.avail[2::4, 1].any() and not batch.action[2::4, 1].any()
    for name in ("bc", "omcda"):
        config = algorithms.find(name).config(hidden_sizes=(8,))
        state = omcda_jax.init(jax.random.key(0), environment.spec, config)
        update = jax.jit(omcda_jax.update)
        for _ in range(2):
            state, metrics = update(state, batch)
        assert all(np.isfinite(value).all() for value in metrics.values())


def test_pettingzoo_action_masks():
    shown = envs.make("pettingzoo/particles?horizon=3&masked=True").open(1).reset(np.array([0]), np.array([0]))
    np.testing.assert_array_equal(shown.avail[0], [[0, 1, 1], [0, 1, 1]])


def played(env, steps, action=(0, 0)):
    """What the adapter shows of an episode of `env` with the same action at every step, from the reset on."""
    single = _Single(env, "particles")
    return [single.reset(0), *(single.step(np.array(action)) for _ in range(steps))]


@pytest.mark.parametrize(
    ("ends", "terminated", "truncated"),
    [
        # at each step, what happens to tall and short: terminated, cut, both, or nothing
        (["- -", "T T"], "01", "00"),
        (["- -", "C C"], "00", "01"),
        (["- -", "T C"], "00", "01"),
        (["- -", "B B"], "01", "00"),
        (["- -", "B C"], "00", "01"),
        (["T -", "T -", "T T"], "001", "000"),
        (["T -", "T C"], "00", "01"),
        (["C -", "C T"], "00", "01"),
        (["T -", "T -", "T C"], "000", "001"),
    ],
)
@pytest.mark.parametrize("removes", [True, False], ids=["ended agents leave", "ended agents stay"])
def test_pettingzoo_ends(ends, terminated, truncated, removes):
    """An episode ends when it is over for every agent; the task ended if every agent was terminated."""

    class Scripted(importlib.import_module("particles").Walk):
        def step(self, actions):
            marks = dict(zip(self.possible_agents, ends[self.t].split(), strict=True))
            here = [agent for agent in self.agents if agent in actions]
            self.t += 1
            ended, cut = ({agent: marks[agent] in kind for agent in here} for kind in ("TB", "CB"))
            seen = self._seen()
            if removes:
                self.agents = [agent for agent in here if not (ended[agent] or cut[agent])]
            return seen, dict.fromkeys(here, 1.0), ended, cut, {agent: {} for agent in here}

    shown = played(Scripted(), len(ends))[1:]
    assert "".join(str(int(step.terminated)) for step in shown) == terminated
    assert "".join(str(int(step.truncated)) for step in shown) == truncated


def test_pettingzoo_masks_in_infos_and_rewards_of_one_entry():
    class Told(importlib.import_module("particles").Walk):
        def _told(self, agents):
            return {agent: {"action_mask": np.array([0, self.t % 2, 1], np.int8)} for agent in agents}

        def reset(self, seed=None, options=None):
            seen, _ = super().reset(seed)
            return seen, self._told(seen)

        def step(self, actions):
            seen, rewards, ended, cut, _ = super().step(actions)
            return seen, {agent: np.array([own]) for agent, own in rewards.items()}, ended, cut, self._told(seen)

    first, second, _ = played(Told(), 2, action=(2, 2))
    np.testing.assert_array_equal(first.avail, [[0, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(second.avail, [[0, 1, 1], [0, 1, 1]])
    assert second.reward == 2.0 and np.shape(second.reward) == ()


def test_pettingzoo_simple_spread_collects_by_name(tmp_path):
    assert envs.make("mpe/simple_spread").spec == EnvSpec(3, 18, 54, 5, discrete=False)
    environment = envs.make("pettingzoo/mpe2.simple_spread_v3?N=2")
    assert environment.horizon == 25
    episodes = random_episodes(environment, 3)
    np.testing.assert_array_equal(episodes.length, [25, 25, 25])
    assert not episodes.terminated.any()
    data.from_arrays(environment.spec, episodes)


def test_the_prey_of_simple_tag_flees_from_the_nearest_and_stays_inside():
    see = lambda position, predators: np.concatenate([[0, 0], position, [9] * 4, np.ravel(predators)])
    far = [[5, 5], [-5, 5]]
    # thrust to the left against thrust to the right, and down against up
    ways = lambda thrust: np.array([thrust[2] - thrust[1], thrust[4] - thrust[3]])
    np.testing.assert_allclose(ways(mpe.flee(see([0, 0], [[0.3, 0], *far]))), [-mpe.THRUST, 0], atol=1e-6)
    np.testing.assert_allclose(ways(mpe.flee(see([0, 0], [*far, [0, -0.3]]))), [0, mpe.THRUST], atol=1e-6)
    # with its back to the border it slips away along it
    cornered = ways(mpe.flee(see([-mpe.BORDER, 0.1], [[0.3, 0], *far])))
    assert abs(cornered[1]) > abs(cornered[0])
    assert (mpe.flee(see([0.2, 0.1], [[0.3, 0], *far])) >= 0).all()


def test_simple_tag_pays_predators_for_touches_and_nearness():
    environment = envs.make("mpe/simple_tag")
    assert (environment.spec.num_agents, environment.spec.discrete, environment.horizon) == (3, False, 25)
    assert environment.name == "mpe/simple_tag" and environment.spec.state_dim == 48
    env = mpe.parallel_env()
    single = _Single(env, "tag")
    single.reset(0)
    *predators, prey = env.unwrapped.world.agents
    touches = 0
    for step in range(25):
        if step == 20:
            predators[0].state.p_pos, predators[0].state.p_vel = prey.state.p_pos + [0.1, 0.0], np.array([-1.0, 0.0])
        shown = single.step(np.zeros((3, 5)))
        distance = np.array([np.linalg.norm(own.state.p_pos - prey.state.p_pos) for own in predators])
        touching = (distance < 0.125).sum()
        assert shown.reward == pytest.approx(10 * touching - mpe.PER_DISTANCE * distance.sum(), abs=1e-4)
        touches += touching
        assert shown.truncated == (step == 24) and not shown.terminated
        # until a predator is thrown at it
        assert step >= 20 or np.abs(prey.state.p_pos).max() < 1.1
    assert touches and shown.obs.shape == (3, 16)


def test_an_mpe_world_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(ConfigError, match="mpe: no scenario 'simple_tog'; did you mean 'simple_tag'"):
        envs.make("mpe/simple_tog")
    monkeypatch.setitem(sys.modules, "mpe2", None)
    with pytest.raises(ConfigError, match=r"environment mpe needs a package .*: pip install 'omcda-jax\[mpe\]'"):
        envs.make("mpe/simple_spread")


def broken(name):
    """A walk with one defect that makes learning impossible."""
    from gymnasium import spaces

    class Broken(importlib.import_module("particles").Walk):
        def observation_space(self, agent):
            image = {"position": spaces.Box(-1, 1, (2,)), "image": spaces.Box(0, 255, (2, 2))}
            return spaces.Dict(image) if name == "dict" else super().observation_space(agent)

        def action_space(self, agent):
            bounds = {"unbounded": (-np.inf, np.inf), "half": (0, np.inf), "vast": (-3e38, 3e38)}
            return spaces.Box(*bounds[name], (2,)) if name in bounds else super().action_space(agent)

        def step(self, actions):
            seen, rewards, *rest, _ = super().step(actions)
            infos = {agent: {"action_mask": np.ones(4)} if name == "mask" else {} for agent in seen}
            return seen, {agent: np.ones(2) if name == "rewards" else 1.0 for agent in rewards}, *rest, infos

    return Broken()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unbounded", "actions: expected boxes with finite bounds, to which [-1, 1] is stretched, found bounds -inf"),
        ("half", "found bounds 0 and inf"),
        ("vast", "found bounds -3e+38 and 3e+38"),
        (
            "dict",
            "observation of agent 'tall': expected an array, or a Dict of observation and action_mask, found a Dict",
        ),
        ("rewards", "reward of agent 'tall': expected a number, found shape [2]"),
        ("mask", "action_mask of agent 'tall': expected 3 entries, one per action, found shape [4]"),
    ],
)
def test_pettingzoo_environments_that_cannot_be_learned_from(name, message):
    with pytest.raises(ConfigError, match=f"^environment pettingzoo/particles: .*{re.escape(message)}"):
        played(broken(name), 1) if name in ("rewards", "mask") else _Single(broken(name), "particles")


def test_pettingzoo_actions_stay_within_bounds_that_single_precision_rounds():
    from gymnasium import spaces

    class Narrow(importlib.import_module("particles").Walk):
        space = spaces.Box(np.float32([-0.3, 1e-3]), np.float32([0.1, 3e5]))
        played = []

        def action_space(self, agent):
            return self.space

        def step(self, actions):
            self.played += actions.values()
            return super().step(actions)

    single = _Single(Narrow(), "particles")
    for action in (-1.0, 1.0, 0.1, 7.0):
        single.reset(0)
        single.step(np.full((2, 2), action, np.float32))
    assert len(Narrow.played) == 8 and all(Narrow.space.contains(action) for action in Narrow.played)


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("nowhere.at_all", "expected a module with parallel_env: No module named 'nowhere'"),
        ("json", "expected a module with parallel_env: module 'json' has no attribute"),
        ("particles", "expected ?horizon=STEPS, at least 1, found none declared by the environment"),
        ("particles?horizon=0", "expected ?horizon=STEPS, at least 1, found 0"),
        ("particles?horizon=long", "expected ?horizon=STEPS, at least 1, found long"),
        ("particles?horizon=3&speed=2", "options: parallel_env() got an unexpected keyword argument 'speed'"),
        ("particles?horizon=3&mixed=True", "actions: expected all Discrete or all Box, found Box, Discrete"),
    ],
)
def test_pettingzoo_mistakes(scenario, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        envs.make(f"pettingzoo/{scenario}")


class FakeStarCraft:
    """Answers as smac's documentation says."""

    def __init__(self, map_name, seed=None, continuing_episode=False):
        self.seed, self.t, self.closed, self.continuing = seed, 0, False, continuing_episode

    def get_env_info(self):
        return {"n_agents": 2, "obs_shape": 3, "state_shape": 4, "n_actions": 5, "episode_limit": 3}

    def reset(self):
        self.t = 0

    def get_obs(self):
        return [np.full(3, self.t + agent, np.float32) for agent in range(2)]

    def get_state(self):
        return np.full(4, self.t, np.float32)

    def get_avail_actions(self):
        return [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]

    def step(self, actions):
        assert actions == [1, 0] and all(type(action) is int for action in actions)
        self.t += 1
        if self.seed == 7 and self.t == 2:
            return 12.0, True, {"battle_won": True}
        if self.t == 3:
            # smac says this only for continuing episodes
            return 0.5, True, {"battle_won": False} | ({"episode_limit": True} if self.continuing else {})
        return 0.5, False, {}

    def close(self):
        self.closed = True


@pytest.fixture
def smac(monkeypatch):
    def get_map_params(name):
        return {"3m": {}}[name]

    modules = {
        "smac": {},
        "smac.env": {"StarCraft2Env": FakeStarCraft},
        "smac.env.starcraft2": {},
        "smac.env.starcraft2.maps": {"get_map_params": get_map_params},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def test_smac(smac):
    environment = envs.make("smac/3m")
    spec = environment.spec
    assert (spec.num_agents, spec.obs_dim, spec.state_dim, spec.action_dim, spec.discrete) == (2, 3, 4, 5, True)
    assert (environment.horizon, environment.max_return) == (3, 20.0)
    simulators = environment.open(2)
    both, action = np.array([0, 1]), np.array([[1, 0], [1, 0]])
    shown = simulators.reset(both, np.array([7, 8]))
    np.testing.assert_array_equal(shown.obs, [[[0, 0, 0], [1, 1, 1]]] * 2)
    np.testing.assert_array_equal(shown.avail, [[[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]] * 2)
    simulators.step(both, action)
    shown = simulators.step(both, action)
    np.testing.assert_array_equal(shown.terminated, [True, False])
    np.testing.assert_array_equal(shown.won, [True, False])
    np.testing.assert_array_equal(shown.reward, [12.0, 0.5])
    np.testing.assert_array_equal(shown.global_state, np.full((2, 4), 2))
    shown = simulators.step(both[1:], action[1:])
    assert shown.truncated[0] and not shown.terminated[0] and not shown.won[0]
    simulators.close()


def test_smac_names_the_newest_installed_build_of_the_game(smac, monkeypatch, tmp_path):
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    assert "StarCraft II" not in envs.make("smac/3m").versions
    for build in ("Base9999", "Base75689", "BaseX"):
        (tmp_path / "Versions" / build).mkdir(parents=True)
    assert envs.make("smac/3m").versions["StarCraft II"] == "build 75689"


def test_smac_says_what_to_install_and_which_map_it_does_not_know(smac, monkeypatch):
    with pytest.raises(ConfigError, match="smac scenario: expected one of SMAC's maps, found 'nowhere'"):
        envs.make("smac/nowhere")
    monkeypatch.setitem(sys.modules, "smac.env", None)
    with pytest.raises(ConfigError, match=r"pip install git\+https://github.com/oxwhirl/smac.git, and StarCraft II"):
        envs.make("smac/3m")
