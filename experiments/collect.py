"""Make an offline dataset by rolling a behaviour policy out in a simulator.

python experiments/collect.py --environment=smax/5m_vs_6m --quality=medium --episodes=1000 --seed=0

The same as `omcda-jax collect`; --help explains it, and omcda_jax/runner/collect.py is what it does.
"""

import sys

from omcda_jax.runner.main import main

if __name__ == "__main__":
    main(["collect", *sys.argv[1:]])
