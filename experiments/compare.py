"""Compare algorithms on tasks over seeds: `python experiments/compare.py --tasks=smac_5m6m:good --seeds=0,1,2`.

The same as `omcda-jax compare`; --help explains it, and omcda_jax/runner/compare.py has the code.
"""

import sys

from omcda_jax.runner.main import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
