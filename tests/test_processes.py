"""One trial on several processes of this machine, joined by gloo: the same numbers, the same stops, nothing lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
UPDATES = 200


def worker(arguments):
    """The runner on the toy simulator of the runner's tests."""
    sys.path[:0] = [str(ROOT), str(ROOT / "experiments"), str(ROOT / "tests")]
    import test_run

    import run

    run.envs.make = lambda name: test_run.toy()
    return run.main(arguments)


def command(directory, *more, updates=UPDATES):
    import test_run

    shared = [argument for argument in test_run.command(updates=updates) if "data.path" not in argument]
    data = f"--config.data.path={Path(directory).parent / 'data.h5'}"
    return [*shared, data, f"--workdir={directory}", "--config.learner.evaluate_every=100", *more]


def launch(arguments, count, devices=1):
    """Starts `count` processes of the runner with so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    started = []
    for index in range(count):
        several = [f"--coordinator={coordinator}", f"--num_processes={count}", f"--process_id={index}"]
        line = [sys.executable, __file__, *arguments, *(several if count > 1 else [])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(line, env=environment, **pipes))
    return started


def finish(processes, timeout=300):
    said = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], said


def run_whole(arguments, count, devices=1):
    codes, said = finish(launch(arguments, count, devices))
    assert codes == [0] * count, said
    return said


def result_of(directory):
    return json.loads((directory / "result.json").read_text())


def losses(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row["policy/loss"] for row in rows if "policy/loss" in row]


def after(process, words):
    """Reads the process's output up to a line with these words."""
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"{words} not said: {process.stderr.read()}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    import test_run

    directory = tmp_path_factory.mktemp("processes")
    metadata = {"environment": "smax/toy", "quality": "medium", "versions": {"toysim": "1.0"}}
    test_run.data.write(directory / "data.h5", test_run.SPEC, test_run.toy_episodes(), metadata)
    return directory


@pytest.fixture(scope="module")
def whole(place):
    """Two processes with two devices each, undisturbed; every process holds its own half of the data."""
    said = run_whole(command(place / "whole", "--config.data.shards=4"), 2, devices=2)
    assert ["2 processes, 4 devices" in out for out, _ in said] == [True, False], "only the first process talks"
    return place / "whole"


@pytest.mark.parametrize(("count", "devices"), [(1, 1), (1, 4), (4, 1)])
def test_the_number_of_processes_changes_nothing(place, whole, count, devices):
    directory = place / f"on_{count}_{devices}"
    run_whole(command(directory, "--config.data.shards=4"), count, devices)
    np.testing.assert_allclose(losses(directory), losses(whole), rtol=1e-5)
    assert result_of(directory)["evaluation"] == result_of(whole)["evaluation"]


def test_a_run_goes_on_with_other_processes_and_devices(place, whole):
    directory = place / "moved"
    run_whole(command(directory, "--config.data.shards=4", updates=100), 2, devices=2)
    run_whole(command(directory, "--config.data.shards=4"), 1, devices=1)
    np.testing.assert_allclose(losses(directory), losses(whole), rtol=1e-5)


def test_a_signal_to_one_stops_all_after_the_same_update_and_all_go_on_to_the_bit(place, whole):
    directory = place / "stopped"
    arguments = command(directory, "--config.data.shards=4")
    processes = launch(arguments, 2, devices=2)
    after(processes[0], "updates/s")
    processes[1].send_signal(signal.SIGTERM)
    codes, said = finish(processes)
    assert codes == [75, 75], said
    assert "stopped and saved at step" in said[0][0]
    run_whole(arguments, 2, devices=2)
    for key in ("state_sha256", "metrics_sha256"):
        assert result_of(directory)[key] == result_of(whole)[key]


def test_when_one_is_killed_the_other_ends_soon_and_the_pair_goes_on_to_the_bit(place, whole):
    directory = place / "killed"
    arguments = command(directory, "--config.data.shards=4")
    processes = launch(arguments, 2, devices=2)
    after(processes[0], "updates/s")
    processes[1].kill()
    began = time.monotonic()
    codes, said = finish(processes)
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, -signal.SIGKILL), said
    assert time.monotonic() - began < 30
    run_whole(arguments, 2, devices=2)
    for key in ("state_sha256", "metrics_sha256"):
        assert result_of(directory)[key] == result_of(whole)[key]


def test_a_mistake_ends_every_process_with_status_78(place, whole):
    codes, said = finish(launch(command(whole, "--config.algorithm.hidden_sizes=9"), 2))
    assert codes == [78, 78], said
    assert all("holds a run with other settings" in error for _, error in said)


if __name__ == "__main__":
    sys.exit(worker(["run.py", *sys.argv[2:]] if sys.argv[1] == "run.py" else sys.argv))
