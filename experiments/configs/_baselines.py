"""Settings of the baselines where a family of tasks asks for others than the algorithms' defaults, which suit SMAX.

The starting values of the comparison in README.md; sources are named in the algorithms' files. The MuJoCo presets take
a tenth of every reward, so temperatures and penalties in units of return are a tenth of the published ones.
"""

from omcda_jax import CfcqlConfig, ComadiceConfig, CqlConfig, IcqConfig, OmarConfig, OmigaConfig

BASELINES = {
    "mamujoco": {
        "cql": CqlConfig(penalty=0.1),
        "icq": IcqConfig(policy_temperature=10.0, value_temperature=100.0),
        "omar": OmarConfig(coefficient=0.7, penalty=0.1),
        "omiga": OmigaConfig(alpha=1.0),
        # agents weighed alike need no clone
        "cfcql": CfcqlConfig(penalty=0.1, temperature=0.0, behaviour_updates=0),
        # in effect no cap; JSON knows no infinity
        "comadice": ComadiceConfig(alpha=1.0, max_weight=1e9),
    }
}
