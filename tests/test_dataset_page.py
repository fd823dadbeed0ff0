"""The page of a dataset: its numbers, its figures and its episodes, for every kind of data."""

import dataclasses
import json
import os

import numpy as np
import plotly.graph_objects as go
import pytest
from test_data import METADATA, SPEC, make_episodes
from test_formats import CONTINUOUS, write_omiga
from test_formats import make_episodes as make_continuous
from test_page import figure_of, numbers, read

from omcda_jax import data, envs
from omcda_jax.data import card, formats
from omcda_jax.data.__main__ import main as data_alone
from omcda_jax.envs.base import Environment, Map, Units
from omcda_jax.runner import dataset_figures, dataset_page, page, replay
from omcda_jax.runner.card import main
from omcda_jax.types import EnvSpec

pytestmark = pytest.mark.quick


def contents(spec, episodes, **more):
    return formats.Contents("omcda", spec, episodes, {"statistics": data.statistics(episodes), **more}, ())


def drawn(part):
    figures = {figure["caption"]: json.loads(figure["json"])["data"] for figure in part["figures"]}
    return {caption: [{**trace, **numbers_of(trace)} for trace in data] for caption, data in figures.items()}


def numbers_of(trace):
    """A trace's coordinates, if they are numbers."""
    return {key: numbers(trace[key]) for key in ("x", "y", "customdata") if isinstance(trace.get(key), dict)}


def section(made, title):
    return next(one for one in made.sections if one.title.startswith(title)).parts


def test_the_command_writes_one_page_of_a_file_and_says_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data.write("data.h5", SPEC, make_episodes(), METADATA)
    assert main(["data", "card", "data.h5", "--html=shown/it.html"]) == 0
    assert capsys.readouterr().out == "wrote shown/it.html\n"
    assert not (tmp_path / "data.h5.card").exists(), "the folder is written only if it is asked for"
    shown = read(tmp_path / "shown" / "it.html")
    assert "2 episodes, 5 transitions" in shown.text and "Episode 0, with the lowest return" in shown.text
    assert ["return", "9 ± 8.485 (sd)"] in shown.tables[0]
    assert any(row == ["seed", "3"] for row in shown.tables[-1])
    for figure in shown.figures:
        go.Figure(figure)  # refuses what the library does not know
    for _, attributes in shown.tags:
        assert "href" not in attributes and attributes.get("src", "data:").startswith("data:")


def test_what_the_reader_found_odd_and_repaired_is_on_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    falling = np.array([3, 2, 1, 0, 5, 4, 3, 2, 0], np.float32)
    write_omiga("far.h5", make_continuous(CONTINUOUS, (3, 4), (True, True))._replace(reward=falling))
    assert main(["data", "card", "far.h5", "--html=far.html"]) == 0
    assert "Note: rewards never rise within any episode" in read("far.html").text
    assert main(["data", "card", "far.h5", "--html=far.html", "--rewards=return_to_go"]) == 0
    shown = read("far.html")
    assert "Note:" not in shown.text and ["repaired", "rewards=return_to_go"] in shown.tables[0]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            lambda words: data_alone(["data", *words]),
            "--html: expected omcda-jax data card PATH --html=FILE, found data",
        ),
        (lambda words: main(["data", "verify", *words[1:]]), "expected omcda-jax data card PATH --html=FILE"),
        (lambda words: main(["data", *words, "--environment=smx/3m"]), "did you mean 'smax'?"),
        (
            lambda words: main(["data", *words[:2], "--html=data.h5/page.html"]),
            "data.h5/page.html: cannot write the page",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    data.write("data.h5", SPEC, make_episodes(), METADATA)
    assert command(["card", "data.h5", "--html=page.html"]) == 78
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "page.html").exists()


def test_an_environment_that_a_file_names_is_imported_only_if_it_comes_with_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "named_in_a_file.py").write_text("open('imported', 'w')\nmake = None\n")
    data.write("data.h5", SPEC, make_episodes(), METADATA | {"environment": "named_in_a_file/easy"})
    assert main(["data", "card", "data.h5", "--html=page.html"]) == 0
    assert not (tmp_path / "imported").exists()
    assert main(["data", "card", "data.h5", "--html=page.html", "--environment=named_in_a_file/easy"]) != 0
    assert (tmp_path / "imported").exists()


