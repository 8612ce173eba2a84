"""A job on a cluster, through Ray's Jobs API: send it, follow its log, know how it ended, stop it.

The cluster needs our dependencies (the image has them); our code and the config travel with the job. Ray keeps the
config, the overrides and the environment of a job, and shows them to all who may use the cluster: no secrets in the
first two, and prefer the nodes' own identity (an instance role, a Kubernetes secret) to `--env`.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from cluster.config_secrets import check_no_secrets
from cluster.environment import BASE_VARIABLE, worker_environment
from cluster.errors import TOKEN_HELP, ClusterError
from cluster.shipping import CONFIG_FOLDER, code_folder

_RECONNECT_SECONDS = 2.0
_GIVE_UP_SECONDS = 120.0  # without any answer: a head node that restarts takes less, and one that is gone took its jobs


@dataclass(frozen=True, slots=True)
class Submission:
    """What `python -m jobs JOB CONFIG [key=value ...]` needs elsewhere."""

    job: str
    config: Path
    overrides: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    id: str | None = None  # names the job on the cluster, once; None makes one up


def open_client(address: str | None) -> JobSubmissionClient:
    """Connect to a dashboard, http://HEAD:8265; None takes the address from Ray's variables."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    if not address.startswith(("http://", "https://")):
        raise ClusterError(
            "give the address of the cluster's dashboard: --address http://HEAD:8265, or RAY_API_SERVER_ADDRESS"
            + (f"\nit is {address!r} now, which has no http:// or https://" if address else "")
        )
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers its variables to the argument
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # else Ray tells of every upload and connection
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ClusterError(f"{TOKEN_HELP}: {_refusal(address, error)}") from error
    except ConnectionError as error:
        raise ClusterError(f"check the address and the network; nothing answers at {address}") from error
    except (requests.RequestException, RuntimeError, ValueError, KeyError) as error:
        raise ClusterError(f"check the address; {address} does not answer like a Ray dashboard: {error}") from error


def submit(client: JobSubmissionClient, submission: Submission) -> str:
    """Send the code, the config and the command; returns the id that the cluster knows the job by.

    Raises ClusterError for a config or override that holds a secret: whoever may use the cluster could read it.
    """
    check_no_secrets(submission.config, submission.overrides)
    job_id = submission.id or _new_id(submission)
    command = ["python", "-m", "jobs", submission.job, f"{CONFIG_FOLDER}/{submission.config.name}"]
    env = {**worker_environment(), BASE_VARIABLE: str(Path.cwd()), "PYTHONUNBUFFERED": "1", **submission.env}
    with code_folder(submission.config) as folder:
        try:
            accepted: str = client.submit_job(
                entrypoint=shlex.join([*command, *submission.overrides]),
                entrypoint_num_cpus=0,  # the driver waits most of the time, and must not wait for a CPU to begin
                submission_id=job_id,
                runtime_env={"working_dir": str(folder), "env_vars": env},
                metadata={"job": submission.job, "config": str(submission.config), "user": _user()},
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            raise ClusterError(
                f"choose another --id, or look at what runs: a job {job_id!r} was submitted to this cluster before\n"
                f"python -m cluster status {job_id}"
            ) from error
    return accepted


def follow(client: JobSubmissionClient, job_id: str, out: TextIO = sys.stdout) -> int:
    """Copy the job's log to `out` until the job ends; returns its exit code, 1 where it has none (stopped, killed)."""
    asyncio.run(_copy_log(client, job_id, out))
    details = job_details(client, job_id)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    code: int | None = details.driver_exit_code
    if details.status == JobStatus.FAILED and code is not None and code > 0:
        return code
    print(f"job {job_id} {details.status.value.lower()}: {details.message or 'no reason given'}", file=sys.stderr)
    return 1


def stop(client: JobSubmissionClient, job_id: str) -> bool:
    """Stop a job and wait until it has ended; False where it had ended already."""
    job_details(client, job_id)  # says so where there is no such job
    was_running: bool = client.stop_job(job_id)
    while not job_details(client, job_id).status.is_terminal():
        time.sleep(0.5)
    return was_running


def job_details(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """The state of a job; waits a while for a cluster that does not answer just now."""
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    while True:
        try:
            return client.get_job_info(job_id)
        except requests.ConnectionError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(f"the cluster no longer answers; job {job_id} may still run on it") from error
            time.sleep(_RECONNECT_SECONDS)
        except RuntimeError as error:
            if "404" not in str(error):
                raise
            raise ClusterError(f"see `python -m cluster status` for the jobs; there is none {job_id!r}") from error


def submitted_jobs(client: JobSubmissionClient) -> list[JobDetails]:
    """The jobs that came through the Jobs API, latest first."""
    jobs = [job for job in client.list_jobs() if job.type == JobType.SUBMISSION]
    return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)


async def _copy_log(client: JobSubmissionClient, job_id: str, out: TextIO) -> None:
    """Follow the log, and after a lost connection again from the start without repeating what was printed."""
    num_printed = 0
    while True:
        num_seen = 0
        try:
            async for text in client.tail_job_logs(job_id):
                out.write(text[max(0, num_printed - num_seen) :])
                out.flush()
                num_seen += len(text)
                num_printed = max(num_printed, num_seen)
        except (RuntimeError, aiohttp.ClientError) as error:
            print(f"lost the log of {job_id}, trying again: {error}", file=sys.stderr)
        if job_details(client, job_id).status.is_terminal():
            break
        await asyncio.sleep(_RECONNECT_SECONDS)
    out.write(client.get_job_logs(job_id)[num_printed:])
    out.flush()


def _new_id(submission: Submission) -> str:
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return f"{submission.job}-{submission.config.stem}-{moment}-{secrets.token_hex(2)}"


def _refusal(address: str, error: AuthenticationError) -> str:
    if "Authentication required" in error.message:
        return f"the cluster at {address} wants a token and got none"
    return f"the cluster at {address} refused the token that it got"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
