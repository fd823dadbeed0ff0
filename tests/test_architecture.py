"""The one-way arrows between modules, read from the import statements."""

import ast
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.quick

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "omcda_jax"

# A room may import only from strictly lower layers of its own branch; `data.x` and `data.y` are one room.
MATHEMATICS = [
    {"types"},
    {"reductions", "checks"},
    {"allocation", "distributions", "losses"},
    {"networks", "training"},
    {"acting"},
    {"algorithms.*"},
    {"algorithms"},
    {"selection"},
    {"omcda_jax"},
]
MACHINERY = [
    {"types"},
    {"system", "files", "grid"},
    {"config", "envs", "checkpoint", "metrics"},
    {"behaviour"},
    {"data"},
    {"learner", "evaluate"},
]
# Imports both branches, and nothing imports it.
RUNNER = "runner"


def room(module):
    """Dotted module name to the name of its room."""
    parts = module.split(".")[1:]
    if not parts:
        return "omcda_jax"
    if parts[0] == "algorithms":
        return "algorithms.*" if len(parts) > 1 else "algorithms"
    return parts[0]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(module):
    """Dotted names of the package's modules that a module imports, anywhere in the file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
    return {name for name in found if name.split(".")[0] == "omcda_jax"}


def layer(name, branch):
    return next((i for i, rooms in enumerate(branch) if name in rooms), None)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_left(module):
    here = room(module)
    for other in imports(module):
        there = room(other)
        if there == here and here not in ("algorithms.*",):
            continue
        # the front door shows what an environment is
        if (module, other) == ("omcda_jax", "omcda_jax.envs.base"):
            continue
        allowed = here == RUNNER or any(
            layer(here, branch) is not None
            and layer(there, branch) is not None
            and layer(there, branch) < layer(here, branch)
            for branch in (MATHEMATICS, MACHINERY)
        )
        assert allowed, f"{module} imports {other}"


def test_every_module_has_a_place():
    rooms = set().union({RUNNER}, *MATHEMATICS, *MACHINERY)
    assert {room(module) for module in MODULES} == rooms


def test_an_arrow_the_wrong_way_would_be_seen():
    assert layer("losses", MATHEMATICS) < layer("algorithms.*", MATHEMATICS)
    assert layer("learner", MATHEMATICS) is None
    assert room("omcda_jax.data.hdf5") == "data"
    assert imports("omcda_jax.algorithms") >= {"omcda_jax.algorithms.omcda", "omcda_jax.types"}


def test_the_library_alone_needs_no_extra():
    script = (
        "import sys; import omcda_jax, omcda_jax.learner, omcda_jax.evaluate, omcda_jax.config, omcda_jax.data;"
        "print([m for m in ('h5py', 'jaxmarl', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


SOURCES = [*MODULES.values(), *(ROOT / "experiments").rglob("*.py")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_readable(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 450
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            taken = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            assert node.end_lineno - node.lineno < 60, f"{node.name} is longer than 60 lines"
            assert len(taken) <= 8, f"{node.name} takes more than 8 parameters"
