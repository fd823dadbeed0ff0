import dataclasses
import json
from typing import ClassVar, Literal

import pytest

from omcda_jax.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LearnerConfig,
    apply_overrides,
    differences,
    replace_settings,
    to_dict,
)
from omcda_jax.types import ConfigError

pytestmark = pytest.mark.quick


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float = 0.5
    gamma: float = 0.9
    low: float = 0.0
    depth: int = 2
    sizes: tuple[int, ...] = (256, 256)
    bounds: tuple[float, float] = (0.0, 1.0)
    rule: Literal["even", "skewed"] = "even"
    decoupled: bool = True
    limit: int | None = None
    name: ClassVar[str] = "full"

    def __post_init__(self):
        if self.low > self.rate:
            raise ValueError(f"low: expected at most rate={self.rate}, found {self.low}")


@dataclasses.dataclass(frozen=True)
class Plain:
    rate: float = 0.1
    gamma: float = 0.8
    width: int = 7
    name: ClassVar[str] = "plain"


ALGORITHMS = {"full": Settings, "plain": Plain}


def preset():
    return ExperimentConfig("p", Settings(), DataConfig("smax/3m"), LearnerConfig(updates=1000))


def override(*assignments):
    return apply_overrides(preset(), assignments)


def test_no_assignment_changes_nothing():
    assert override() == preset()


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("algorithm.rate=1.8", ("algorithm", "rate", 1.8)),
        ("algorithm.rate=2", ("algorithm", "rate", 2.0)),
        ("algorithm.rate=1e-3", ("algorithm", "rate", 0.001)),
        ("algorithm.depth=-3", ("algorithm", "depth", -3)),
        ("algorithm.sizes=64,32,16", ("algorithm", "sizes", (64, 32, 16))),
        ("algorithm.sizes=(8,)", ("algorithm", "sizes", (8,))),
        ("algorithm.sizes=()", ("algorithm", "sizes", ())),
        ("algorithm.bounds=-1,2.5", ("algorithm", "bounds", (-1.0, 2.5))),
        ("algorithm.rule=skewed", ("algorithm", "rule", "skewed")),
        ("algorithm.decoupled=False", ("algorithm", "decoupled", False)),
        ("algorithm.decoupled=true", ("algorithm", "decoupled", True)),
        ("algorithm.limit=5", ("algorithm", "limit", 5)),
        ("algorithm.limit=none", ("algorithm", "limit", None)),
        ("data.path=a=b.h5", ("data", "path", "a=b.h5")),
        ("data.path=None", ("data", "path", None)),
        ("learner.updates=20_000", ("learner", "updates", 20000)),
        ("evaluation.episodes=3", ("evaluation", "episodes", 3)),
    ],
)
def test_values_are_read_by_type_hint(assignment, expected):
    section, field, value = expected
    found = getattr(getattr(override(assignment), section), field)
    assert found == value
    assert type(found) is type(value)


def test_top_level_keys_and_the_later_of_two_win():
    config = override("seed=3", "seed=4", "directory=elsewhere")
    assert (config.seed, config.directory) == (4, "elsewhere")


def test_fields_checked_together_may_change_together():
    assert override("algorithm.low=0.9", "algorithm.rate=1.0").algorithm.low == 0.9


def test_a_dataset_may_be_sized_in_transitions():
    sized = override("data.transitions=100000", "data.episodes=none").data
    assert (sized.episodes, sized.transitions) == (None, 100_000)


