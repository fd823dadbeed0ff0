"""The page of a run, of trials, of a comparison and of a sweep: what it says, its figures, how it behaves."""

import base64
import dataclasses
import html.parser
import json
import re
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure
from test_run import DIRECTORY, command, result_of, run

from benchmarks.toy import LENGTH, SPEC, environment
from omcda_jax import envs
from omcda_jax.config import to_dict
from omcda_jax.envs.base import HostEnvironment, Map, Simulators, TimeStep, Units
from omcda_jax.runner import figures, page, plots, replay, report, sweep_page, tables
from omcda_jax.runner.outcomes import Trial, trials_of
from omcda_jax.runner.presets import PRESETS, resolve
from omcda_jax.runner.sweep import manifest

__all__ = ["run"]  # fixture

MADE = {
    "versions": {"python": "3.11", "omcda-jax": "0.1.0", "jax": "0.10.2"},
    "platform": "Linux",
    "device": "cpu",
    "git": "0123456789abcdef",
    "git_dirty": False,
    "environment_versions": {"jaxmarl": "0.2.0"},
    "training_seconds": 60.0,
}
DATA = {
    "environment": "smax/3m",
    "quality": "medium",
    "digest": "abc",
    "max_return_to_go": 1.5,
    "statistics": {"return_mean": 1.0, "return_sd": 0.5, "win_rate": 0.25, "length_mean": 20.0, "episodes": 100},
}
STEPS = (200, 400, 600)


def evaluated(mean):
    spread = {"return_sd": 0.4, "return_se": 0.05}
    return {"episodes": 64, "return_mean": mean, **spread, "win_rate": 0.5, "length_mean": 25.0}


def rows(several=None):
    """Metrics of two agents, for a single trial or the same for each of several trials."""
    spread = (lambda value: value) if several is None else (lambda value: [value] * several)
    learning = [
        {
            "step": step,
            "allocation/budget": spread([0.1 * step, 0.3 * step]),
            "allocation/alpha": spread([0.5, 0.25]),
            "allocation/influence": spread([1.0, 3.0]),
            "allocation/price": spread(0.25),
            "policy/divergence": spread([0.1 * step, 0.2 * step]),
            "critic/q_return": spread(step / 100),
            "policy/loss": spread(1 / step),
        }
        for step in STEPS
    ]
    judged = {"return_mean": 1.25, "return_se": 0.1, "win_rate": 0.25}
    return [*learning, {"step": 400} | {f"evaluation/{key}": spread(value) for key, value in judged.items()}]


def settings(*assignments):
    return to_dict(resolve("smac_3m", ["learner.updates=600", *assignments]))


def leave(directory, result, metrics):
    directory.mkdir(parents=True)
    (directory / "result.json").write_text(json.dumps(result))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return str(directory)


def leave_run(directory, **changes):
    result = {"config": settings(), "step": 600, "evaluation": evaluated(1.75), "metrics": rows()[2], "data": DATA}
    result |= MADE | changes
    return leave(directory, result, rows()), result


def leave_trials(directory):
    labels = [{"seed": seed, "algorithm.d_tot": total} for total in (0.3, 0.6) for seed in (0, 1)]
    trials = [
        {"trial": label, "evaluation": evaluated(1 + 0.1 * place), "metrics": {}, "skipped": 0, "diverged": None}
        for place, label in enumerate(labels)
    ]
    trials[3]["diverged"] = "policy/loss"
    result = {"config": settings(), "step": 600, "trials": trials, "data": DATA, **MADE}
    return leave(directory, result, rows(several=4)), result


