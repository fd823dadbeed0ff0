"""The grammar of grids: what a text stands for, what is refused, and how points become a text again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from omcda_jax.grid import compose, points
from omcda_jax.types import ConfigError

pytestmark = pytest.mark.quick


def test_every_combination_the_last_key_fastest():
    assert points("seed=0..1; a=0.5,[1,2]", "--grid") == [
        {"seed": "0", "a": "0.5"},
        {"seed": "0", "a": "[1,2]"},
        {"seed": "1", "a": "0.5"},
        {"seed": "1", "a": "[1,2]"},
    ]


def test_a_path_is_itself():
    assert points("data.path=../a.h5,b..c/d.h5", "--grid") == [{"data.path": "../a.h5"}, {"data.path": "b..c/d.h5"}]


def test_alternatives_are_joined_and_a_point_counts_once():
    found = points("seed=0..2; a=1 | seed=2,3; a=1 | b=x", "--grid")
    assert [one.get("seed") for one in found] == ["0", "1", "2", "3", None]
    assert found[-1] == {"b": "x"}


def test_ranges_are_drawn_together_and_more_points_keep_those_drawn():
    text = "a=uniform(-1,1,{0}); seed=0,1; b=loguniform(0.01,100,{0})"
    few, many = points(text.format(40), "--grid"), points(text.format(60), "--grid")
    pairs = {(one["a"], one["b"]) for one in few}
    assert len(few) == 80 and len(pairs) == 40
    assert many[:80] == few
    assert all(-1 <= float(a) <= 1 and 0.01 <= float(b) <= 100 for a, b in pairs)
    # half of the points in the lower half of four orders of magnitude
    assert 10 < sum(math.log10(float(b)) < 0 for _, b in pairs) < 30


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "--grid: expected key=value,value,..., found ''"),
        ("seed", "--grid: seed: expected key=value,value,..., found 'seed'"),
        ("=1", "--grid: : expected key=value,value,..., found '=1'"),
        ("a=1; a=2", "--grid: a: expected each key once, found 'a=1; a=2'"),
        ("a=0..x", "--grid: a: expected two whole numbers around '..', found '0..x'"),
        ("a=2..0", "--grid: a: expected a number after '..' that is not below the first, found '2..0'"),
        ("a=uniform(0,1,2); b=uniform(0,1,3)", "--grid: expected ranges with the same number of points"),
        ("a=uniform(1,0,2)", "--grid: a: expected uniform(low,high,n) with low < high"),
        ("a=uniform(0,1,0)", "and n of at least 1, found uniform(0,1,0)"),
        ("a=uniform(0,nan,2)", "with low < high"),
        ("a=loguniform(0,1,2)", "with low above 0, found loguniform(0,1,2)"),
        ("a=uniform(0,b,2)", "with two numbers and a count, found uniform(0,b,2)"),
        ("a=uniform(0,1,2),3", "expected uniform(low,high,n) or loguniform(low,high,n) alone, found 'uniform(0,1,2)'"),
        ("a=normal(0,1)", "found 'normal(0,1)'"),
    ],
)
def test_what_is_no_grid_is_refused(text, error):
    with pytest.raises(ConfigError) as raised:
        points(text, "--grid")
    assert error in str(raised.value) and "\n" not in str(raised.value)


some_points = some.lists(
    some.tuples(*[some.sampled_from(["0", "1.5", "-1e-05", "[1,2]"])] * 3), min_size=1, unique=True
).map(lambda rows: [dict(zip("abc", row, strict=True)) for row in rows])


@given(some_points)
def test_a_set_of_points_is_a_text_again(chosen):
    inner = lambda found: {tuple(point.items()) for point in found}
    assert inner(points(compose(chosen), "--grid")) == inner(chosen)


def test_numbers_of_a_narrow_range_differ_and_stay_inside():
    for low, high in ((0.999, 0.9999), (0.9999, 0.99999), (1000.1, 1000.9), (-3.00001, -3.0)):
        drawn = [float(point["x"]) for point in points(f"x=uniform({low},{high},8)", "")]
        assert len(set(drawn)) == 8 and low <= min(drawn) and max(drawn) <= high
    # for a wide range they are the same four as before
    assert [point["x"] for point in points("x=uniform(0.1,1,3)", "")] == ["0.2917", "0.8404", "0.8615"]


def test_points_of_all_products_have_their_keys_in_one_order():
    found = points("a=uniform(0.1,0.2,1); b=0,1 | a=0.01; b=0", "")
    assert [list(point) for point in found] == [["b", "a"]] * 3
    assert len(points("a=1; b=2 | b=2; a=1", "")) == 1


def test_a_product_is_written_as_one():
    text = "seed=0,1,2; a=0.5,1"
    assert compose(points(text, "--grid")) == text
    assert compose(points("seed=0,1; a=1 | seed=0; a=2", "--grid")) == "seed=0,1; a=1 | seed=0; a=2"
    with pytest.raises(ConfigError, match="a: expected a value without any of"):
        compose([{"a": "x;y"}])
