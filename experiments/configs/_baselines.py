"""Settings of the baselines where a family of tasks asks for others than the algorithms' defaults, which suit SMAX.

Sources of the published values are named in the algorithms' files. The MuJoCo presets take a tenth of every reward, so
temperatures in units of return and distances beside returns weigh a tenth of what was published: for ICQ, OMIGA,
ComaDICE and OMAR's actor the same loss up to a factor. That does not hold for the log-sum-exp of the penalties, which
sees flatter values; theirs is the best of .1, 1 and 10 (WORKSPACE.md).
"""

from omcda_jax import CfcqlConfig, ComadiceConfig, CqlConfig, IcqConfig, OmarConfig, OmigaConfig

BASELINES = {
    "mamujoco": {
        "cql": CqlConfig(penalty=10.0),
        "icq": IcqConfig(policy_temperature=10.0, value_temperature=100.0),
        # .7 |pi - a*|^2 - .3 q of the published c = .7, with ten times the q and divided by the sum of both weights
        "omar": OmarConfig(coefficient=0.7 / 3.7, penalty=10.0),
        "omiga": OmigaConfig(alpha=1.0),
        # agents weighed alike need no clone
        "cfcql": CfcqlConfig(penalty=10.0, temperature=0.0, behaviour_updates=0),
        "comadice": ComadiceConfig(alpha=1.0),
    }
}
