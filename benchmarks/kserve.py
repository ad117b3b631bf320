"""Times requests in KServe's protocol: `python -m benchmarks.kserve --server=HOST:PORT`.

Each client draws the noise of its seeds, asks, and asks again when the answer is there. All
requests must be answered, with the right number of images.
"""

from __future__ import annotations

import threading
import time
from concurrent import futures

import numpy as np
from absl import app, flags

from export.serving_client import Client

_SERVER = flags.DEFINE_string("server", None, "HOST:PORT.", required=True)
_MODEL = flags.DEFINE_string("model", "nvae", "Name of the model on the server.")
_REQUESTS = flags.DEFINE_integer("requests", 400, "Number of requests per row.", lower_bound=1)
_CLIENTS = flags.DEFINE_multi_integer("clients", [1, 8], "Numbers of clients at a time.")
_IMAGES = flags.DEFINE_multi_integer("images", [1, 16], "Numbers of images in a request.")
_WARM_UP = 10  # requests
_QUANTILES = (50, 95, 99)


def measure(client: Client, images: int, clients: int, requests: int) -> list[float]:
    """Returns the seconds of each request, and at the end those of all together."""
    seeds = iter(range(0, images * requests, images))
    lock = threading.Lock()

    def ask_until_done() -> list[float]:
        times = []
        while True:
            with lock:
                seed = next(seeds, None)
            if seed is None:
                return times
            start = time.perf_counter()
            answer = client.sample(images, seed)
            times.append(time.perf_counter() - start)
            if len(answer) != images:
                raise RuntimeError(f"{len(answer)} images of {images}.")

    start = time.perf_counter()
    with futures.ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(ask_until_done) for _ in range(clients)]
        times = [seconds for each in running for seconds in each.result()]
    if len(times) != requests:
        raise RuntimeError(f"{len(times)} answers to {requests} requests.")
    return [*times, time.perf_counter() - start]


def main(argv: list[str]) -> None:
    del argv
    print("| images in a request | clients | answers | p50 | p95 | p99 | images/s |")
    print("|---|---|---|---|---|---|---|")
    with Client(_SERVER.value, "kserve", _MODEL.value) as client:
        for images in _IMAGES.value:
            for _ in range(_WARM_UP):
                client.sample(images)
            for clients in _CLIENTS.value:
                *times, total = measure(client, images, clients, _REQUESTS.value)
                late = " | ".join(
                    f"{1000 * np.quantile(times, q / 100):.0f} ms" for q in _QUANTILES
                )
                rate = images * len(times) / total
                print(f"| {images} | {clients} | {len(times)} | {late} | {rate:.0f} |", flush=True)


if __name__ == "__main__":
    app.run(main)
