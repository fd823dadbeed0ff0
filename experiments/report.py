"""Print a finished run's table again and draw its plot again: `python experiments/report.py RUN_DIRECTORY`.

The same as `omcda-jax report`; omcda_jax/runner/report.py is what it does.
"""

import sys

from omcda_jax.runner.main import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
