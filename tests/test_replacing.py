"""Files are replaced as a whole, and only files are replaced."""

import os

import pytest

from omcda_jax.files import replacing
from omcda_jax.types import ConfigError


def write(path, text):
    with replacing(path) as partial:
        partial.write_text(text)


@pytest.mark.quick
def test_a_file_is_replaced_when_all_of_it_is_there(tmp_path):
    path = tmp_path / "folder" / "file"
    write(path, "first")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first"
    write(path, "second")
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.quick
def test_what_a_link_leads_to_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    write(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_text() == "text"


@pytest.mark.quick
def test_a_pipe_stays(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=f"^{path}: expected a file or a folder to replace, found a device"):
        write(path, "text")
    assert path.is_fifo() and os.listdir(tmp_path) == ["pipe"]
