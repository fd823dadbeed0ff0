"""Files that run a sweep on a cluster, checked against the schemas of the programs that read them."""

import argparse
import json
import os
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from omcda_jax.runner.sweep import command as sweep
from omcda_jax.runner.sweep.emit import KINDS

pytestmark = pytest.mark.quick

SCHEMAS = Path(__file__).parent / "fixtures" / "schemas"
GRID = "seed=0..4; algorithm.d_tot=0.6,1.8 | seed=0; algorithm.d_tot=loguniform(0.1,1,2)"
LINE = ["sweep", "--config=smac_3m", f"--grid={GRID}", "--claim", "--jobs=2", "--config.learner.updates=300"]
OPTIONS = {
    "jobset": "image=registry/omcda:1,claim=disk,accelerator=tpu-v5-lite-podslice,topology=2x4,chips=8,queue=q",
    "skypilot": "bucket=gs://bucket,accelerator=tpu-v6e-8",
    "xpk": "cluster=pods,tpu_type=v5litepod-8,image=registry/omcda:1,storage=disk,slices=2",
}


def emitted(capsys, kind, *more, options=None, directory="/shared/budgets"):
    """The file's contents, or the message instead."""
    given = OPTIONS[kind] if options is None else options
    # hosts cannot lock files in a bucket
    line = [word for word in LINE if kind != "skypilot" or word != "--claim"]
    line += [f"--emit={kind}", f"--engine_options={given}", f"--directory={directory}", "--hosts=4", *more]
    status, said = sweep.main(line), capsys.readouterr()
    if status:
        return status, said.err
    return shlex.split(said.out, comments=True) if kind == "xpk" else yaml.safe_load(said.out)


def of_one_host(words, host):
    """The command of a host's sweep, parsed from these words as if typed."""
    command = sweep.parse([words[1], *words[2:]])
    assert words[:2] == ["omcda-jax", "sweep"] and command.options.host == host
    return command


@pytest.mark.parametrize("kind", [kind for kind in KINDS if (SCHEMAS / f"{kind}.json").exists()])
def test_a_file_is_what_its_reader_expects(kind, capsys):
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text())
    content = emitted(capsys, kind)
    jsonschema.validate(content, schema)
    # the schema finds a key that the reader does not know
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "retries": 1}, schema)


def test_hosts_of_a_jobset_get_the_sweep_with_their_numbers_and_end_as_they_should(capsys):
    content = emitted(capsys, "jobset", options=OPTIONS["jobset"] + ",restarts=7,grace=30")
    assert content["metadata"] == {"name": "omcda-sweep", "labels": {"kueue.x-k8s.io/queue-name": "q"}}
    policy = content["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert (policy["rules"][0]["action"], policy["rules"][0]["onJobFailureReasons"]) == (
        "FailJobSet",
        ["PodFailurePolicy"],
    )
    job = content["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    actions = {tuple(rule["onExitCodes"]["values"]): rule["action"] for rule in job["podFailurePolicy"]["rules"][:2]}
    assert actions == {(78,): "FailJob", (75,): "Ignore"}
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 30 and pod["restartPolicy"] == "Never"
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 8}
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in container["command"]]
    command, typed = of_one_host(words, 3), sweep.parse([*LINE, "--directory=/shared/budgets"])
    assert command.order == typed.order and command.directory == "/shared/budgets"
    assert command.options == typed.options._replace(host=3, hosts=4)


def test_hosts_of_skypilot_get_the_sweep_with_their_numbers(capsys):
    content = emitted(capsys, "skypilot")
    assert content["resources"]["job_recovery"] == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}
    assert content["file_mounts"] == {"/shared": {"source": "gs://bucket", "mode": "MOUNT"}}
    run = content["run"].replace("$SKYPILOT_NODE_RANK", "2").replace("$SKYPILOT_NUM_NODES", "4")
    assert of_one_host(shlex.split(run)[1:], 2).order.grids == [GRID]


def test_skypilot_itself_reads_the_file(capsys, tmp_path):
    sky = pytest.importorskip("sky")
    task = sky.Task.from_yaml_config(emitted(capsys, "skypilot"))
    [resources] = task.resources
    assert task.num_nodes == 4 and resources.use_spot and list(resources.accelerators) == ["tpu-v6e-8"]


@pytest.mark.parametrize("more", [[], ["--distributed"]])
def test_hosts_of_xpk_get_the_sweep_with_their_numbers(capsys, more):
    *words, command = emitted(capsys, "xpk", *more)
    assert words[:3] == ["xpk", "workload", "create"]
    given = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
    assert (given["tpu-type"], given["num-slices"]) == ("v5litepod-8", "2")
    assert (given["max-restarts"], given["restart-on-exit-codes"]) == ("100", "75")
    assert given["termination-grace-period-seconds"] == "120"
    line = command.removeprefix("--command=").replace("exec ", "exec printf '%s\n' ")
    for (piece, index), host in {("0", "0"): 0, ("0", "1"): 1, ("1", "1"): 3}.items():
        seen = {"MEGASCALE_SLICE_ID": piece, "JOB_COMPLETION_INDEX": index, "PATH": os.environ["PATH"]}
        said = subprocess.run(["bash", "-c", f"({line})"], env=seen, capture_output=True, text=True, check=True).stdout
        ordered = of_one_host(said.splitlines(), host)
        assert ordered.order.grids == [GRID] and ordered.options.hosts == 4 and ordered.order.distributed == bool(more)


