"""Updates per second of one core for OMCDA and OMIGA, discrete and continuous; of two checkouts in turn, as a ratio.

    python -m benchmarks.updates                            # this checkout
    python -m benchmarks.updates --against=PATH --rounds=9  # and another one, A B A B ...: medians and their ratio

Sizes are those of SMAX 5m_vs_6m and Hopper 3x1, batch 128, networks 256-256, K 2. Each measurement is a process of its
own, pinned to one core, that scans over updates as training does, each on rows drawn from random data: with one batch
for all, XLA would move work out of the loop. Compilation is left out. What counts are the seconds that the core worked
for the process, so that other work beside it matters little.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from statistics import median

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
# agents, observation, state, actions, discrete
SIZES = {"discrete": (5, 92, 120, 11, True), "continuous": (3, 14, 17, 1, False)}
ROWS, BATCH, UPDATES = 4096, 128, 40


def measure(repeats: int = 3) -> dict[str, float]:
    """Updates per second of one core's work in every case, the best of some repetitions."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax
    import numpy as np

    import omcda_jax

    rates = {}
    for kind, sizes in SIZES.items():
        spec = omcda_jax.EnvSpec(*sizes)
        for config in (omcda_jax.OmcdaConfig(critic_warmup=0, num_samples=2), omcda_jax.OmigaConfig()):
            rows = random_rows(np.random.default_rng(0), spec, omcda_jax.Batch)
            state = omcda_jax.init(jax.random.key(0), spec, config)

            @jax.jit
            def run(state, rows):
                places = jax.random.randint(jax.random.key(0), (UPDATES, BATCH), 0, ROWS)
                draw = lambda place: jax.tree.map(lambda column: column[place], rows)
                return jax.lax.scan(lambda state, place: omcda_jax.update(state, draw(place)), state, places)

            jax.block_until_ready(run(state, rows))
            seconds = []
            for _ in range(repeats):
                began = time.process_time()
                jax.block_until_ready(run(state, rows))
                seconds.append(time.process_time() - began)
            rates[f"{config.name} {kind}"] = UPDATES / min(seconds)
    return rates


def random_rows(random, spec, make):
    """Transitions with every action legal, as many as ROWS."""
    import numpy as np

    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    shape = (ROWS, spec.num_agents)
    legal, no = np.ones((*shape, spec.action_dim), bool), np.zeros(ROWS, bool)
    action = random.uniform(-0.9, 0.9, legal.shape).astype(np.float32)
    if spec.discrete:
        action = random.integers(spec.action_dim, size=shape, dtype=np.int32)
    now, then = ((normal(*shape, spec.obs_dim), normal(ROWS, spec.state_dim)) for _ in range(2))
    return make(*now, legal, action, normal(ROWS), np.ones(ROWS, np.float32), *then, legal, action, no, no)


def measured_in(checkout: pathlib.Path) -> dict[str, float]:
    """`measure` by a process of its own with the package of a checkout."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(_):
    """Print a Markdown table, or as one of its processes the measurements."""
    if flags.FLAGS.measure:
        print(json.dumps(measure()))
        return
    checkouts = [ROOT, *map(pathlib.Path, filter(None, [flags.FLAGS.against]))]
    rounds = []
    for number in range(flags.FLAGS.rounds):
        # whoever comes second finds the machine warmer: the order changes from round to round
        order = checkouts if number % 2 else checkouts[::-1]
        rates = {checkout: measured_in(checkout.resolve()) for checkout in order}
        rounds.append([rates[checkout] for checkout in checkouts])
    print("| case | updates/s | " + ("against | ratio, median (min to max) |" if len(checkouts) > 1 else ""))
    print("|---|---|" + ("---|---|" if len(checkouts) > 1 else ""))
    for case in rounds[0][0]:
        columns = [[one[case] for one in column] for column in zip(*rounds, strict=True)]
        cells = [f"{median(column):.1f}" for column in columns]
        if len(columns) > 1:
            ratios = [a / b for a, b in zip(*columns, strict=True)]
            cells.append(f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        print(f"| {case} | {' | '.join(cells)} |")
    for kind in SIZES:
        times = [one[0][f"omiga {kind}"] / one[0][f"omcda {kind}"] for one in rounds]
        print(
            f"OMCDA's time per update over OMIGA's, {kind}: {median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        )


if __name__ == "__main__":
    flags.DEFINE_string("against", None, "another checkout to compare with")
    flags.DEFINE_boolean("measure", False, "only measure, in this process")
    flags.DEFINE_integer("rounds", 5, "measurements of each checkout")
    app.run(main)