def leave_comparison(directory):
    entries = []
    for algorithm, means in (("bc", (1.0, 1.5)), ("omcda", (1.5, 2.0))):
        folder = f"smac_3m/{algorithm}/seeds_0-1"
        final = [{"seed": seed, "returns": [mean, mean], **evaluated(mean)} for seed, mean in enumerate(means)]
        config = settings(f"algorithm.name={algorithm}", "learner.evaluate_every=0", "evaluation.episodes=32")
        result = {"config": config, "seeds": [0, 1], "step": 600, "evaluation": final, "diverged": [None, None]}
        result |= {"data": DATA, **MADE}
        leave(directory / folder, result, rows(several=2) if algorithm == "omcda" else [])
        entries.append({"task": "smac_3m", "algorithm": algorithm, "directory": folder, **tables.statistics(result)})
    (directory / "comparison.json").write_text(json.dumps(entries))
    (directory / "comparison.md").write_text("the table\n")
    return str(directory)


class Reader(html.parser.HTMLParser):
    """Tables as lists of rows of cells, figures as JSON, and everything else that is written."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.figures, self.text, self.tags = [], [], "", []
        self._in = ()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "img"):
            self._in = (*self._in, (tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._in[-1][0] == tag, f"</{tag}> closes <{self._in[-1][0]}>"
        self._in = self._in[:-1]

    def handle_data(self, data):
        tags = [tag for tag, _ in self._in]
        if ("script", {"type": "application/json"}) in self._in:
            self.figures.append(json.loads(data))
        elif {"td", "th"} & set(tags):
            self.tables[-1][-1][-1] += data
        elif not {"script", "style"} & set(tags):
            self.text += data


def read(path):
    with open(path, encoding="utf-8") as file:
        return Reader(file.read())


def numbers(values):
    """A trace's numbers, whether written out or packed."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return np.array(values)


def traces(figure):
    return {trace["name"]: trace for trace in figure["data"] if "name" in trace}


def figure_of(shown, axis):
    return next(figure for figure in shown.figures if figure["layout"]["yaxis"].get("title", {}).get("text") == axis)


@pytest.mark.quick
@pytest.mark.parametrize("shares", [False, True])
def test_more_agents_than_are_told_apart_are_rows_of_a_heat_map(shares):
    values = np.arange(1.0, 82.0).reshape(3, 27)
    metrics = [{"step": step, "x": list(row)} for step, row in zip(STEPS, values, strict=True)]
    trial = Trial({}, metrics, 600, {}, None, "")
    figure = figures.agents({"one": [trial], "two": [trial]}, "x", "level", shares=shares)
    assert [trace.type for trace in figure.data] == ["heatmap"] * 2
    assert [trace.visible for trace in figure.data] == [True, False]
    expected = values / values.sum(axis=1, keepdims=True) if shares else values
    np.testing.assert_allclose(figure.data[0].z, expected.T, rtol=1e-6)
    np.testing.assert_array_equal(figure.data[0].x, STEPS)
    assert figure.layout.height > 27 * 12 and figure.layout.yaxis.title.text == "agent"
    few = figures.agents({"one": [trial._replace(rows=rows())]}, "allocation/budget", "share", shares=shares)
    assert [trace.type for trace in few.data] == ["scatter"] * 2


@pytest.mark.quick
@pytest.mark.parametrize(("agents", "areas", "curves"), [(2, 2, 2), (27, 1, 0)])
def test_the_plot_draws_few_agents_as_curves_and_many_as_rows(agents, areas, curves):
    for stacked in (True, False):
        axis = Figure().subplots()
        plots._draw_agents(axis, STEPS, np.ones((agents, 3)).tolist(), stacked=stacked)
        many = agents > plots.MANY
        assert len(axis.collections) == (areas if stacked or many else 0)
        assert len(axis.lines) == (0 if stacked else curves)
        assert axis.get_ylabel() == ("agent" if many else "")


