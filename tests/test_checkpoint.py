import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from omcda_jax import checkpoint
from omcda_jax.checkpoint import Checkpoints, StorageError, digest
from omcda_jax.files import check_free, exclusive
from omcda_jax.types import ConfigError, EnvSpec, TrainState

SPEC = EnvSpec(num_agents=2, obs_dim=3, state_dim=4, action_dim=5, discrete=True)


def make_state(step, width=4):
    params = {"policy": {"w": jnp.arange(3.0 * width).reshape(3, width) + step, "b": jnp.ones(width)}}
    return TrainState(
        params=params,
        target_params={},
        opt_state={"policy": optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam()).init(params)},
        extra={"alpha": jnp.array([0.1, 0.2]) * step, "flags": jnp.array([True, False])},
        config={"rate": jnp.float32(1e-3)},
        step=jnp.int32(step),
        key=jax.random.key(7),
        spec=SPEC,
    )


def template(**options):
    return jax.eval_shape(lambda: make_state(0, **options))


def assert_same(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert leaf.dtype == expected.dtype
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, expected = jax.random.key_data(leaf), jax.random.key_data(expected)
        np.testing.assert_array_equal(leaf, expected)


def fill(directory, steps=(10, 20, 30)):
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step), {"seconds": step / 8, "config": {"name": "x"}})


def restore(directory, **options):
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(template(**options))


