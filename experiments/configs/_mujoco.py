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
        algorithm=OmcdaConfig(d_tot=0.3, d_min=0.001, discount=0.99, critic_warmup=10_000),
        data=DataConfig(
            environment=f"mamujoco/{scenario}",
            quality=quality,
            episodes=None,
            transitions=100_000,
            reward_scale=0.1,
            normalise=True,
        ),
        learner=LearnerConfig(updates=30_000, batch_size=128, evaluate_every=5_000, checkpoint_every=5_000),
        evaluation=EvaluationConfig(episodes=10),
    )