@pytest.mark.quick
def test_the_page_of_a_run_says_what_the_run_left(tmp_path):
    directory, result = leave_run(tmp_path / "run")
    shown = read(page.write(directory, page.of_run(directory, result, with_replay=False)))
    assert "smac_3m: omcda on smax/3m medium" in shown.text and "omcda-jax run --config=smac_3m" in shown.text
    assert shown.tables[0][1:] == [
        ["omcda", "1.750", "1.652", "1.848", "0.500", "25.0", "64"],
        ["data", "1.000", "0.902", "1.098", "0.250", "20.0", "100"],
    ]
    assert shown.tables[1][1][:3] == ["0", "60.0000", "0.5000"]
    updates = str(PRESETS["smac_3m"].learner.updates)
    assert ["learner.updates", "600", updates] in [row for table in shown.tables for row in table]
    returns = traces(figure_of(shown, "return"))["policy"]
    np.testing.assert_allclose(numbers(returns["x"]), [400, 600])
    np.testing.assert_allclose(numbers(returns["y"]), [1.25, 1.75])
    shares = traces(figure_of(shown, "share"))
    np.testing.assert_allclose(numbers(shares["agent 0"]["y"]), [0.25] * 3)
    np.testing.assert_allclose(numbers(shares["agent 1"]["y"]), [0.75] * 3)
    levels, spent = figure_of(shown, "level"), figure_of(shown, "nats")
    assert [trace["name"] for trace in levels["data"]] == ["agent 0", "agent 1", "price"]
    np.testing.assert_allclose(numbers(traces(levels)["price"]["y"]), [0.25] * 3)
    assert [trace["name"] for trace in spent["data"]] == ["agent 0", "agent 1", "budget", "budget"]
    for trace, share in zip(spent["data"], (0.1, 0.2, 0.1, 0.3), strict=True):
        np.testing.assert_allclose(numbers(trace["y"]), share * np.array(STEPS), rtol=1e-6)
    assert [trace["line"]["dash"] for trace in spent["data"]] == ["solid"] * 2 + ["dot"] * 2
    assert spent["data"][3]["line"]["color"] == spent["data"][1]["line"]["color"]
    scale = result["config"]["data"]["reward_scale"]
    value = figure_of(shown, "value")
    np.testing.assert_allclose(numbers(traces(value)["policy"]["y"]), np.array(STEPS) / 100 / scale, rtol=1e-6)
    assert value["layout"]["shapes"][0]["y0"] == 1.5


@pytest.mark.quick
def test_a_page_stands_alone_and_its_figures_are_plotlys(tmp_path):
    directory, result = leave_run(tmp_path / "run")
    shown = read(page.write(directory, page.of_run(directory, result, with_replay=False)))
    assert len(shown.figures) == 9, "return, win rate, shares, levels, influence, divergence, value, price, loss"
    for figure in shown.figures:
        go.Figure(figure)  # refuses what the library does not know
        assert "template" not in figure["layout"]
    for tag, attributes in shown.tags:
        assert tag not in ("link", "iframe") and "href" not in attributes
        assert attributes.get("src", "data:").startswith("data:")
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in shown.tags


@pytest.mark.quick
def test_what_a_run_is_called_cannot_become_part_of_the_page(tmp_path):
    wild = "</script><script>alert(1)</script>"
    directory, result = leave_run(tmp_path / "run")
    result["config"] |= {"name": wild}
    shown = read(page.write(directory, page.of_run(directory, result, with_replay=False)))
    assert wild in shown.text
    figure = figures.metric({wild: trials_of(directory, result), "b": []}, "policy/loss", wild)
    assert "<" not in page.drawing(wild, figure)["json"]


@pytest.mark.quick
def test_trials_are_drawn_by_setting_and_one_that_diverged_is_left_out(tmp_path):
    directory, result = leave_trials(tmp_path / "trials")
    shown = read(page.write(directory, page.of_run(directory, result, with_replay=False)))
    assert shown.tables[0][1:] == [
        ["0.3", "1.050 ± 0.071", "0.500", "2", "0"],
        ["0.6", "1.200 ± 0.000", "0.500", "1", "1"],
    ]
    assert len(shown.tables[1]) == 6 and shown.tables[1][4][-1] == "diverged: policy/loss"
    returns = figure_of(shown, "return")
    assert set(traces(returns)) == {"d_tot=0.3", "d_tot=0.6"}
    np.testing.assert_allclose(numbers(traces(returns)["d_tot=0.3"]["y"]), [1.25, 1.05], rtol=1e-6)
    np.testing.assert_allclose(numbers(traces(returns)["d_tot=0.6"]["y"]), [1.25, 1.2], rtol=1e-6)
    band = next(trace for trace in returns["data"] if trace.get("fill") == "toself")
    np.testing.assert_allclose(numbers(band["y"]), [1.25, 1.1, 1.0, 1.25], rtol=1e-6)
    levels = figure_of(shown, "level")
    labels = [button["label"] for button in levels["layout"]["updatemenus"][0]["buttons"]]
    assert labels == ["d_tot=0.3", "d_tot=0.6"]
    assert levels["layout"]["updatemenus"][0]["buttons"][1]["args"][0]["visible"] == [False] * 3 + [True] * 3


