"""What the MuJoCo presets share."""

from omcda_jax import OmcdaConfig
from omcda_jax.config import DataConfig, EvaluationConfig, ExperimentConfig, LearnerConfig


def base(name: str, scenario: str, quality: str) -> ExperimentConfig:
    """Returns OMCDA on 100,000 transitions of a multi-agent MuJoCo task.

    Args:
        name: of the preset.
        scenario: of the mamujoco family, for instance `Hopper_3x1`.
        quality: of the behaviour that made the data.
    """
    return ExperimentConfig(
        name=name,
        algorithm=OmcdaConfig(
            d_tot=0.3,
            d_min=0.001,
            discount=0.99,
            # quicker targets than SMAC's: credit has to travel about 100 steps
            target_rate=0.01,
            # single policies swing by half their return from one checkpoint to the next; their average does not
            policy_average_rate=0.001,
            critic_warmup=8_000,
            critic_layer_norm=True,
            num_samples=2,
        ),
        data=DataConfig(
            environment=f"mamujoco/{scenario}",
            quality=quality,
            episodes=None,
            transitions=100_000,
            # brings returns-to-go to SMAC's scale, which the critics start from
            reward_scale=0.1,
            normalise=True,
        ),
        learner=LearnerConfig(updates=30_000, batch_size=128, evaluate_every=2_000, checkpoint_every=2_000),
        evaluation=EvaluationConfig(episodes=20),
    )
