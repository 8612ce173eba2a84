"""Send jobs to a Ray cluster, and look after them: python -m cluster VERB.

    submit JOB CONFIG [key=value ...]   run `python -m jobs JOB CONFIG ...` there; prints its log, returns its exit code
    status [ID]                         all jobs, or one
    logs ID                             what a job printed; with --follow until it ends
    stop ID                             stop a job; what it has committed stays

The cluster is --address http://HEAD:8265, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS. Its token comes from
RAY_AUTH_TOKEN, from the file RAY_AUTH_TOKEN_PATH, or from ~/.ray/auth_token.

Exit codes: 0 done, 2 the command, the address or the token is wrong and nothing was submitted, 1 anything else;
`submit` and `logs --follow` return the job's own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.environment import sane_environment
from cluster.errors import ClusterError

if TYPE_CHECKING:  # ray takes a while to import, and reads its variables then: after they are set
    from ray.job_submission import JobDetails, JobSubmissionClient


def main(argv: list[str]) -> int:
    """Run one verb; returns the exit code."""
    args = _parse(argv)
    try:
        sane_environment(may_start_ray=False)
        return _VERBS[args.verb](args)
    except ClusterError as error:
        if args.debug:
            traceback.print_exc()
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        if args.debug:
            raise
        print(f"{type(error).__name__}: {error}\n(--debug shows where)", file=sys.stderr)
        return 1


def _submit(args: argparse.Namespace) -> int:
    if not args.config.is_file():
        raise ClusterError(f"check the path of the config; there is no file {args.config}")
    wrong = [override for override in args.overrides if "=" not in override]
    if wrong:
        raise ClusterError(f"write overrides as dotted.key=value; got {wrong[0]!r}")
    env = dict(_variable(entry) for entry in args.env)

    from cluster.submit import Submission, open_client, submit

    client = open_client(args.address)
    job_id = submit(client, Submission(args.job, args.config, tuple(args.overrides), env, args.id))
    if args.no_wait:
        print(job_id)
        return 0
    print(f"submitted {job_id} to {client.get_address()}", file=sys.stderr)
    return _follow(client, job_id, stop_on_interrupt=args.stop_on_interrupt)


def _follow(client: JobSubmissionClient, job_id: str, stop_on_interrupt: bool) -> int:
    from cluster.submit import follow, stop

    try:
        return follow(client, job_id)
    except KeyboardInterrupt:
        if stop_on_interrupt:
            stop(client, job_id)
            print(f"\nstopped {job_id}", file=sys.stderr)
        else:
            print(
                f"\n{job_id} runs on. Its log:  python -m cluster logs {job_id} --follow\n"
                f"Stop it:  python -m cluster stop {job_id}",
                file=sys.stderr,
            )
        return 1


def _status(args: argparse.Namespace) -> int:
    from cluster.submit import job_details, open_client, submitted_jobs

    client = open_client(args.address)
    if args.id is None:
        for details in submitted_jobs(client):
            print(_line(details))
        return 0
    details = job_details(client, args.id)
    print(_line(details))
    print(f"command    {details.entrypoint}\nuser       {(details.metadata or {}).get('user', '')}")
    print(f"exit code  {'' if details.driver_exit_code is None else details.driver_exit_code}")
    print(f"message    {details.message or ''}")
    return 0


def _line(details: JobDetails) -> str:
    begin = (details.start_time or 0) / 1000
    end = details.end_time / 1000 if details.end_time else time.time()
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begin))
    config = (details.metadata or {}).get("config", "")
    return f"{details.submission_id:<40} {details.status.value:<9} {began} {end - begin:>9.0f} s  {config}"


def _logs(args: argparse.Namespace) -> int:
    from cluster.submit import job_details, open_client

    client = open_client(args.address)
    job_details(client, args.id)  # says so where there is no such job
    if args.follow:
        return _follow(client, args.id, stop_on_interrupt=False)
    print(client.get_job_logs(args.id), end="")
    return 0


def _stop(args: argparse.Namespace) -> int:
    from cluster.submit import open_client, stop

    was_running = stop(open_client(args.address), args.id)
    print(f"stopped {args.id}" if was_running else f"{args.id} had ended already")
    return 0


_VERBS = {"submit": _submit, "status": _status, "logs": _logs, "stop": _stop}


def _variable(entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not equals and name not in os.environ:
        raise ClusterError(f"set {name} in your environment, or write --env {name}=VALUE; it is not set")
    return name, value if equals else os.environ[name]


def _parse(argv: list[str]) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--address", metavar="URL", help="the cluster's dashboard, http://HEAD:8265")
    common.add_argument("--debug", action="store_true", help="show a traceback with an error")

    parser = argparse.ArgumentParser(
        prog="python -m cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser("submit", parents=[common], help="run a job on the cluster", description=_SUBMIT_HELP)
    verb.add_argument("job", metavar="JOB", help="as in `python -m jobs JOB`")
    verb.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file, anywhere on this machine")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="overrides of the config, dotted.key=value")
    verb.add_argument(
        "--env",
        metavar="KEY[=VALUE]",
        action="append",
        default=[],
        help="a variable for the job, repeatable; without a value it is taken from here, such as --env HF_TOKEN "
        "or --env AWS_SECRET_ACCESS_KEY. Nothing else of your environment is sent. Who may use the cluster can read it",
    )
    verb.add_argument("--id", help="name the job; submitting the same name twice is refused, so a retry is safe")
    verb.add_argument("--no-wait", action="store_true", help="print the job's id and return at once")
    verb.add_argument("--stop-on-interrupt", action="store_true", help="Ctrl-C stops the job (else it runs on)")

    verb = verbs.add_parser("status", parents=[common], help="all jobs, or one")
    verb.add_argument("id", metavar="ID", nargs="?")
    verb = verbs.add_parser("logs", parents=[common], help="what a job printed")
    verb.add_argument("id", metavar="ID")
    verb.add_argument("--follow", action="store_true", help="go on until the job ends, and return its exit code")
    verb = verbs.add_parser("stop", parents=[common], help="stop a job")
    verb.add_argument("id", metavar="ID")

    # argparse takes overrides that stand before an option, and leaves those behind it
    args, rest = parser.parse_known_args(argv)
    if rest and (args.verb != "submit" or any(word.startswith("-") for word in rest)):
        parser.error(f"unknown: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


_SUBMIT_HELP = """Run `python -m jobs JOB CONFIG ...` on a Ray cluster: print its log, return its exit code.
The code (jobs, operators, cluster, configs) and CONFIG travel with the job; dependencies have to be there. Paths in
CONFIG are read on the cluster: s3:// or another URL, or a path on a file system that its nodes share with you, where
a relative path is relative to your current folder. Recipes of your own belong into configs/models."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