@pytest.mark.quick
def test_shares_of_trials_are_one_page(tmp_path):
    for index in range(2):
        _, result = leave_trials(tmp_path / "trials" / f"share_{index}_of_2")
    directory = str(tmp_path / "trials")
    shown = read(page.write(directory, page.of_run(directory, report.shares(directory), with_replay=False)))
    assert "8 trials" in shown.text and len(shown.tables[1]) == 10


@pytest.mark.quick
def test_long_curves_are_thinned_and_keep_their_ends(tmp_path):
    directory, result = leave_run(tmp_path / "run")
    trial = trials_of(directory, result)[0]
    long = trial._replace(rows=[{"step": step, "policy/loss": step / 7} for step in range(1, 50_001)])
    drawn = figures.metric({"": [long]}, "policy/loss", "loss").data[0]
    assert len(drawn.x) == figures.LARGEST and (drawn.x[0], drawn.x[-1]) == (1, 50_000)
    np.testing.assert_allclose(drawn.y, drawn.x / 7, rtol=1e-6)


@pytest.mark.quick
def test_the_command_of_a_page_makes_the_same_settings():
    changed = ["algorithm.name=bc", "seed=3", "data.quality=good", "algorithm.hidden_sizes=8,8", "data.episodes=none"]
    config = settings(*changed, "data.transitions=100")
    words = page.command(config).split()
    assert words[:3] == ["omcda-jax", "run", "--config=smac_3m"] and "--config.seed=3" in words
    again = resolve("smac_3m", [word.removeprefix("--config.") for word in words[3:]])
    assert to_dict(again) == config
    assert len(words) == 10, "what the preset has is not repeated"


@pytest.mark.quick
def test_the_page_of_a_comparison_says_who_is_better_and_how_sure_that_is(tmp_path, capsys):
    directory = leave_comparison(tmp_path)
    assert report.main(["report", directory, "--noreplay"]) == 0
    assert "the table" in capsys.readouterr().out
    shown = read(tmp_path / "report.html")
    assert [row[:5] for row in shown.tables[0][1:]] == [
        ["smac_3m", "bc", "1.250", "0.354", "1.250"],
        ["smac_3m", "omcda", "1.750", "0.354", "1.750"],
    ]
    # of the four pairs of seeds omcda wins three, and one is a tie
    assert shown.tables[1][1][:3] == ["bc", "omcda", "0.12"]
    assert shown.tables[1][2][:3] == ["omcda", "bc", "0.88"]
    profile = traces(figure_of(shown, "share of runs above"))
    # 0.75 standard deviations above the data is between the seeds of bc, at 0 and 1, and below omcda's, at 1 and 2
    place = int(np.searchsorted(numbers(profile["bc"]["x"]), 0.75))
    assert numbers(profile["bc"]["y"])[place] == 0.5 and numbers(profile["omcda"]["y"])[place] == 1.0
    assert (
        "omcda-jax compare --tasks=smac_3m --algorithms=bc,omcda --seeds=0,1 --config.learner.updates=600" in shown.text
    )
    for figure in shown.figures:
        go.Figure(figure)


