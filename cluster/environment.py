"""The environment of our Ray processes, set in one place.

Ray reads most of its switches once, while it is imported, and its daemons and workers inherit the driver's
environment. So `sane_environment()` runs first thing in a driver, before anything imports ray. A variable that the
user has set always wins. On a cluster that we only join, the workers get `worker_environment()` with the job instead.

Threads of a worker: OMP_NUM_THREADS stays unset on purpose. Ray then gives each task and actor as many threads as the
CPUs it reserved (at least one), while the driver keeps all. torch reads it only when it is first imported, and Ray may
put an actor into a process that ran a smaller task before: who cares about threads sets them (`torch.set_num_threads`).
Tokenizers stay on one thread, because Ray runs several of them at once.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]  # the folder that holds jobs/, operators/, cluster/ and configs/
BASE_VARIABLE = "EMBEDFLEET_BASE"

_DEFAULTS = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray 2.60 logs a harmless ERROR for every actor pool (core_worker.cc:2465)
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # jobs print their own progress
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else a driver under `uv run` makes each worker start uv
    "TOKENIZERS_PARALLELISM": "false",
    # After 1 s, Ray's default, stages that are busy now and then would get a new process for nearly every fragment.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # Every process of Ray reports its own metrics so often. At Ray's 10 s an idle Ray takes 7 % of a core, at 60 s 4 %.
    "RAY_metrics_report_interval_ms": "30000",
    # Ray Train takes one checkpoint of a worker at each look, by default every 2 s; the last one waits for all others.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}

# For processes that compute on a CPU. glibc gives memory back to the kernel as soon as some MB are free, and
# hands a thread, such as the one in which Ray Data calls a stage, pieces of 64 MB at most: activations then page-fault
# at every batch. One arena that keeps what it had embeds 3 % more tokens/s (MiniLM).
COMPUTE_VARIABLES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    # Kernels that are kept compiled, one for each shape of a product: by oneDNN, and for each layer by torch's wrapper
    # of it. With 1,024 each, their own choice, a worker of MiniLM grows to 1.4 GB; 16 of oneDNN's halve its speed.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "32",
}


def sane_environment(may_start_ray: bool = True) -> None:
    """Set what Ray and its workers read from the environment; call it before ray is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # A cap on Ray's own default (30 % of the free memory): fragments are tens of MB and Ray Data keeps few in flight.
    store_gib = max(2, (os.cpu_count() or 1) // 2)
    os.environ.setdefault("RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES", str(store_gib * 2**30))
    if "ray" not in sys.modules:  # an imported ray has its authentication mode already, and would disagree with ours
        _authenticate(may_start_ray and os.environ.get("RAY_ADDRESS", "local") == "local")


def worker_environment() -> dict[str, str]:
    """The variables that a job's workers get on a cluster which was not started from here."""
    return {name: os.environ.get(name, value) for name, value in _DEFAULTS.items()}


def expected_cpus(local_cpus: int | None) -> int | None:
    """The CPUs of the Ray that this job will start itself; None where it joins a cluster, which says so only then."""
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        return None
    return local_cpus or max(
        2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def enter_base_directory() -> None:
    """Go to the folder that relative paths of a config are relative to: where the user typed the command.

    Nothing to do for a job that was not submitted. A submitted one starts in a copy of the code, which vanishes with
    the job and what is written there. Its user's folder is of use only on a file system that the nodes share; without
    it a relative path must not be found by chance, so the job goes to the root, where there is nothing of its own.
    """
    base = os.environ.get(BASE_VARIABLE)
    if base is None:
        return
    if not Path(base).is_dir():
        logger.warning("%s is not on this node: relative paths of the config do not work here", base)
        base = "/"
    os.chdir(base)


def _authenticate(starts_ray: bool) -> None:
    """Keep Ray's token authentication on, and leave no token behind that did not exist.

    Ray enables it for a local cluster by default, but writes a new token, readable by all, to ~/.ray/auth_token, and
    does not use an existing token with an explicit address. A token made here lives as long as this process tree.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    has_token = (
        bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"))
        or (Path.home() / ".ray" / "auth_token").is_file()
    )
    if has_token or starts_ray:
        os.environ["RAY_AUTH_MODE"] = "token"
    if not has_token and starts_ray:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
