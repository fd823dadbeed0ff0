"""The notebooks of experiments/examples: program and notebook agree, and every cell runs."""

import json
import os
import pathlib

import numpy as np
import plotly.graph_objects as go
import pytest
from test_page import with_map

from benchmarks import toy
from omcda_jax import data, envs

EXAMPLES = pathlib.Path(__file__).parent.parent / "experiments" / "examples"
NAMES = ("tutorial", "own_data")
notebooks = pytest.mark.parametrize("name", NAMES)


def executed(name):
    """The names that a notebook's program defines."""
    path, names = EXAMPLES / f"{name}.py", {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return names


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setenv("OMCDA_JAX_TINY", "1")
    monkeypatch.chdir(tmp_path)


@pytest.mark.quick
@notebooks
def test_a_notebook_and_its_program_are_the_same_cells(name):
    jupytext = pytest.importorskip("jupytext")
    program = jupytext.read(EXAMPLES / f"{name}.py")
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text())
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert cells == [(cell.cell_type, cell.source) for cell in program.cells], f"jupytext --sync {name}.py"
    assert len(cells) > 12
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count"), "outputs are not committed"


def test_the_tutorial_runs_from_top_to_bottom(tiny, monkeypatch):
    """On the toy instead of SMAX and its dataset."""
    about = {"environment": "smax/3m", "quality": "medium", "description": "a toy"}
    data.write("toy.h5", toy.SPEC, toy.episodes(), about)
    monkeypatch.setattr(envs, "make", lambda name: with_map())
    monkeypatch.setattr(data, "ensure", lambda *where, **size: "toy.h5")
    os.mkdir("tutorial_policy")
    names = executed("tutorial")
    assert {name: len(rows) for name, rows in names["metrics"].items()} == {"bc": 2, "omcda": 2}
    budgets = np.sum(names["metrics"]["omcda"][-1]["allocation/budget"])
    np.testing.assert_allclose(budgets, names["settings"]["omcda"].d_tot, rtol=1e-4)
    chosen = [action.tolist() for action in names["chosen"].values()]
    assert np.shape(chosen) == (3, 1, 2) and chosen[0] == chosen[1] == chosen[2]
    assert {result["episodes"] for result in names["results"].values()} == {4}
    # the first of the episodes that were evaluated
    assert names["battle"].units.position.shape[0] == len(names["battle"].reward) + 1
    assert isinstance(names["curves"]("allocation/influence", "influence"), go.Figure)
    assert os.listdir("tutorial_policy"), "in the place of an earlier run's"


def test_a_simulator_and_data_of_ones_own_run_from_top_to_bottom(tiny):
    names = executed("own_data")
    length, done = names["episodes"].length, names["episodes"].terminated
    assert len(length) == 10 and (length[~done] == 20).all() and done.any()
    assert data.read("line.h5")[2]["statistics"] == data.statistics(names["episodes"])
    assert os.path.getsize("line.html") > 100_000
    # the drawn points are the places where the robots were
    np.testing.assert_allclose(
        names["seen"].units.position[..., 0], 6 * names["episodes"].global_state[: length[0] + 1]
    )
    np.testing.assert_allclose(np.sum(names["metrics"]["omcda"]["allocation/budget"]), 1.8, rtol=1e-4)
    assert set(names["results"]) == {"bc", "omcda"}


@pytest.mark.slow
@notebooks
def test_a_notebook_runs_in_full_within_six_minutes(name, tmp_path):
    """In a kernel, on two idle cores; about a minute of training each."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=360, kernel_name="python3", resources=where).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in shown)
    assert any("omcda  return" in output.get("text", "") for output in shown)
