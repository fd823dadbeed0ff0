"""Train the behaviour policies that datasets are collected with.

python experiments/train_behaviour.py --environment=smax/3m --out=omcda_jax/behaviour/weights

The same as `omcda-jax train-behaviour`; --help explains it, and omcda_jax/runner/train_behaviour.py has the code.
"""

import sys

from omcda_jax.runner.main import main

if __name__ == "__main__":
    main(["train-behaviour", *sys.argv[1:]])
