"""Files that run a sweep on a cluster: a JobSet for Kubernetes, a task for SkyPilot and a command line for xpk.

They are printed, not run. Every host gets the command of the sweep with its own number. Exit status 75 starts a host
again, and 78 ends all hosts. A host that is preempted has time to save.
"""

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omcda_jax.types import ConfigError, suggestion

NUMBERS = {"restarts", "grace", "slices", "chips"}  # options that are whole numbers
PLACES = {"--directory", "--rows", "--config.data.path"}  # flags with files that hosts have to share
GRACE = 120  # seconds to save: one training call, and a checkpoint of a few megabytes
RESTARTS = 100

# The command that builds an image of docker/Dockerfile for TPUs or GPUs.
BUILD = "docker build --file docker/Dockerfile --build-arg ACCELERATOR={} --tag {} ."

# Options of each file in --engine_options; those with None must be given. `mount` is the path of the shared folder.
JOBSET = {
    "name": "omcda-sweep",
    "image": None,
    "claim": None,
    "mount": "/shared",
    "accelerator": None,
    "topology": None,
    "chips": None,
    "queue": "",
    "restarts": RESTARTS,
    "grace": GRACE,
}
XPK = {
    "name": "omcda-sweep",
    "cluster": None,
    "tpu_type": None,
    "image": None,
    "storage": None,
    "mount": "/shared",
    "slices": 1,
    "restarts": RESTARTS,
    "grace": GRACE,
}
SKYPILOT = {
    "name": "omcda-sweep",
    "accelerator": None,
    "bucket": None,
    "mount": "/shared",
    "image": "",
    "setup": "",
    "spot": "true",
}


def jobset(words: Sequence[str], hosts: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JobSet of one job with a pod for each host.

    A pod that ends with 75 or loses its node is replaced, and this does not count as a restart; 78 ends the JobSet.

    Args:
        words: the sweep's command, without the host's number.
        hosts: the number of hosts.
        given: a value for every key of JOBSET.
    """
    container = {
        "name": "sweep",
        "image": given["image"],
        # the cluster fills in the number
        "command": [*words, f"--hosts={hosts}", "--host=$(JOB_COMPLETION_INDEX)"],
        "resources": {"limits": {"google.com/tpu": given["chips"]}},
        "volumeMounts": [{"name": "shared", "mountPath": given["mount"]}],
    }
    selector = {"gke-tpu-accelerator": given["accelerator"], "gke-tpu-topology": given["topology"]}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": given["grace"],
        "nodeSelector": {f"cloud.google.com/{key}": value for key, value in selector.items()},
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": given["claim"]}}],
    }
    ended = lambda action, status: {
        "action": action,
        "onExitCodes": {"containerName": "sweep", "operator": "In", "values": [status]},
    }
    taken = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": hosts,
        "podFailurePolicy": {"rules": [ended("FailJob", os.EX_CONFIG), ended("Ignore", os.EX_TEMPFAIL), taken]},
        "template": {"spec": pod},
    }
    mend = {"name": "somethingToFix", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    labels = {"labels": {"kueue.x-k8s.io/queue-name": given["queue"]}} if given["queue"] else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": given["name"], **labels},
        "spec": {
            "failurePolicy": {"maxRestarts": given["restarts"], "rules": [mend]},
            "replicatedJobs": [{"name": "hosts", "replicas": 1, "template": {"spec": job}}],
        },
    }


def skypilot(words: Sequence[str], hosts: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task for `sky jobs launch`, which recovers preempted hosts.

    Args:
        words: the sweep's command, without the host's number.
        hosts: the number of hosts.
        given: a value for every key of SKYPILOT.

    Raises:
        ConfigError: `spot` is neither true nor false, or hosts would have to lock files in the bucket.
    """
    spot = given["spot"].lower()
    if spot not in ("true", "false"):
        raise ConfigError(f"--engine_options: spot: expected true or false, found {given['spot']!r}")
    if "--claim" in words:
        raise ConfigError("--claim: expected none with --emit=skypilot, because hosts cannot lock files in a bucket")
    own = '--hosts="$SKYPILOT_NUM_NODES" --host="$SKYPILOT_NODE_RANK"'
    image = {"image_id": f"docker:{given['image']}"} if given["image"] else {}
    install = "" if image else f"pip install 'omcda-jax[smax]' 'jax[{_wheel(given['accelerator'])}]'"
    # other errors would not go away: the sweep itself restarts rows that crash
    recovery = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [os.EX_TEMPFAIL]}
    return {
        "name": given["name"],
        "num_nodes": hosts,
        "resources": {
            "accelerators": given["accelerator"],
            "use_spot": spot == "true",
            "job_recovery": recovery,
            **image,
        },
        "file_mounts": {given["mount"]: {"source": given["bucket"], "mode": "MOUNT"}},
        "setup": given["setup"] or install,
        # the signal of a preemption goes to the shell's whole process group
        "run": f"exec {shlex.join(words)} {own}",
    }