@pytest.mark.quick
def test_a_comparison_of_an_earlier_version_says_what_to_do(tmp_path, capsys):
    directory = leave_comparison(tmp_path)
    entries = json.loads((tmp_path / "comparison.json").read_text())
    del entries[0]["directory"]
    (tmp_path / "comparison.json").write_text(json.dumps(entries))
    assert report.main(["report", directory]) == 78
    assert "compare --report_only writes it again" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def leave_sweep(directory):
    """A finished population, a finished single trial with another algorithm, and an unfinished trial."""
    bc, omcda = ({"task": "smac_3m", "algorithm.name": name} for name in ("bc", "omcda"))
    rows = [
        ("a", [omcda | {"seed": str(seed), "algorithm.d_tot": total} for total in ("0.3", "0.6") for seed in (0, 1)]),
        ("b", [bc | {"seed": "0"}]),
        ("c", [bc | {"seed": "1"}]),
    ]
    listed = [
        manifest.Row(number, name, ["omcda-jax", "run", f"--name={name}"], "host", 600, "p", trials)
        for number, (name, trials) in enumerate(rows)
    ]
    manifest.extend(str(directory), lambda there: listed)
    for name, make, config in (("a", leave_trials, settings()), ("b", leave_run, settings("algorithm.name=bc"))):
        folder = directory / "runs" / name
        _, result = make(folder)
        (folder / "result.json").write_text(json.dumps(result | {"finished": True, "config": config}))
        (folder / "config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.mark.quick
@pytest.mark.parametrize("offline", [False, True])
def test_the_page_of_a_search_shows_its_trials_and_says_what_it_went_by(offline):
    values = [1.0, None, 3.0, 2.0, None]
    trials = [
        {"number": number, "settings": {"algorithm.d_tot": str(number)}, "value": value, "ended": number < 4}
        for number, value in enumerate(values)
    ]
    searched = {"metric": "x", "direction": "maximize", "wanted": 5, "offline": offline, "trials": trials}
    said, drawn, honest, listed = sweep_page.search_parts(searched)
    assert said["text"] == "search by x: 4 of 5 trials ended, the best 3 with algorithm.d_tot=2."
    [figure] = drawn["figures"]
    course, best = json.loads(figure["json"])["data"]
    assert (course["x"], course["y"], best["y"]) == ([0, 2, 3], [1.0, 3.0, 2.0], [1.0, 3.0, 3.0])
    assert ("tuning by online return is not offline evaluation" in honest["text"]) == (not offline)
    assert [row[-1] for row in listed["rows"]] == ["1", "no value", "3", "2", "open"]


@pytest.mark.quick
def test_the_page_of_a_sweep_says_what_its_settings_came_to(tmp_path, capsys):
    directory = leave_sweep(tmp_path / "sweep")
    assert report.main(["report", directory, "--noreplay"]) == 0
    assert (tmp_path / "sweep" / "seeds.md").read_text() in capsys.readouterr().out
    shown = read(tmp_path / "sweep" / "report.html")
    assert "2 of 3 rows done, 5 trials" in shown.text and "tuned online" in shown.text
    heading, *rows = shown.tables[0]
    cells = [dict(zip(heading, row, strict=True)) for row in rows]
    assert [(cell["algorithm.name"], cell["algorithm.d_tot"], cell["mean"], cell["diverged"]) for cell in cells] == [
        ("omcda", "0.3", "1.05", "0"),
        ("omcda", "0.6", "1.2", "1"),
        ("bc", "", "1.75", "0"),
    ]
    totals = next(f for f in shown.figures if f["layout"]["xaxis"].get("title", {}).get("text") == "algorithm.d_tot")
    points, means = totals["data"]
    assert (points["x"], points["y"]) == ([0.3, 0.3, 0.6], [1.0, 1.1, 1.2])
    np.testing.assert_allclose(means["y"], [1.05, 1.2])
    assert figure_of(shown, "return")["data"][0]["x"] == ["omcda", "omcda", "omcda", "bc"]
    curves = next(f for f in shown.figures if f["layout"]["xaxis"].get("title", {}).get("text") == "updates")
    assert set(traces(curves)) == {"omcda, d_tot=0.3", "omcda, d_tot=0.6", "bc"}
    assert len(next(table for table in shown.tables if table[0][-1] == "run")) == 6
    for figure in shown.figures:
        go.Figure(figure)


@pytest.mark.quick
@pytest.mark.parametrize("leave_results", [leave_comparison, leave_sweep])
@pytest.mark.parametrize("simulator", ["3.3.0", "4.0.0"])
def test_the_page_warns_of_results_that_are_not_comparable(tmp_path, leave_results, simulator):
    directory = leave_results(tmp_path)
    for path, version in zip(sorted(tmp_path.rglob("result.json")), ("3.3.0", simulator), strict=True):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"environment_versions": {"game": version}}))
    assert report.main(["report", directory, "--noreplay"]) == 0
    assert ("Not comparable" in read(tmp_path / "report.html").text) == (simulator == "4.0.0")