def test_xpk_itself_reads_the_command_line(capsys):
    core = pytest.importorskip("xpk.parser.core")
    parser = argparse.ArgumentParser(prog="xpk")
    core.set_parser(parser=parser)
    read = parser.parse_args(emitted(capsys, "xpk")[1:])
    assert (read.workload, read.cluster, read.tpu_type, read.num_slices) == ("omcda-sweep", "pods", "v5litepod-8", 2)
    assert (read.max_restarts, read.restart_on_exit_codes, read.termination_grace_period_seconds) == (
        "100",
        "75",
        "120",
    )
    assert (read.docker_image, read.storage) == ("registry/omcda:1", ["disk"])


@pytest.mark.parametrize(
    ("kind", "options", "directory", "error"),
    [
        (
            "jobset",
            "image=a",
            "/shared/a",
            "expected claim=..., accelerator=..., topology=..., chips=... for --emit=jobset",
        ),
        ("skypilot", OPTIONS["skypilot"] + ",buckt=a", "/shared/a", "buckt: no such option of --emit=skypilot; "),
        ("skypilot", OPTIONS["skypilot"], "/elsewhere", "--directory: expected a path below mount=/shared"),
        ("xpk", OPTIONS["xpk"] + ",slices=3", "/shared/a", "--hosts: expected a multiple of slices=3, found 4"),
        ("jobset", OPTIONS["jobset"] + ",name=A_b", "/shared/a", "name: expected up to 40 small letters"),
        ("skypilot", OPTIONS["skypilot"] + ",spot=yes", "/shared/a", "spot: expected true or false, found 'yes'"),
        ("skypilot", OPTIONS["skypilot"] + ",spot=0", "/shared/a", "spot: expected true or false, found '0'"),
        ("skypilot", OPTIONS["skypilot"] + ",mount=shared", "/shared/a", "mount: expected an absolute path, found 'sh"),
        ("jobset", OPTIONS["jobset"] + ",restarts=abc", "/shared/a", "restarts: expected a whole number, found 'abc'"),
        ("jobset", OPTIONS["jobset"] + ",name=123", "/shared/a", "name: expected up to 40 small letters"),
    ],
)
def test_what_no_file_can_be_made_of_is_one_line(capsys, kind, options, directory, error):
    status, said = emitted(capsys, kind, options=options, directory=directory)
    assert status == 78 and error in said and said.count("\n") == 1


@pytest.mark.parametrize(("spot", "found"), [("True", True), ("false", False)])
def test_skypilot_takes_machines_that_may_be_taken_away_or_not(capsys, spot, found):
    content = emitted(capsys, "skypilot", options=f"{OPTIONS['skypilot']},spot={spot}")
    assert content["resources"]["use_spot"] is found


def test_a_grid_over_several_lines_stays_one_word(capsys):
    grid = "seed=5,6;\n algorithm.d_tot=0.9"
    content = emitted(capsys, "jobset", f"--grid={grid}")
    [job] = content["spec"]["replicatedJobs"]
    words = job["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert f"--grid={grid}" in words and f"--grid={GRID}" in words


def test_what_looks_like_a_number_stays_a_text_where_texts_are_meant(capsys):
    content = emitted(capsys, "jobset", options=OPTIONS["jobset"].replace("claim=disk", "claim=7"))
    [volume] = content["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "7"}
    options = sweep.parse([*LINE, "--engine=slurm", "--engine_options=slurm_account=007,timeout_min=60"]).options
    assert options.engine == {"slurm_account": "007", "timeout_min": 60}


def test_files_that_pods_would_not_find_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}\n")
    for more in ("--rows=rows.jsonl", "--config.data.path=mine.h5"):
        status, said = emitted(capsys, "jobset", more)
        assert status == 78 and "expected a path below mount=/shared, which hosts share" in said
    line = [*LINE, "--emit=skypilot", f"--engine_options={OPTIONS['skypilot']}", "--directory=/shared/a"]
    assert sweep.main(line) == 78
    assert "--claim: expected none with --emit=skypilot" in capsys.readouterr().err


def test_a_sweep_that_cannot_run_is_not_emitted(capsys):
    status, said = emitted(capsys, "jobset", "--grid=algorithm.d_tott=1")
    assert status == 78 and "algorithm.d_tott: no such key" in said
