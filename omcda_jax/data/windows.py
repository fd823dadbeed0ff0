"""Data that stay on the host, while batches are drawn from a window of them on the device.

Reading single rows from a disk costs one access each. So the data are cut into pieces of consecutive transitions, which
every epoch distributes to windows in a new order. Batches draw about as many transitions from one window as it has (a
whole number of training calls), while a thread reads the next window. The number of an update determines the pieces
that it draws from, so a resumed run needs only that number. Data that fit one window give the same batches as data on
the device.
"""

import concurrent.futures
from collections.abc import Callable
from typing import Any

import numpy as np

from omcda_jax.config import DataConfig, LearnerConfig
from omcda_jax.data.dataset import Dataset, memory_bytes, own_shards, put, shard_edges, take

PIECES = 64  # pieces in a window


class Windows:
    """A function from the number of updates done to the part of a dataset that the next batches are drawn from.

    A context manager, which ends the reading thread. Two windows are on the device at once: the current one and the
    next one.

    Args:
        dataset: the whole dataset, on the host.
        data: `window`, `shards` and `seed` are used; `seed` gives the order of the pieces.
        learner: numbers of updates and the batch size are used.
        process: index of this process among those that share the batch.
        processes: number of processes that share the batch.
        place: brings a window to where the training call wants it.

    Attributes:
        count: W, number of windows in an epoch.
        updates: number of updates that draw from each window.

    Raises:
        ConfigError: as `data.shard`.
    """

    def __init__(
        self,
        dataset: Dataset,
        data: DataConfig,
        learner: LearnerConfig,
        *,
        process: int = 0,
        processes: int = 1,
        place: Callable[[Dataset], Any] = put,
    ):
        transitions = dataset.rows.shape[0]
        wanted = max(learner.batch_size, data.window * 1e6 * transitions / memory_bytes(dataset))
        self._dataset, self._place, self._shards, self._seed = dataset, place, data.shards, data.seed
        self._own = own_shards(dataset, data.shards, process, processes)
        smallest = transitions // data.shards
        self.count = min(int(np.ceil(transitions / wanted)), smallest)
        self._pieces = max(1, min(PIECES // data.shards, smallest // self.count))
        self._edges = shard_edges(dataset, data.shards, self.count * self._pieces)
        calls = transitions / self.count / learner.batch_size / learner.updates_per_call
        self.updates = max(1, round(calls)) * learner.updates_per_call
        self._last = self._number(max(0, learner.updates - 1))
        self._reader = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="windows")
        self._coming: dict[int, concurrent.futures.Future] = {}
        self._here: tuple[int, Any] = (-1, None)

    def __call__(self, step: int) -> Any:
        """Return the window that updates from `step` on draw from, as `place` returns it."""
        number = self._number(step)
        if number != self._here[0]:
            coming = self._coming.pop(number, None) or self._reader.submit(self._read, number)
            self._here = (number, coming.result())
            self._coming = {}
            if number < self._last:
                self._coming[number + 1] = self._reader.submit(self._read, number + 1)
        return self._here[1]

    def __enter__(self) -> "Windows":
        return self

    def __exit__(self, *unused: Any) -> None:
        self._reader.shutdown(cancel_futures=True)

    def _number(self, step: int) -> int:
        # a single window has the same contents in every epoch
        return step // self.updates if self.count > 1 else 0

    def _read(self, number: int) -> Any:
        epoch, place = divmod(number, self.count)
        mine = slice(place * self._pieces, (place + 1) * self._pieces)
        total = self.count * self._pieces
        orders = [np.random.default_rng((self._seed, epoch, shard)).permutation(total) for shard in self._own]
        chosen = np.stack([np.sort(order[mine]) for order in orders])
        return self._place(take(self._dataset, self._edges, self._own, self._shards, chosen))
