"""Run many trials: `python experiments/sweep.py --config=smac_3m --grid='seed=0..4; algorithm.d_tot=0.6,1.8'`.

The same as `omcda-jax sweep`; --help explains it, and omcda_jax/runner/sweep has the code.
"""

import sys

from omcda_jax.runner.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
