"""Settings of the baselines where a family of tasks asks for others than the algorithms' defaults.

The defaults are published values, named with their sources in the algorithms' files, where returns reach 20 on SMAC.
SMAX's reach 2, and the MuJoCo presets take a tenth of every reward, so temperatures in units of return and distances
beside returns weigh a tenth of them: for OMIGA, ComaDICE, and on MuJoCo ICQ's policy and OMAR's actor, the same loss up
to a factor. Penalties, whose log-sum-exp has a scale of its own, are the best of three values a decade apart, on MuJoCo
CQL's for all; ICQ's other temperatures are the defaults, the best of three where others were tried (WORKSPACE.md).
"""

from omcda_jax import CfcqlConfig, ComadiceConfig, CqlConfig, IcqConfig, OmarConfig, OmigaConfig

BASELINES = {
    "smax": {
        "cql": CqlConfig(penalty=100.0),
        "omar": OmarConfig(penalty=100.0),
        "omiga": OmigaConfig(alpha=1.0),
        "cfcql": CfcqlConfig(penalty=500.0),
        "comadice": ComadiceConfig(alpha=1.0),
    },
    "mamujoco": {
        "cql": CqlConfig(penalty=10.0),
        "icq": IcqConfig(policy_temperature=10.0),
        # .7 |pi - a*|^2 - .3 q of the published c = .7, with ten times the q and divided by the sum of both weights
        "omar": OmarConfig(coefficient=0.7 / 3.7, penalty=10.0),
        "omiga": OmigaConfig(alpha=1.0),
        # agents weighed alike need no clone
        "cfcql": CfcqlConfig(penalty=10.0, temperature=0.0, behaviour_updates=0),
        "comadice": ComadiceConfig(alpha=1.0),
    },
}