def test_a_simulator_of_other_sizes_gives_no_pictures_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = Environment("smax/3m", dataclasses.replace(SPEC, num_agents=3), 5, None, {}, None, None)
    monkeypatch.setattr(envs, "make", lambda name: other)
    data.write("data.h5", SPEC, make_episodes(), METADATA | {"environment": "smax/3m"})
    assert main(["data", "card", "data.h5", "--html=page.html"]) == 0
    assert "note: no pictures of the episodes: data.h5: spec: expected" in capsys.readouterr().out
    assert main(["data", "card", "data.h5", "--html=page.html", "--environment=smax/3m"]) == 78


def test_actions_by_hand():
    episodes = make_episodes((2, 2), (True, False))
    action, avail = np.zeros((6, 2), np.int32), np.zeros((6, 2, 4), bool)
    # steps are rows 0, 1, 3, 4; agent 0 takes 1, 1, 1, 3, and agent 1 always 2, its only legal action
    action[[0, 1, 3, 4]] = [[1, 2], [1, 2], [1, 2], [3, 2]]
    avail[:, 0, [0, 1]], avail[[4], 0, 3], avail[:, 1, 2] = True, True, True
    made = dataset_page.of_dataset("it", contents(SPEC, episodes._replace(action=action, avail=avail)))
    taken, legal, ratio = (np.array(one[0]["z"], float) for one in drawn(section(made, "Actions")[0]).values())
    np.testing.assert_array_equal(taken, [[0, 0.75, 0, 0.25], [0, 0, 1, 0]])
    np.testing.assert_array_equal(legal, [[1, 1, 0, 0.25], [0, 0, 1, 0]])
    np.testing.assert_array_equal(ratio, [[0, 0.75, np.nan, 1], [np.nan, np.nan, 1, np.nan]])
    free = dataset_page.of_dataset("it", contents(SPEC, episodes._replace(avail=np.ones_like(avail))))
    assert len(section(free, "Actions")[0]["figures"]) == 1, "availability says nothing where all is legal"


def test_continuous_actions_are_histograms_of_the_dimensions_that_agents_have():
    episodes = make_continuous(CONTINUOUS, (4,), (True,))
    action, avail = episodes.action.copy(), episodes.avail.copy()
    action[:4, 0, 0], action[:4, 0, 1], action[:4, 1, 0] = [-1, -1, 0.01, 1], 0.5, 0.26
    action[:4, 1, 1], avail[:, 1, 1] = 0, False
    made = dataset_page.of_dataset("it", contents(CONTINUOUS, episodes._replace(action=action, avail=avail)))
    ((caption, figure),) = drawn(section(made, "Actions")[0]).items()
    shares = np.array(figure[0]["z"], float)
    assert figure[0]["y"] == ["agent 0: 0", "agent 0: 1", "agent 1: 0"]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares[0, [0, 20, 39]], [0.5, 0.25, 0.25])
    assert "25.0% of all values lie within 0.01 of a bound" in caption, "three of twelve"


def test_returns_lengths_and_rewards_by_hand():
    episodes = make_episodes((2, 3, 3), (True, False, True))._replace(won=np.array([True, False, False]))
    made = dataset_page.of_dataset("it", contents(SPEC, episodes))
    returned, lengths, order = drawn(section(made, "Episodes")[0]).values()
    assert [trace["name"] for trace in lengths] == ["won", "ended by the task", "cut"]
    assert [list(trace["x"]) for trace in lengths] == [[2, 3]] * 3
    assert [list(trace["y"]) for trace in lengths] == [[1, 0], [0, 1], [0, 1]]
    assert sum(np.sum(trace["y"]) for trace in returned) == 3
    # rewards are the numbers of the rows: 1, 2; 4, 5, 6; 8, 9, 10
    np.testing.assert_array_equal(order[0]["y"], [3, 15, 27])
    _, over_time = drawn(section(made, "Rewards")[0]).values()
    np.testing.assert_allclose(over_time[0]["y"], [13 / 3, 16 / 3, 8])
    np.testing.assert_array_equal(over_time[0]["customdata"], [3, 3, 2])


