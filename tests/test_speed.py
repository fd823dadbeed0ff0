"""`benchmarks.speed` at toy sizes: what it measures, what it writes, what it refuses."""

import csv
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import rivals, speed, timing
from omcda_jax import ConfigError

FACTS = {"facts": {"platform": "cpu", "device": "A Chip (R)", "devices": 1, "jax": "1.2"}}
ROWS = [
    {"case": "bc", "values": {"updates/s": [200.0, 190.0, 210.0], "MB": 3.0}},
    {"case": "omiga", "values": {"updates/s": [50.0, 49.0, 51.0], "MB": 12.25}},
    {"case": "product", "values": {"GFLOP/s": 90.0}},
    {"case": "cql", "failed": "out of memory"},
]


def printed(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def canned(monkeypatch):
    """Sections answer without measuring; the dictionary says what."""
    answers = {"facts": [FACTS], "algorithms": ROWS, "sizes": [{"case": "sizes", "failed": "no time left"}]}
    monkeypatch.setattr(speed, "ask", lambda document, measure, *unused, **what: answers[measure])
    monkeypatch.setattr(os, "sched_setaffinity", lambda *unused: None)
    return answers


def measured(tmp_path, *words):
    assert speed.main(["speed", f"--results={tmp_path}", *words]) == os.EX_OK
    with open(tmp_path / "speed_a_chip_r.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.quick
def test_a_section_is_a_table_and_rows_of_the_csv(tmp_path, canned, capsys):
    rows = measured(tmp_path, "--sections=algorithms,sizes,flags")
    assert tuple(rows[0]) == speed.COLUMNS
    assert [(row["case"], row["quantity"], float(row["value"]), row["low"], row["high"]) for row in rows] == [
        ("bc", "updates/s", 200.0, "190.0", "210.0"),
        ("bc", "MB", 3.0, "", ""),
        ("omiga", "updates/s", 50.0, "49.0", "51.0"),
        ("omiga", "MB", 12.25, "", ""),
        ("product", "GFLOP/s", 90.0, "", ""),
    ]
    text = capsys.readouterr().out
    assert "# Speed of A Chip (R), 1 core, JAX 1.2" in text
    assert "| | updates/s | MB |\n|---|---|---|\n| bc | 200 (190 to 210) | 3.00 |\n| omiga | 50.0" in text
    assert "\n\n| | GFLOP/s |\n|---|---|\n| product | 90.0 |\n\n- cql: out of memory" in text
    assert "- sizes: no time left" in text and "skipped, command buffers are for GPUs" in text


@pytest.mark.quick
def test_a_section_that_runs_again_replaces_its_rows_alone(tmp_path, canned):
    canned["sizes"] = [{"case": "omcda, 3 agents", "values": {"ms": 20.0}}]
    assert {row["section"] for row in measured(tmp_path, "--sections=algorithms,sizes")} == {"algorithms", "sizes"}
    canned["sizes"] = [{"case": "omcda, 3 agents", "values": {"ms": 10.0}}]
    rows = measured(tmp_path, "--sections=sizes")
    assert [row["value"] for row in rows if row["section"] == "sizes"] == ["10.0"]
    assert len(rows) == 6
    canned["sizes"] = [{"case": "sizes", "failed": "no time left"}]
    assert measured(tmp_path, "--sections=sizes") == rows


@pytest.mark.quick
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--sections=sizes,speed", "--sections: expected some of algorithms, products, sizes, "),
        ("--cores=0", "--cores: expected at least 1, found 0"),
        ("--cores=100000", "--cores: expected at most the "),
        ("--rounds=0", "--rounds: expected at least 1, found 0"),
        ("--seconds=0", "--seconds: expected more than 0, found 0.0"),
        ("--limit_s=-1", "--limit_s: expected more than 0, found -1.0"),
        ("--omiga=tests", "--omiga: expected a checkout with algos/OMIGA.py, found 'tests'"),
        ("--against=tests", "--against: expected a checkout with omcda_jax/__init__.py, found 'tests'"),
        ("--results=/proc/nope", "/proc/nope: expected a folder to write to, found: No such file or directory"),
        ("all", "expected flags only, found 'all'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(capsys, canned, word, message):
    canned.clear()
    assert speed.main(["speed", word]) == os.EX_CONFIG
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


@pytest.mark.quick
def test_a_python_that_is_not_there_is_refused(tmp_path, capsys):
    (tmp_path / "algos").mkdir()
    (tmp_path / "algos" / "OMIGA.py").touch()
    assert speed.main(["speed", f"--omiga={tmp_path}", "--omiga_python=/nonexistent"]) == os.EX_CONFIG
    expected = "error: --omiga_python: expected a Python that can be started, found '/nonexistent'\n"
    assert capsys.readouterr().err == expected


@pytest.mark.quick
def test_packages_that_are_missing_are_listed_with_how_to_carry_them(monkeypatch, capsys):
    there = lambda name: [] if name in ("glfw", "h5py") else [name]
    monkeypatch.setattr(speed.importlib.metadata, "distributions", there)
    assert speed.main(["speed", "--missing"]) == os.EX_OK
    text = capsys.readouterr().out
    assert text.startswith("missing: glfw, h5py\n")
    assert "pip download --dest=wheels" in text and text.rstrip().endswith("--find-links=wheels glfw h5py")


@pytest.mark.quick
def test_a_process_that_ends_early_says_why():
    assert speed.complaint("warming up\nF01 flags.cc:9] Unknown flag --xla_what\n --xla_a: help\n", 1).endswith("what")
    assert speed.complaint("Traceback\nValueError: too large\n", 1) == "ValueError: too large"
    assert speed.complaint("", -9) == "exit status -9"
    worker = rivals.Worker([sys.executable, "-c", "raise SystemExit('no torch here')"])
    with pytest.raises(ConfigError, match="ended: no torch here$"), worker:
        pass


@pytest.mark.quick
def test_two_processes_take_turns():
    script = (
        "import json, sys, time; print('a warning'); print('[]', flush=True)\n"
        "for line in sys.stdin: name, seconds = json.loads(line); print(seconds + {'x': %d, 'y': 7}[name], flush=True)"
    )
    one, other = (rivals.Worker([sys.executable, "-c", script % number]) for number in (1, 2))
    with one, other:
        assert rivals.alternate(one, other, [("x", "x"), ("x", "y")], 2, 0.5) == [[(1.5, 2.5)] * 2, [(1.5, 7.5)] * 2]


@pytest.mark.quick
def test_the_first_update_and_evaluation_of_a_run_are_seen(tmp_path):
    script = (
        "import sys, time; out = open(sys.argv[1], 'w', buffering=1); time.sleep(0.1);"
        """print('{"updates_per_second": 3}', file=out); time.sleep(0.2);"""
        """print('{"evaluation/return_mean": 3}', file=out); time.sleep(0.1)"""
    )
    metrics = tmp_path / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-c", script, str(metrics)]) as process:
        found = speed.watch(process, metrics)
    assert found["first update s"] >= 0.1
    assert found["first evaluation s"] >= found["first update s"] + 0.1
    assert found["first evaluation, processor s"] < found["first evaluation s"]


@pytest.mark.quick
def test_sections_of_several_processes_tell_them_apart(monkeypatch):
    document = speed.Document("unused", None)
    document.facts = FACTS["facts"] | {"platform": "gpu", "devices": 2}
    seen = []

    def ask(document, measure, environment=None, **what):
        seen.append(environment or {})
        if "+WHILE" in seen[-1].get("XLA_FLAGS", ""):
            return [{"case": measure, "failed": "Unknown flag"}]
        if measure == "compilation":
            return [{"case": what["algorithm"], "values": {"compile s": 10.0 / len(seen)}}]
        return [{"case": name, "values": {"updates/s": [5.0 * len(seen), 1.0, 9.0]}} for name in what["wanted"]]

    monkeypatch.setattr(speed, "ask", ask)
    rows = speed.buffers(document, {})
    assert [row["case"].partition(", ")[2] for row in rows[:4]] == ["off", "off", "default", "default"]
    assert rows[4] == {"case": f"loops too ({speed.BUFFERS['loops too']})", "failed": "Unknown flag"}
    assert seen[0]["XLA_FLAGS"].endswith("--xla_gpu_enable_command_buffer=")
    seen.clear()
    first = speed.compilation(document, {})[0]
    assert first == {"case": "omcda", "values": {"cold s": 10.0, "cached s": 5.0, "of cold": 0.5}}
    folders = [environment["JAX_COMPILATION_CACHE_DIR"] for environment in seen]
    assert folders[0] == folders[1] != folders[2] == folders[3]
    seen.clear()
    rows = speed.devices(document, {})
    ratios = [row["values"]["of one device"] for row in rows]
    assert ratios == [1.0, 2.0, 1.0, pytest.approx(4 / 3)]
    assert seen == [{}] * 4


class Meter:
    def __init__(self, rates):
        self.rates, self.asked = iter(rates), []

    def rate(self, seconds):
        self.asked.append(seconds)
        rate = next(self.rates)
        if isinstance(rate, Exception):
            raise rate
        return rate


@pytest.mark.quick
def test_what_fails_is_left_out_and_the_others_go_on(capsys):
    meters = {"a": Meter([1, 2.0, 3.0, 4.0]), "b": Meter([1, 5.0, MemoryError("too\nlarge")])}
    found = timing.in_turns(meters, 3, 0.5, timing.Reporter(60.0))
    assert found == [{"a": 2.0}, {"a": 3.0}, {"a": 4.0}]
    assert meters["a"].asked == [0.0, 0.5, 0.5, 0.5]
    assert printed(capsys) == [{"case": "b", "failed": "too large"}]


@pytest.mark.quick
def test_without_time_nothing_new_is_compiled_or_measured(capsys):
    report = timing.Reporter(-1.0)
    assert timing.in_turns({"a": Meter([1, 2.0])}, 2, 0.5, report) == [{}]
    assert timing.prepare_all({"bc": timing.Case("bc")}, report) == {}
    assert printed(capsys) == [{"case": name, "failed": "no time left"} for name in ("a", "bc")]


def test_when_time_runs_out_later_the_rounds_so_far_count(monkeypatch):
    report = timing.Reporter(60.0)
    calls = iter([False, True])  # asked before the first measurement, and before the second round
    monkeypatch.setattr(report, "over", lambda share=1.0: next(calls))
    assert timing.in_turns({"a": Meter([1, 2.0])}, 5, 0.5, report) == [{"a": 2.0}]


def test_a_training_call_counts_one_update_of_one_trial():
    case = dict(algorithm="bc", agents=2, batch=64)
    single = timing.prepare(timing.Case(**case, length=1))
    # forward and backward through 14 + 2, 256, 256, some outputs: 2 FLOPs per weight and sample, three times
    products = 3 * 2 * 64 * 2 * (16 * 256 + 256 * 256)
    assert products < single.flops < 1.2 * products
    several = timing.prepare(timing.Case(**case, length=3, trials=2))
    assert several.updates == 6
    assert several.flops == pytest.approx(single.flops, rel=0.05)
    assert several.rate(0.01) > 0
    assert several.state.step.tolist() == [3 * (several.state.step[0] // 3)] * 2
    keys = jax.random.key_data(several.state.key)
    assert (keys[0] != keys[1]).any()
    assert several.megabytes > single.megabytes > 0


def test_every_algorithm_has_a_row_beside_omiga(capsys, monkeypatch):
    monkeypatch.setattr(timing, "SIZES", {"continuous": (2, 3, 2, 1, False)})
    monkeypatch.setattr(timing.Products, "rate", lambda self, seconds: 1e9)
    timing.algorithms(timing.Reporter(60.0), rounds=1, seconds=0.01, names=["bc"])
    row, product = printed(capsys)
    assert row["case"] == "bc, continuous"
    assert set(row["values"]) == {"updates/s", "MFLOP", "GFLOP/s", "% of peak", "MB", "compile s"}
    rate, work = row["values"]["updates/s"][0], row["values"]["MFLOP"]
    assert row["values"]["% of peak"][0] == pytest.approx(100 * rate * work / 1e3)
    assert product == {"case": "matrix product", "values": {"GFLOP/s": [1.0, 1.0, 1.0]}}


@pytest.mark.quick
@pytest.mark.parametrize("form", timing.LayerProduct.FORMS)
def test_the_products_of_a_layer_are_what_its_gradient_takes(form, monkeypatch):
    random = np.random.default_rng(0)
    x, w, g = (random.standard_normal(shape).astype(np.float32) for shape in [(6, 4), (4, 4), (6, 4)])
    _, pull = jax.vjp(lambda x, w: x @ w, x, w)
    wanted = {"forward": x @ w, "inputs": pull(g)[0], "weights": pull(g)[1]}[form]
    operands = {"forward": (x, w), "inputs": (g, w), "weights": (x, g)}[form]
    np.testing.assert_allclose(timing.LayerProduct.FORMS[form](*operands), wanted, rtol=1e-5, atol=1e-5)
    moments = iter([0.0, 0.5, 2.0])
    monkeypatch.setattr(timing, "clock_here", lambda: lambda: next(moments))
    meter = timing.LayerProduct(form, 5_000, width=4)
    assert meter.rate(1.0) == 2 * 20 * (2 * 5_000 * 4 * 4) / 2.0, "two calls of twenty products in two seconds"


@pytest.mark.quick
def test_products_have_a_row_for_every_number_of_agents(capsys, monkeypatch):
    monkeypatch.setattr(timing.LayerProduct, "__init__", lambda self, form, rows: setattr(self, "rows", rows))
    monkeypatch.setattr(timing.LayerProduct, "rate", lambda self, seconds: 1e9 * self.rows)
    timing.products(timing.Reporter(60.0), rounds=1, seconds=0.01)
    rows = printed(capsys)
    assert [row["case"] for row in rows] == [f"{agents} agents" for agents in timing.AGENTS]
    assert rows[1]["values"] == {f"{form} GFLOP/s": [1024.0] * 3 for form in timing.LayerProduct.FORMS}
    monkeypatch.setattr(timing.LayerProduct, "rate", lambda self, seconds: 1 / 0)
    timing.products(timing.Reporter(60.0), rounds=1, seconds=0.01)
    assert [row["failed"] for row in printed(capsys)] == ["division by zero"] * 3 * len(timing.AGENTS)
