"""Print a finished run's table again and write its page: `python experiments/report.py DIRECTORY`.

The same as `omcda-jax report`; omcda_jax/runner/report.py has the code.
"""

import sys

from omcda_jax.runner.main import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
