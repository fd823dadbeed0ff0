"""A simulator in JAX: two agents walk on a line and are rewarded for being close to its middle. To train on FILE:

python experiments/run.py --config=smac_3m --config.data.path=FILE \\
    --config.data.environment=examples.environment_in_jax/9"""

import jax
import jax.numpy as jnp

from omcda_jax import Environment, EnvSpec, TimeStep

SPEC = EnvSpec(num_agents=2, obs_dim=2, state_dim=2, action_dim=3, discrete=True)


def make(scenario: str) -> Environment:
    """Return a line of `scenario` places."""
    middle = int(scenario) // 2

    def show(places, reward, end):
        return TimeStep(
            obs=jnp.stack([places, places[::-1]], axis=1) / middle,  # own place, the other's
            global_state=places / middle,
            avail=jnp.ones((2, 3), bool),
            reward=reward,
            terminated=end,
            truncated=jnp.zeros((), bool),
            won=end,
        )

    def reset(key):
        places = jax.random.randint(key, (2,), -middle, middle + 1)
        return (places, 0), show(places, jnp.zeros(()), jnp.zeros((), bool))

    def step(key, env_state, action):
        places, t = env_state
        places = jnp.clip(places + action - 1, -middle, middle)
        end = (places == 0).all()
        shown = show(places, -jnp.abs(places).mean() / middle, end)
        return (places, t + 1), shown.replace(truncated=(t + 1 >= 20) & ~end)

    return Environment(f"examples.environment_in_jax/{scenario}", SPEC, 20, None, {}, reset, step)