@pytest.mark.parametrize("values", [np.zeros(3), np.full(3, 7), np.array([1.5, 1.5])])
def test_a_histogram_of_one_value_has_one_bar(values):
    bars = dataset_figures.histogram(values, "", "").data[0]
    assert (list(bars.x), list(bars.y)) == ([values[0]], [len(values)])


def test_bins_of_whole_numbers_hold_as_many_of_them_each():
    bars = dataset_figures.histogram(np.arange(100), "", "").data[0]
    np.testing.assert_array_equal(np.array(bars.y)[:-1], bars.width)
    assert sum(bars.y) == 100 and len(bars.y) <= dataset_figures.BINS


def test_principal_directions_by_hand(random):
    along = random.normal(size=500)
    # three features that move together, one that moves alone, one that never does
    values = np.stack([along, 2 * along, -along, random.normal(size=500), np.full(500, 3.0)], axis=1)
    points, shares = card.principal(values.astype(np.float32))
    np.testing.assert_allclose(shares, [0.75, 0.25], atol=0.02)
    assert abs(np.corrcoef(points[:, 0], along)[0, 1]) > 0.999
    assert abs(np.corrcoef(points[:, 1], values[:, 3])[0, 1]) > 0.999
    points, shares = card.principal(np.ones((4, 3), np.float32))
    assert not points.any() and not shares.any()
    points, shares = card.principal(np.arange(3, dtype=np.float32)[:, None])
    np.testing.assert_allclose(shares, [1, 0])


def test_an_episode_of_a_dataset_is_cut_out_and_put_on_the_map():
    def recorded(state, action):
        assert len(state) == len(action) + 1
        one = np.ones((len(state), 1))
        return Units(state[:, None], one, one, one.astype(int), 0 * one.astype(int), 0 * one.astype(int))

    episodes, map = make_episodes((2, 3), (True, False)), Map(("robot",), None, recorded)
    seen = replay.recorded(episodes, 1, map)
    np.testing.assert_array_equal(seen.reward, [4, 5, 6])
    np.testing.assert_array_equal(seen.action, episodes.action[3:6])
    np.testing.assert_array_equal(seen.units.position[:, 0], episodes.global_state[3:7])
    environment = Environment("toy/ring", SPEC, 5, None, {}, None, None, map)
    made = dataset_page.of_dataset("it", contents(SPEC, episodes), environment)
    figure = section(made, "Episode 1, with the highest return")[1]["figures"][0]
    assert figure["moves"] and len(json.loads(figure["json"])["frames"]) == 4


@pytest.mark.parametrize(("spec", "rows"), [(SPEC, 2), (CONTINUOUS, 4)])
def test_without_a_map_an_episode_is_its_rewards_and_actions(spec, rows, tmp_path):
    episodes = (make_episodes if spec == SPEC else lambda *more: make_continuous(spec, *more))((3, 2), (True, True))
    made = dataset_page.of_dataset("it", contents(spec, episodes))
    shown = read(page.write(str(tmp_path), made, "page.html"))
    best = max(range(2), key=lambda place: data.returns(episodes)[place])
    figure = next(one for one in shown.figures if len(one["data"]) == 2 and one["data"][1]["type"] == "heatmap")
    assert len(figure["data"][1]["y"]) == rows
    last = [one for one in shown.figures if one["layout"]["yaxis"]["title"]["text"] == "return"][-1]
    np.testing.assert_allclose(numbers(last["data"][0]["y"])[-1], data.returns(episodes)[best], rtol=1e-5)
    assert figure_of(shown, "return")


def test_a_wide_task_of_many_agents_has_a_page_of_bounded_length(tmp_path):
    spec = EnvSpec(num_agents=30, obs_dim=6, state_dim=3, action_dim=40, discrete=True)
    made = dataset_page.of_dataset("it", contents(spec, make_continuous(spec, (3000, 2), (True, False))))
    path = page.write(str(tmp_path), made, "page.html")
    shown = read(path)
    points = [
        sum(len(numbers(trace["x"])) for trace in one["data"] if trace["type"] == "scatter") for one in shown.figures
    ]
    assert max(points) <= 2_100 and os.path.getsize(path) < 4_000_000
