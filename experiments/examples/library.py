"""OMCDA inside other JAX code: training under `lax.scan`, a population over d_tot, influence on a critic of your own.

    python experiments/examples/library.py

The game has one step and two agents. Each agent is rewarded for action 0, the first ten times as much as the second.
"""

import jax
import jax.numpy as jnp

import omcda_jax

SPEC = omcda_jax.EnvSpec(num_agents=2, obs_dim=3, state_dim=6, action_dim=4, discrete=True)
PAY = jnp.array([1.0, 0.1])


def draw(key: jax.Array, rows: int = 64) -> omcda_jax.Batch:
    """Return a batch of a behaviour that plays at random."""
    obs_key, action_key = jax.random.split(key)
    obs = jax.random.normal(obs_key, (rows, 2, 3))
    global_state, avail = obs.reshape(rows, 6), jnp.ones((rows, 2, 4), bool)
    action = jax.random.randint(action_key, (rows, 2), 0, 4)
    reward, ends = (action == 0) @ PAY, jnp.zeros(rows)
    return omcda_jax.Batch(obs, global_state, avail, action, reward, ends, obs, global_state, avail)


def train(d_tot: jax.Array, key: jax.Array, updates: int) -> tuple[omcda_jax.TrainState, omcda_jax.Metrics]:
    """Return the state after a whole training run, and the metrics of every update, [updates, ...]."""
    init_key, data_key = jax.random.split(key)
    config = omcda_jax.OmcdaConfig(d_tot=d_tot, critic_warmup=updates // 4, hidden_sizes=(32,))
    state = omcda_jax.init(init_key, SPEC, config)
    return jax.lax.scan(
        lambda state, key: omcda_jax.update(state, draw(key)), state, jax.random.split(data_key, updates)
    )


def share_budget(total: float) -> jax.Array:
    """Return budgets [N] from the influence of two policies, measured on a critic that omcda_jax does not know."""
    values = jnp.broadcast_to(PAY[:, None] * jnp.eye(4)[0], (8, 2, 4))  # [B, N, A] any critic's values
    behaviour = jnp.full(values.shape, -jnp.log(4.0))
    policy = jax.nn.log_softmax(behaviour + values)
    influence = omcda_jax.influence(values, policy - behaviour, jnp.exp(policy), jnp.ones((8, 2), bool))
    return omcda_jax.allocate(influence, jnp.full(2, total / 2), total_budget=total, min_budget=0.01)


def main(updates: int = 2_000) -> dict[str, jax.Array]:
    """Train with three budgets side by side, and print and return what each agent gets."""
    totals = jnp.array([0.1, 0.3, 1.0])
    population = jax.jit(jax.vmap(train, in_axes=(0, None, None)), static_argnums=2)
    state, metrics = population(totals, jax.random.key(0), updates)
    obs = jnp.zeros((3, 1, 2, 3))
    budgets, actions = metrics["allocation/budget"][:, -1], jax.vmap(omcda_jax.act)(state, obs)[:, 0]
    for total, budget, action in zip(totals, budgets, actions, strict=True):
        print(f"d_tot {total:.1f}: budgets {budget}, greedy actions {action}")
    shares = share_budget(1.0)
    print(f"another critic: budgets {shares}")
    return {"budgets": budgets, "actions": actions, "shares": shares}


if __name__ == "__main__":
    main()