def test_settings_that_check_themselves_are_checked_once_whole():
    @dataclasses.dataclass(frozen=True)
    class Checked(Settings):
        def __post_init__(self):
            pass

        def validate(self):
            if self.low > self.rate:
                raise ConfigError(f"low: expected at most {self.rate}, found {self.low}")

    config = dataclasses.replace(preset(), algorithm=Checked())
    assert apply_overrides(config, ["algorithm.low=0.9", "algorithm.rate=1.0"]).algorithm.low == 0.9
    with pytest.raises(ConfigError, match=r"low: expected at most 0\.5, found 0\.9"):
        apply_overrides(config, ["algorithm.low=0.9"])
    with pytest.raises(ConfigError, match=r"low: expected at most 0\.5, found 2\.0"):
        replace_settings(config.algorithm, {"low": 2.0})


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("algorithm.rat=1", r"algorithm\.rat: no such key; did you mean 'algorithm\.rate'\? valid: .*algorithm\.depth"),
        ("lerner.updates=1", r"lerner: no such key; did you mean 'learner'\?"),
        ("seed.x=1", r"seed\.x: seed has no keys below it"),
        ("algorithm.depth=2.5", r"algorithm\.depth: expected an int, found '2\.5'"),
        ("algorithm.rate=fast", r"algorithm\.rate: expected a float, found 'fast'"),
        ("algorithm.decoupled=maybe", r"algorithm\.decoupled: expected true or false, found 'maybe'"),
        ("algorithm.sizes=64,big", r"algorithm\.sizes: expected values separated by commas, each an int, found"),
        ("algorithm.bounds=1,2,3", r"algorithm\.bounds: expected 2 values separated by commas"),
        ("algorithm.rule=odd", r"algorithm\.rule: expected one of even, skewed, found 'odd'"),
        ("algorithm.limit=few", r"algorithm\.limit: expected an int or none, found 'few'"),
        ("algorithm=1", r"algorithm: expected one of its keys \(algorithm\.rate, "),
        ("algorithm.low=0.9", r"^low: expected at most rate=0\.5, found 0\.9$"),
        ("seed", r"seed: expected key=value"),
        ("seed=-1", r"^seed: expected a whole number from 0 to 4294967295, found -1"),
        ("seed=4294967301", r"^seed: expected a whole number from 0 to 4294967295, found 4294967301"),
        ("data.seed=4294967296", r"^data\.seed: expected a whole number from 0 to 4294967295, found 4294967296"),
        ("evaluation.seed=99999999999999999999", r"^evaluation\.seed: expected a whole number from 0 to 4294967295"),
        ("data.environment=3m", r"data\.environment: expected family/scenario such as smax/3m, found '3m'"),
        ("data.reward_scale=nan", r"data\.reward_scale: expected a positive number, found nan"),
        ("data.episodes=0", r"data\.episodes: expected at least 1, found 0"),
        ("data.episodes=none", r"data\.episodes and data\.transitions: expected one of the two set .* found neither"),
        ("data.transitions=10", r"data\.episodes and data\.transitions: expected one of the two set .* found both"),
        ("learner.updates=150", r"learner\.updates: expected a multiple of learner\.updates_per_call=100, found 150"),
        ("learner.batch_size=0", r"learner\.batch_size: expected at least 1, found 0"),
        ("evaluation.episodes=0", r"evaluation\.episodes: expected at least 1, found 0"),
    ],
)
def test_mistakes_are_named_in_one_line(assignment, message):
    with pytest.raises(ConfigError, match=message) as caught:
        override(assignment)
    assert "\n" not in str(caught.value)


def test_settings_as_json_hold_every_value_and_the_algorithms_name():
    algorithm = Settings(rate=0.75, sizes=(3,), limit=4, rule="skewed")
    config = ExperimentConfig(
        "p", algorithm, DataConfig("smax/3m", path="x.h5"), LearnerConfig(300), EvaluationConfig(4), seed=2
    )
    values = json.loads(json.dumps(to_dict(config)))
    assert values["algorithm"] == json.loads(json.dumps({**dataclasses.asdict(algorithm), "name": "full"}))
    assert values["algorithm"]["sizes"] == [3]
    assert (values["data"]["environment"], values["data"]["path"]) == ("smax/3m", "x.h5")
    assert (values["learner"]["updates"], values["evaluation"]["episodes"], values["seed"]) == (300, 4, 2)


def test_differences_name_every_key_that_differs():
    changed = override("learner.updates=2000", "algorithm.sizes=1,2")
    assert differences(to_dict(preset()), to_dict(changed)) == {
        "learner.updates": (1000, 2000),
        "algorithm.sizes": ([256, 256], [1, 2]),
    }
    assert differences(to_dict(preset()), to_dict(preset())) == {}
    plain = dataclasses.replace(preset(), algorithm=Plain())
    other = differences(to_dict(preset()), to_dict(plain))
    assert other["algorithm.depth"] == (2, None)
    assert other["algorithm.width"] == (None, 7)