@pytest.mark.quick
def test_the_interval_of_a_profile_resamples_seeds_within_tasks():
    share, low, high = tables.performance_profile(
        [np.array([0.0, 1.0]), np.array([1.0, 1.0])], np.array([-1.0, 0.5, 2.0])
    )
    np.testing.assert_array_equal(share, [1.0, 0.75, 0.0])
    # the first task's half is drawn as none, half or all of its runs; the second's always counts whole
    np.testing.assert_array_equal(low, [1.0, 0.5, 0.0])
    np.testing.assert_array_equal(high, [1.0, 1.0, 0.0])


@pytest.mark.quick
def test_the_probability_of_improvement_is_averaged_over_tasks():
    ours, theirs = [np.array([1.0, 3.0]), np.array([0.0])], [np.array([2.0, 2.0]), np.array([0.0])]
    chance, low, high = tables.probability_of_improvement(ours, theirs)
    assert (chance, low, high) == (0.5, 0.25, 0.75), "half of the first task, a tie on the second"


@pytest.mark.quick
def test_without_plotly_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    directory, _ = leave_run(tmp_path / "run")
    for name in ("sweep_page", "comparison_page", "page", "replay", "figures"):
        monkeypatch.delattr(f"omcda_jax.runner.{name}")
        monkeypatch.delitem(sys.modules, f"omcda_jax.runner.{name}")
    for name in ("plotly", "plotly.graph_objects"):
        monkeypatch.setitem(sys.modules, name, None)
    assert report.main(["report", directory]) == 78
    shown = capsys.readouterr()
    assert "omcda  1.750 ± 0.050" in shown.out, "the table comes all the same"
    assert re.fullmatch(r"error: no page: it needs a package \(.*\): pip install 'omcda-jax\[report\]'\n", shown.err)


def with_map():
    """The toy with a map; in the second half of an episode, agent 1 acts on agent 0."""

    def units(env_state):
        time = env_state[0]
        return Units(
            position=jnp.array([[0.0, 0.0], [4.0, 2.0]]) + time,
            radius=jnp.full(2, 0.5),
            health=jnp.array([1.0, 1.0]) - jnp.array([0.0, 0.25]) * time,
            team=jnp.array([0, 1]),
            kind=jnp.array([0, 0]),
            target=jnp.where(time >= 2, jnp.array([0, 0]), jnp.array([0, 1])),
        )

    return dataclasses.replace(environment(), map=Map(("robot",), units))


def on_host():
    """The toy's sizes on the host, with a picture."""

    def show(index):
        no = np.zeros(len(index), bool)
        obs, avail = np.zeros((len(index), 2, 3), np.float32), np.ones((len(index), 2, 3), bool)
        return TimeStep(obs, np.zeros((len(index), 2), np.float32), avail, no, no, no, no)

    def opened(copies):
        reset, step = (lambda index, seed: show(index)), (lambda index, action: show(index))
        return Simulators(reset, step, lambda: np.full((16, 16, 3), 200, np.uint8), lambda: None)

    return HostEnvironment("smax/toy", SPEC, LENGTH, 2.0, {}, opened)


