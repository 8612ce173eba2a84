"""Where a job runs: the cluster that RAY_ADDRESS names, the one whose job we are, or a Ray of our own.

    sane_environment()                 # before ray is imported
    with connect() as session:
        ...                            # plain Ray; session.num_cpus, session.local

What was started here ends with the block; a cluster that was joined goes on, and a Ray that runs in this process
already is used as it is. Ray's messages stay in its log folder (`session.logs`): an exception of a worker reaches the
driver as an exception, the rest is chatter. `verbose=True` shows it all.

Ray is imported where it is started: a job that has nothing to do on a cluster does without it (a second of CPU time).
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, Any

from cluster.environment import COMPUTE_VARIABLES, ROOT, sane_environment, worker_environment
from cluster.errors import TOKEN_HELP, ClusterError
from cluster.shipping import code_folder

_CONNECT_SECONDS = 10.0
# The longest socket that Ray makes below its temporary folder, and the shortest limit on one (macOS; Linux has 107).
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_SOCKET_LIMIT = 103


@dataclass(frozen=True, slots=True)
class Session:
    """The Ray that a job runs on; an autoscaling cluster may grow beyond these numbers."""

    address: str  # HOST:PORT of the control service (GCS)
    num_cpus: int
    num_gpus: int
    num_nodes: int
    local: bool  # one machine, started by us: local paths are the user's paths
    logs: str  # folder with Ray's logs; of the head node, where the cluster was joined


@contextmanager
def connect(local_cpus: int | None = None, verbose: bool = False) -> Iterator[Session]:
    """Join the cluster at hand or start a local Ray with `local_cpus` (None = this machine's, at least 2)."""
    sane_environment()
    import ray

    if ray.is_initialized():
        yield _session(local=False)
        return
    _quiet(verbose)
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        if address == "local":
            with _short_temp_folder() as temp_folder, _compute_variables():
                _start_local(local_cpus, temp_folder, verbose)
                yield _session(local=True)
                ray.shutdown()  # before its folder goes
        else:
            _join(address, verbose)
            yield _session(local=False)
    finally:
        ray.shutdown()


def compute_runtime_env() -> dict[str, Any]:
    """The `runtime_env` of tasks and actors that compute: COMPUTE_VARIABLES, unless they inherit them from here.

    A process with an environment of its own is a new one; those that a local Ray starts ahead would stand idle.
    """
    import ray

    node = ray._private.worker.global_worker.node
    inherits = node is not None and node.head and all(name in os.environ for name in COMPUTE_VARIABLES)
    return {} if inherits else {"env_vars": COMPUTE_VARIABLES}


@contextmanager
def _compute_variables() -> Iterator[None]:
    """COMPUTE_VARIABLES in the environment that a local Ray and its processes inherit, where the user has none."""
    added = {name: value for name, value in COMPUTE_VARIABLES.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _start_local(num_cpus: int | None, temp_folder: str | None, verbose: bool) -> None:
    import ray

    # Workers import our packages whatever the current folder is; they inherit the environment, as all local Ray does.
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *(path for path in paths if path not in ("", str(ROOT)))])
    # Ray's own count knows of container quotas. CPUs are Ray's scheduling units: with one, a pipeline cannot overlap.
    num_cpus = num_cpus or max(2, ray._private.utils.get_num_cpus())
    _init(verbose, address="local", num_cpus=num_cpus, include_dashboard=False, _temp_dir=temp_folder)


def _join(address: str, verbose: bool) -> None:
    if "://" in address:
        raise ClusterError(
            f"submit the job, or set RAY_ADDRESS to HOST:PORT on a node of the cluster; it is {address}\n"
            f"python -m cluster submit JOB CONFIG --address {address}"
        )
    if address != "auto":
        _check_reachable(address)
    from ray.exceptions import AuthenticationError

    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # then code and environment came with the job
    try:
        with nullcontext() if inside_job else code_folder() as folder:
            code = {} if inside_job else {"working_dir": str(folder), "env_vars": worker_environment()}
            _init(verbose, address=address, runtime_env=code)
    except AuthenticationError as error:
        raise ClusterError(f"{TOKEN_HELP}: none was found, and the cluster at {address} wants one") from error
    except ConnectionError as error:
        raise ClusterError(
            "run this on a node of the cluster, or submit it (python -m cluster submit)\n"
            f"cannot join {address}: {error}"
        ) from error


def _init(verbose: bool, **options: Any) -> None:
    """ray.init, with what its C++ half prints to stderr held back: a line about logging, many about a wrong token."""
    import ray

    with tempfile.TemporaryFile() as held:
        try:
            with _stderr_to(held):
                ray.init(log_to_driver=verbose, logging_level="info" if verbose else "warning", **options)
        except ConnectionError as error:
            if any(b"InvalidAuthToken" in line for line in _lines(held)):
                raise ClusterError(f"{TOKEN_HELP}: the cluster at {options['address']} refused ours") from error
            raise
        for line in _lines(held):
            if verbose or b"Set ray log level" not in line:
                os.write(2, line)


@contextmanager
def _stderr_to(file: IO[bytes]) -> Iterator[None]:
    sys.stderr.flush()
    terminal = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def _lines(file: IO[bytes]) -> list[bytes]:
    file.seek(0)
    return file.readlines()


def _check_reachable(address: str) -> None:
    """Fail in seconds, with a reason, where Ray would try for a long time."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"set RAY_ADDRESS to HOST:PORT, to auto, or to local; it is {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            "check RAY_ADDRESS and the network, or unset it to run on this machine\n"
            f"nothing answers at {address}: {error}"
        ) from error


@contextmanager
def _short_temp_folder() -> Iterator[str | None]:
    """None where Ray's default does; a folder in /tmp where sockets below it would have too long a path."""
    default = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(default.rstrip("/") + _SOCKET)) <= _SOCKET_LIMIT:
        yield None
        return
    folder = tempfile.mkdtemp(prefix="embedfleet-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)  # not reached after an error: the logs are wanted then


def _quiet(verbose: bool) -> None:
    """Leave Ray Data's messages below a warning to its log file."""
    import ray.data  # noqa: F401  # configures its logging, which is then changed

    level = logging.INFO if verbose else logging.WARNING
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(level)
    # The first warns that the progress bars are off, as we asked for; the second that our own actors use the CPUs.
    for name in ("ray.data._internal.progress", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _session(local: bool) -> Session:
    import ray

    resources = ray.cluster_resources()
    node = ray._private.worker.global_worker.node
    return Session(
        address=ray.get_runtime_context().gcs_address,
        num_cpus=int(resources.get("CPU", 0)),
        num_gpus=int(resources.get("GPU", 0)),
        num_nodes=sum(1 for node in ray.nodes() if node["Alive"]),
        local=local,
        logs=os.path.join(node.get_session_dir_path(), "logs"),
    )