def test_nothing_saved_restores_nothing(tmp_path):
    assert restore(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_round_trip_is_exact_with_typed_key_and_named_tuples(tmp_path):
    fill(tmp_path / "c")
    state, metadata = restore(tmp_path / "c")
    assert_same(state, make_state(30))
    assert metadata == {"seconds": 3.75, "config": {"name": "x"}}
    assert jax.random.uniform(state.key) == jax.random.uniform(jax.random.key(7))


def test_only_the_newest_stay_and_a_relative_directory_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill("c")
    assert sorted(path.name for path in Path("c").iterdir()) == ["20", "30"]
    assert int(restore("c")[0].step) == 30


def test_a_second_save_of_a_step_is_an_error(tmp_path):
    fill(tmp_path / "c", steps=(10,))
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(Exception, match="10"):
        checkpoints.save(make_state(10), {})


def data_file(step_directory):
    """The file that every read of a step needs; orbax also leaves files that no read uses."""
    (path,) = (step_directory / "state" / "d").iterdir()
    return path


def flip_bit(path, fraction=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * fraction)] ^= 4
    path.write_bytes(content)


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def remove_tree(step_directory):
    for path in sorted(step_directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


DAMAGE = {
    "bit": lambda step: flip_bit(data_file(step)),
    "record bit": lambda step: flip_bit(step / "record" / "metadata", 0.1),
    "halved": lambda step: data_file(step).write_bytes(
        data_file(step).read_bytes()[: data_file(step).stat().st_size // 2]
    ),
    "empty file": lambda step: data_file(step).write_bytes(b""),
    "no record": lambda step: (step / "record" / "metadata").unlink(),
    "empty step": remove_tree,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_newest_step_gives_way_to_the_one_before(tmp_path, damage):
    directory = tmp_path / "c"
    fill(directory)
    damage(directory / "30")
    with Checkpoints(directory) as checkpoints:
        with pytest.warns(
            UserWarning, match=f"{directory}/30 is damaged and put aside as {tmp_path}/quarantine/c-30: "
        ):
            state, metadata = checkpoints.restore(template())
        assert_same(state, make_state(20))
        assert metadata["seconds"] == 2.5
        checkpoints.save(make_state(25), {"seconds": 0})
        checkpoints.save(make_state(30), {"seconds": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(restore(directory)[0], make_state(30))


def test_all_damaged_restores_nothing(tmp_path):
    fill(tmp_path / "c")
    for step in ("20", "30"):
        flip_bit(data_file(tmp_path / "c" / step))
    with pytest.warns(UserWarning) as caught:
        assert restore(tmp_path / "c") is None
    assert ["30" in str(caught[0].message), "20" in str(caught[1].message)] == [True, True]


@pytest.mark.parametrize("reader", ["_read_record", "_read_leaves"])
def test_a_disk_that_does_not_answer_damages_nothing(tmp_path, monkeypatch, reader):
    fill(tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, reader, lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(StorageError, match=r"c/30 could not be read \(.*Input/output error\); it may be whole"):
            restore(tmp_path / "c")
    assert_same(restore(tmp_path / "c")[0], make_state(30))


def test_a_step_whose_files_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    fill(tmp_path / "c")
    flip_bit(data_file(tmp_path / "c" / "30"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
        with pytest.raises(StorageError, match="Stale file handle"):
            restore(tmp_path / "c")
    assert (tmp_path / "c" / "30").is_dir() and Checkpoints(tmp_path / "c").put_aside() == []
    with pytest.warns(UserWarning, match="c/30 is damaged"):
        assert_same(restore(tmp_path / "c")[0], make_state(20))
    assert Checkpoints(tmp_path / "c").put_aside() == [str(tmp_path / "quarantine" / "c-30")]


def test_another_shape_is_an_error_and_no_damage(tmp_path):
    fill(tmp_path / "c", steps=(10,))
    with pytest.raises(ConfigError, match=r"c/10: .*: expected float32\[5\], found float32\[4\]"):
        restore(tmp_path / "c", width=5)
    assert int(restore(tmp_path / "c")[0].step) == 10


def test_another_structure_or_dtype_is_an_error(tmp_path):
    fill(tmp_path / "c", steps=(10,))
    abstract = template()
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    with Checkpoints(tmp_path / "c") as checkpoints:
        with pytest.raises(ConfigError, match=r"\['more'\]: expected float32\[\], found nothing"):
            checkpoints.restore(abstract.replace(config=dict(abstract.config, more=scalar)))
        with pytest.raises(ConfigError, match=r"step: expected int16\[\], found int32\[\]"):
            checkpoints.restore(abstract.replace(step=jax.ShapeDtypeStruct((), jnp.int16)))


def test_what_is_saved_is_the_state_at_that_moment(tmp_path):
    """The buffers are donated to the next update while a thread is still writing."""
    double = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0)
    state = make_state(10)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(state, {})
        double(state.params)
    assert_same(restore(tmp_path / "c")[0], make_state(10))


def test_a_step_saved_again_replaces_those_after_it(tmp_path):
    fill(tmp_path / "c", steps=(10, 20))
    with Checkpoints(tmp_path / "c", wait=True) as checkpoints:
        checkpoints.save(make_state(15), {"again": True}, replace=True)
        state, metadata = checkpoints.restore(template())
    assert (int(state.step), metadata) == (15, {"again": True})


def test_a_step_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"{tmp_path}/file/c: a checkpoint could not be written") as caught:
        fill(tmp_path / "file" / "c")
    assert "bytes" in str(caught.value) and "no step is saved" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_digest_tells_every_bit_and_every_name():
    state = make_state(10)
    weights, bias = state.params["policy"]["w"], jnp.ones(4)
    changed = state.replace(params={"policy": {"w": jnp.nextafter(weights, weights + 1), "b": bias}})
    renamed = {"policy": {"v": weights, "b": bias}}
    assert digest(state) == digest(make_state(10))
    assert len({digest(one) for one in (state, changed, state.replace(params=renamed), make_state(11))}) == 4


def test_a_directory_is_held_by_one_at_a_time(tmp_path):
    with exclusive(tmp_path):
        for attempt in (lambda *arguments: exclusive(*arguments).__enter__(), check_free):
            with pytest.raises(ConfigError, match=f"process {os.getpid()}\\).*another --workdir"):
                attempt(tmp_path, "--workdir")
    check_free(tmp_path)
    check_free(tmp_path / "missing")
    with exclusive(tmp_path):
        pass