def test_an_episode_is_played_again_from_the_checkpoint(run, monkeypatch, capsys):
    """On a map, as a film, and not at all; the same command writes the page."""
    assert run.main(command(updates=10)) == 0
    assert report.main(["report", str(DIRECTORY)]) == 0
    assert figure_of(read(DIRECTORY / "report.html"), "return")["layout"]["yaxis2"], (
        "without a map, rewards and actions"
    )
    monkeypatch.setattr(envs, "make", lambda name: with_map())
    assert report.main(["report", str(DIRECTORY)]) == 0
    shown = read(DIRECTORY / "report.html")
    returned = re.search(r"Greedy episode after 10 updates: 4 steps, return ([\d.]+)\.", shown.text)[1]
    assert float(returned) == pytest.approx(result_of()["evaluation"]["return_mean"])
    moving = next(figure for figure in shown.figures if "frames" in figure)
    assert [frame["name"] for frame in moving["frames"]] == ["0", "1", "2", "3", "4"]
    assert moving["frames"][4]["layout"]["title"]["text"] == f"step 4, return {float(returned):.2f}"
    drawn = [[trace for trace in frame["data"] if trace["mode"] == "lines"] for frame in moving["frames"]]
    lines = [[len(numbers(trace["x"])) for trace in teams] for teams in drawn]
    assert lines == [[0, 0], [0, 0], [0, 3], [0, 3], [0, 0]], "from agent 1 to agent 0, while it is there"
    final = {trace["name"]: trace for trace in moving["frames"][3]["data"] if "name" in trace}
    assert final["enemies"]["text"] == ["robot, health 25%"]
    monkeypatch.setattr(envs, "make", lambda name: on_host())
    film = replay.replay(trials_of(str(DIRECTORY), result_of())[0], result_of()["config"]).film
    assert film.startswith("data:image/webp;base64,")
    shutil.rmtree(DIRECTORY / "checkpoints")
    words = replay.replay(trials_of(str(DIRECTORY), result_of())[0], result_of()["config"]).words
    assert words.startswith("No replay: ") and "expected a checkpoint, found none" in words


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def browser():
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium in the PATH: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_a_browser_shows_the_page_without_a_complaint_and_sorts_its_tables(browser, tmp_path):
    directory, result = leave_trials(tmp_path / "trials")
    made = page.of_run(directory, result, with_replay=False)
    toy = with_map()
    moments = [toy.map.units((jnp.float32(time), None)) for time in range(3)]
    units = Units(*(np.stack(values) for values in zip(*moments, strict=True)))
    moving = page.drawing("an episode", replay.moving(toy.map, units, np.ones(2)))
    section = page.Section("An episode", [{"kind": "figures", "figures": [moving]}])
    path = page.write(directory, made._replace(sections=[section, *made.sections]))
    phone = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    complaints, asked = [], []
    phone.on("console", lambda message: complaints.append(message.text))
    phone.on("pageerror", lambda error: complaints.append(str(error)))
    phone.on("request", lambda request: asked.append(request.url))
    phone.goto(f"file://{path}")
    phone.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    plots = phone.locator(".plot")
    for place in range(plots.count()):
        plots.nth(place).scroll_into_view_if_needed()
        plots.nth(place).locator("svg.main-svg").first.wait_for()
    assert plots.count() == len(read(path).figures)
    assert phone.evaluate("document.documentElement.scrollWidth") == 390, "nothing is wider than the screen"
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    cells = phone.locator("table").nth(1).locator("tbody tr td:nth-child(3)")
    column = lambda: [cell.text_content() for cell in cells.all()]
    button = phone.locator("table").nth(1).locator("th button").nth(2)
    button.click()
    assert column() == sorted(column()) and column()[0].startswith("1.000")
    button.click()
    assert column() == sorted(column(), reverse=True) and column()[0].startswith("1.300")
    plots.first.locator("text=play").click()
    phone.locator("text=step 2, return 2.00").wait_for()
    assert [complaints, asked] == [[], [f"file://{path}"]]
    assert len(phone.screenshot(full_page=True)) > 20_000
