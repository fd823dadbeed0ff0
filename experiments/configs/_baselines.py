"""Settings of the baselines where a family of tasks asks for others than the algorithms' defaults, which suit SMAX.

The starting values of the comparison in README.md; sources are named in the algorithms' files.
"""

from omcda_jax import CfcqlConfig, ComadiceConfig, IcqConfig, OmarConfig

BASELINES = {
    "mamujoco": {
        "icq": IcqConfig(policy_temperature=100.0),
        "omar": OmarConfig(coefficient=0.7),
        "cfcql": CfcqlConfig(penalty=1.0, temperature=0.0),
        # in effect no cap; JSON knows no infinity
        "comadice": ComadiceConfig(max_weight=1e9),
    }
}
