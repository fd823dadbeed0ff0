"""What a critic knows when a policy begins to follow it: its advantages against returns of unseen episodes.

    python -m benchmarks.early                                   # SMAX 5m_vs_6m, about two minutes
    python -m benchmarks.early --overrides=learner.batch_size=64 --updates=6000

OMCDA warms up on four fifths of a preset's episodes. Its values are primed with returns, and its policy is still the
behaviour clone. The table compares the values of its target networks with the returns-to-go G of the remaining fifth,
and of the episodes it learned from:

    passes      passes over the data so far
    explained   1 - var(G - V) / var(G), by the state values alone
    sd of A     spread of the advantages A = Q_tot(s, a) - V_tot(s) of the actions taken, in units of scaled return
    worth       slope of G - V on A, ± a standard error over episodes: what an advantage of one was worth on
                average. 1 if advantages are right, 0 if they are noise on which a policy wastes its budget

Put an override with a comma in double quotes: --overrides='"algorithm.hidden_sizes=128,128"'.
"""

import functools
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import omcda_jax
from omcda_jax import data
from omcda_jax.algorithms import find, normalise, omcda
from omcda_jax.config import require
from omcda_jax.learner import initial_state
from omcda_jax.runner import datasets
from omcda_jax.runner.frame import main as run_command
from omcda_jax.runner.presets import resolve
from omcda_jax.system import new_flags, printing

HELD_OUT, LARGEST = 0.2, 8_000
TITLES, PARTS = ("explained", "sd of A", "worth"), ("held out", "learned")

FLAGS, define = new_flags()
define("string", "preset", "smac_5m6m", "preset of experiments/run.py")
define("list", "overrides", [], "further settings, for instance learner.batch_size=64")
define("integer", "updates", 4_000, "updates of the warm-up")
define("integer", "every", 1_000, "updates between two rows")


def worth(advantage: np.ndarray, excess: np.ndarray, episode: np.ndarray) -> tuple[float, float]:
    """Return the slope of returns in excess of V on advantages, and its standard error over episodes.

    Args:
        advantage: [B] A of the actions taken.
        excess: [B] G - V.
        episode: [B] int, the episode of each step; the errors of steps in one episode are correlated.
    """
    advantage, excess = advantage - advantage.mean(), excess - excess.mean()
    size = np.square(advantage).sum()
    slope = advantage @ excess / size
    each = np.bincount(episode, advantage * (excess - slope * advantage))
    return float(slope), float(np.sqrt(np.square(each).sum()) / size)


def table(preset: str, overrides: Sequence[str], updates: int, every: int) -> None:
    """Warm up and print a row at intervals.

    Raises:
        ConfigError, DatasetError: `every` does not divide `updates`; or as in `resolve`, `data.ensure` or
            `datasets.load`.
    """
    require(0 < every <= updates and updates % every == 0, "--every", f"a divisor of --updates={updates}", every)
    given = [*overrides, f"algorithm.critic_warmup={updates}", f"algorithm.priming={updates}"]
    config = resolve(preset, given, "--preset")
    settings, size = config.data, config.learner.batch_size
    sizes = (settings.episodes, settings.seed, settings.transitions)
    whole, _ = datasets.load(config, data.ensure(settings.environment, settings.quality, *sizes, settings.path))
    whole = data.returns_to_go(whole, [config.algorithm.gamma])
    parts = data.split(whole, HELD_OUT)
    state = initial_state(find("omcda"), config.seed, whole.spec, config.algorithm, normalised=settings.normalise)
    if settings.normalise:
        state = state.replace(normaliser=data.normaliser(whole))

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state, dataset):
        def step(state, _):
            key = jax.random.fold_in(state.key, state.step)
            return omcda_jax.update(state, data.sample(dataset, key, size, gamma=state.config.gamma))[0], None

        return jax.lax.scan(step, state, length=every)[0]

    print(f"| updates | passes | {' | '.join(f'{title}, {part}' for title in TITLES for part in PARTS)} |")
    print(f"|{'---|' * (2 + 2 * len(TITLES))}")
    for _ in range(updates // every):
        state = run(state, parts[0])
        measured = [judged(state, whole, np.asarray(part.rows)) for part in reversed(parts)]
        passes = int(state.step) * size / len(parts[0].rows)
        cells = [each for pair in zip(*measured, strict=True) for each in pair]
        print(f"| {int(state.step)} | {passes:.1f} | {' | '.join(cells)} |", flush=True)


def judged(state: omcda_jax.TrainState, dataset: data.Dataset, rows: np.ndarray) -> list[str]:
    """The cells of one part: explained, sd of A and worth, from at most LARGEST of its rows, drawn at random."""
    rows = np.random.default_rng(0).permutation(rows)[:LARGEST]
    episode = np.cumsum(np.asarray(dataset.first))[rows]
    value, advantage, returns = (np.asarray(x, np.float64) for x in _values(state, dataset, rows))
    whole = np.isfinite(returns)  # a time limit cuts other episodes short
    value, advantage, returns, episode = (x[whole] for x in (value, advantage, returns, episode))
    slope, error = worth(advantage, returns - value, episode)
    explained = 1 - (returns - value).var() / returns.var()
    return [f"{explained:.3f}", f"{advantage.std():.3f}", f"{slope:.2f} ± {error:.2f}"]


@jax.jit
def _values(state, dataset, rows):
    batch = normalise(state, data.gather(dataset, rows, state.config.gamma))
    estimates = omcda.estimate(state.replace(config=state.config.replace(extraction="weighted")), batch)
    return estimates.return_value, jnp.sum(estimates.return_advantage, axis=-1), batch.return_to_go


def main(argv: Sequence[str]) -> int:
    """Run one command line and return the exit status."""
    work = lambda values: table(values.preset, values.overrides, values.updates, values.every)
    return run_command(argv, __doc__, FLAGS, work)


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv)))
