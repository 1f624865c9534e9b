"""Decoding for the `shards` stage on a Ray cluster: the same jobs with the same answers, on several machines.

Every machine must find the videos and this package at the same paths (a shared file system, or equal images). A task is
a batch of clips. Ray runs the tasks of a lost machine again on another.
"""

import logging
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

from hcmi.errors import ConfigError
from hcmi.video.jobs import EncodeJob, encode_job
from hcmi.video.pool import DecoderPool

CLIPS_PER_TASK = 32         # starting a decoder process takes 0.3 s


def map_on_ray(jobs: Iterator[EncodeJob], timeout_s: float, num_workers: int, address: str
               ) -> Iterator[tuple[Any, Any]]:
    """Yield (job, Decoded or DecodeError) as they finish, not in order; `num_workers` tasks at once, 0: one per core.

    `address` is `local` (a temporary cluster of this machine alone), `auto` (a cluster that runs here) or host:port.

    Raises: ConfigError when Ray is not installed or the cluster cannot be reached.
    """
    ray = _connected(address)
    try:
        # retried without limit when its machine is lost: the files are not the cause
        task = ray.remote(num_cpus=1, max_retries=-1)(_decode_batch)
        running: set = set()
        while True:
            limit = num_workers or int(ray.cluster_resources().get("CPU", 1))
            while len(running) < 2 * limit and (batch := list(islice(jobs, CLIPS_PER_TASK))):
                running.add(task.remote(batch, timeout_s, os.getcwd()))
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1)
            running -= set(ready)
            for answers in ray.get(ready):
                yield from answers
    finally:
        ray.shutdown()


def _decode_batch(batch: list[EncodeJob], timeout_s: float, folder: str) -> list[tuple[Any, Any]]:
    os.chdir(folder)        # the manifest's paths are relative to the project
    with DecoderPool(1, timeout_s, encode_job) as pool:
        return list(pool.map(batch))


def _connected(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("shards.executor: need the ray package for `ray`, got none. Install it with "
                          "`pip install 'hcmi[ray]'`, or set shards.executor to local.") from error
    try:
        ray.init(address=None if address == "local" else address, log_to_driver=False, logging_level=logging.ERROR,
                 include_dashboard=None if address != "local" else False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(f"shards.ray_address: need a running Ray cluster, got {address!r}: {reason}. Start one with "
                          "`ray start --head`, or set shards.ray_address to local.") from error
    return ray
