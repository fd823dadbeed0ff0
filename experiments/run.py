"""Train an offline algorithm, evaluate it and report: `python experiments/run.py --config=smac_5m6m`.

The same as `omcda-jax run`; --help explains it, and omcda_jax/runner/run.py has the code.
"""

import sys

from omcda_jax.runner.main import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
