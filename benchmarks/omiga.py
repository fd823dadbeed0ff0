"""The official PyTorch OMIGA step, a worker of `benchmarks.rivals`; it needs only torch, NumPy and h5py.

    PYTHON benchmarks/omiga.py CHECKOUT DEVICE CORES

It answers every line of standard input, a name and seconds, with steps per second. Drawing batches is included. The
data are random transitions with the sizes of Hopper 3x1, in the checkout's own buffer, with its own settings.
"""

import json
import sys
import time

import numpy as np
import torch

AGENTS, FEATURES, ACTIONS, ROWS = 3, 14, 1, 4000


def main(checkout: str, device: str, cores: int) -> None:
    """Build the agent, then measure on request."""
    sys.path.insert(0, checkout)
    from algos.OMIGA import OMIGA
    from configs.config import get_parser
    from datasets.offline_dataset import ReplayBuffer

    torch.set_num_threads(cores)
    config = vars(get_parser().parse_args([])) | {"device": device}
    agent = OMIGA(FEATURES, ACTIONS, AGENTS, None, config)
    buffer = ReplayBuffer(FEATURES, ACTIONS, AGENTS, "", "", max_size=ROWS, device=device)
    random = np.random.default_rng(0)
    for name in ("o", "s", "o_next", "s_next"):
        setattr(buffer, name, random.standard_normal((ROWS, AGENTS, FEATURES), np.float32))
    for name in ("a", "a_next"):
        setattr(buffer, name, random.uniform(-0.9, 0.9, (ROWS, AGENTS, ACTIONS)).astype(np.float32))
    buffer.r, buffer.mask = random.standard_normal((ROWS, 1), np.float32), np.ones((ROWS, 1), np.float32)

    clock = time.process_time if device == "cpu" and cores == 1 else time.perf_counter

    def rate(seconds: float) -> float:
        done, began = 0, clock()
        while True:
            for _ in range(20):
                result = agent.train_step(*buffer.sample(config["batch_size"]))
            result["q_loss"].item()  # waits for the device
            done += 20
            passed = clock() - began
            if passed >= seconds:
                return done / passed

    rate(0.0)
    print(json.dumps(["official"]), flush=True)
    for line in sys.stdin:
        print(rate(json.loads(line)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
