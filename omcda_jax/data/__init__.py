"""Offline datasets: collecting, storing, checking and sampling them."""

from omcda_jax.config import Repairs
from omcda_jax.data.collect import default_path, ensure
from omcda_jax.data.dataset import (
    Dataset,
    from_arrays,
    gather,
    max_return_to_go,
    memory_bytes,
    normaliser,
    returns_to_go,
    sample,
    shard,
    split,
)
from omcda_jax.data.episodes import Episodes, returns, statistics
from omcda_jax.data.formats import load, stored_bytes
from omcda_jax.data.hdf5 import read, read_metadata, require_spec, write
from omcda_jax.data.windows import Windows

__all__ = [
    "Dataset",
    "Episodes",
    "Repairs",
    "Windows",
    "default_path",
    "ensure",
    "from_arrays",
    "gather",
    "load",
    "max_return_to_go",
    "returns_to_go",
    "memory_bytes",
    "normaliser",
    "read",
    "read_metadata",
    "require_spec",
    "returns",
    "sample",
    "shard",
    "split",
    "statistics",
    "stored_bytes",
    "write",
]