def xpk(words: Sequence[str], hosts: int, given: Mapping[str, Any]) -> str:
    """Return a command line of xpk, which makes a JobSet with a job for each slice and a pod for each of its hosts.

    xpk restarts all pods when one of them ends with 75 or is killed; any other status ends the JobSet.

    Args:
        words: the sweep's command, without the host's number.
        hosts: the number of hosts, on all slices together.
        given: a value for every key of XPK.

    Raises:
        ConfigError: the number of hosts is not a multiple of the number of slices.
    """
    slices = given["slices"]
    if slices < 1 or hosts % slices:
        raise ConfigError(f"--hosts: expected a multiple of slices={slices}, found {hosts}")
    # the cluster sets these variables; an unset variable counts as 0
    number = f"$((MEGASCALE_SLICE_ID * {hosts // slices} + JOB_COMPLETION_INDEX))"
    own = f"exec {shlex.join(words)} --hosts={hosts} --host={number}"
    if "--distributed" not in words:
        # with these variables, the slices of independent hosts would wait for each other
        own = f"HOST={number}; unset MEGASCALE_COORDINATOR_ADDRESS MEGASCALE_NUM_SLICES MEGASCALE_SLICE_ID; " + (
            f'exec {shlex.join(words)} --hosts={hosts} --host="$HOST"'
        )
    flags = {
        "workload": given["name"],
        "cluster": given["cluster"],
        "tpu-type": given["tpu_type"],
        "num-slices": slices,
        "docker-image": given["image"],
        "storage": given["storage"],
        "max-restarts": given["restarts"],
        "restart-on-exit-codes": os.EX_TEMPFAIL,
        "termination-grace-period-seconds": given["grace"],
        "command": own,
    }
    return shlex.join(["xpk", "workload", "create", *(f"--{key}={value}" for key, value in flags.items())])


KINDS: dict[str, tuple[Callable[..., dict[str, Any] | str], Mapping[str, Any]]] = {
    "jobset": (jobset, JOBSET),
    "skypilot": (skypilot, SKYPILOT),
    "xpk": (xpk, XPK),
}


def emit(kind: str, words: Sequence[str], hosts: int, options: Mapping[str, str]) -> str:
    """Return the file, or the command line, of one of KINDS.

    Args:
        kind: the kind.
        words: the sweep's command, without the host's number.
        hosts: the number of hosts.
        options: options of the kind, as texts by key.

    Raises:
        ConfigError: an option is missing, unknown or of the wrong type, or hosts do not share a file that the command
            names.
    """
    build, defaults = KINDS[kind]
    flag = "--engine_options"
    for key in options:
        if key not in defaults:
            raise ConfigError(f"{flag}: {key}: no such option of --emit={kind}; {suggestion(key, defaults)}")
    given = {**defaults, **{key: _number(key, value) for key, value in options.items()}}
    missing = [key for key, value in given.items() if value is None]
    if missing:
        build = f"; an image: {BUILD.format('tpu', 'NAME')}" if "image" in missing else ""
        raise ConfigError(f"{flag}: expected {'=..., '.join(missing)}=... for --emit={kind}, found none{build}")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", given["name"]):
        raise ConfigError(f"{flag}: name: expected up to 40 small letters, digits and dashes, found {given['name']!r}")
    if not os.path.isabs(given["mount"]):
        raise ConfigError(f"{flag}: mount: expected an absolute path, found {given['mount']!r}")
    for name, _, path in (word.partition("=") for word in words):
        if name in PLACES and not _is_below(path, given["mount"]):
            raise ConfigError(f"{name}: expected a path below mount={given['mount']}, which hosts share, found {path}")
    wheel = _wheel(given.get("accelerator", "tpu"))
    told = [f"# the image: {BUILD.format(wheel, shlex.quote(given['image']))}"] if given["image"] else []
    built = build(words, hosts, given)
    return "\n".join([*told, *([built] if isinstance(built, str) else _yaml(built))]) + "\n"


def _is_below(path: str, mount: str) -> bool:
    return os.path.isabs(path) and os.path.commonpath([path, mount]) == os.path.normpath(mount)


def _number(key: str, value: str) -> int | str:
    """An option's value, as a number if the option is one."""
    if key not in NUMBERS:
        return value
    if not value.isdecimal():
        raise ConfigError(f"--engine_options: {key}: expected a whole number, found {value!r}")
    return int(value)


def _wheel(accelerator: str) -> str:
    """The extra of jax for an accelerator of this name."""
    return "tpu" if accelerator.lower().startswith("tpu") else "cuda13"


def _yaml(value: Any) -> Iterator[str]:
    """The lines of a value in YAML; scalars and empty values are written as in JSON."""
    entries = value.items() if isinstance(value, dict) else [(None, item) for item in value]
    for key, item in entries:
        start = "- " if key is None else f"{key}: "
        if not isinstance(item, (dict, list)) or not item:
            yield start + json.dumps(item)
            continue
        lines = list(_yaml(item))
        if key is None:
            yield start + lines[0]
            yield from (f"  {line}" for line in lines[1:])
        else:
            yield f"{key}:"
            yield from (f"  {line}" for line in lines)
