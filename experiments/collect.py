"""Make an offline dataset from rollouts of a behaviour policy in a simulator.

python experiments/collect.py --environment=smax/5m_vs_6m --quality=medium --episodes=1000 --seed=0

The same as `omcda-jax collect`; --help explains it, and omcda_jax/runner/collect.py has the code.
"""

import sys

from omcda_jax.runner.main import main

if __name__ == "__main__":
    main(["collect", *sys.argv[1:]])
