"""What the SMAC presets share."""

from omcda_jax import OmcdaConfig
from omcda_jax.config import DataConfig, EvaluationConfig, ExperimentConfig, LearnerConfig


def base(name: str, scenario: str, *, critic_warmup: int = 10_000, updates: int = 20_000) -> ExperimentConfig:
    """Returns OMCDA on 1000 episodes of the scenario's medium behaviour.

    Args:
        name: of the preset.
        scenario: of the SMAX family, for instance `3m`.
        critic_warmup: credit travels one step in about 200 updates, so longer episodes want more.
        updates: in all.
    """
    return ExperimentConfig(
        name=name,
        algorithm=OmcdaConfig(d_tot=0.6, discount=0.99, critic_warmup=critic_warmup),
        # SMAX returns are at most 2, SMAC's 20.
        data=DataConfig(environment=f"smax/{scenario}", quality="medium", episodes=1000, reward_scale=10.0),
        learner=LearnerConfig(updates=updates, batch_size=128),
        evaluation=EvaluationConfig(episodes=256),
    )
