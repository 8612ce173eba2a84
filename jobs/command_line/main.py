"""`python -m jobs JOB CONFIG.yaml [dotted.key=value ...]`: check the config, run the job, answer with an exit code.

Exit codes: 0 done; 2 the config or an input is wrong and nothing was written; 3 finished but a gate was missed;
1 anything else. The first line of an error says what to do; the traceback comes only with --debug.
"""

from __future__ import annotations

import ast
import importlib
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from cluster.environment import enter_base_directory, sane_environment
from cluster.errors import ClusterError
from jobs.command_line.config_file import check_config, read_config
from jobs.command_line.config_keys import help_lines
from operators.errors import GateMissed, InputError

JOBS = (
    *("embed", "plan", "verify", "vacuum", "index", "search", "explain", "evaluate"),
    *("train", "distill", "distill-static"),
)


def main(arguments: Sequence[str]) -> int:
    """Run one job; returns the process's exit code."""
    words = [word for word in arguments if word not in ("--debug", "--help", "-h")]
    if not words or words[0] not in JOBS:
        print(_job_list(), file=sys.stderr if words else sys.stdout)
        if words:
            print(f"there is no job {words[0]!r}", file=sys.stderr)
        return 2 if words else 0
    sane_environment()  # before any job imports ray
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of categorical units at INFO
    job = _module(words[0])
    if {"--help", "-h"} & set(arguments):
        print(help_text(words[0], job))
        return 0
    if len(words) < 2:
        print(f"name a config: python -m jobs {words[0]} CONFIG.yaml [dotted.key=value ...]", file=sys.stderr)
        return 2
    return _run(job, words[1], words[2:], debug="--debug" in arguments)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"jobs.{name.replace('-', '_')}")


def _docstring(name: str) -> str:
    """What a job's module says of itself, read without importing what it needs."""
    source = Path(__file__).parents[1] / f"{name.replace('-', '_')}.py"
    return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""


def _run(job: ModuleType, config_file: str, overrides: Sequence[str], debug: bool) -> int:
    try:
        config = _config_of(job, config_file, overrides)
        enter_base_directory()
        code: int = job.run(config)
        return code
    except InputError as error:
        # What a worker raised comes as Ray's error, which is an InputError too but tells of processes first.
        return _fail(getattr(error, "cause", error), 2, debug)
    except GateMissed as error:
        return _fail(error, 3, debug)
    except KeyboardInterrupt:
        print("stopped; what was finished is kept: run the same command again to go on", file=sys.stderr)
        return 130
    except ClusterError as error:
        return _fail(error, 2, debug)
    except Exception as error:  # the last place that can turn a crash into an exit code and one readable line
        cause = getattr(error, "cause", None)  # Ray wraps what a worker raised
        if isinstance(cause, InputError):
            return _fail(cause, 2, debug)
        return _fail(cause if cause is not None and not debug else error, 1, debug)


def _fail(error: Exception, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    text = str(error) if code != 1 else f"{type(error).__name__}: {error}"
    first, _, rest = text.strip().partition("\n")
    print(f"error: {first}", file=sys.stderr)
    if rest:
        print(rest, file=sys.stderr)
    if code == 1 and not debug:
        print("run again with --debug for the traceback; what was finished is kept", file=sys.stderr)
    return code


def _config_of(job: ModuleType, config_file: str, overrides: Sequence[str]) -> BaseModel:
    """The config from a YAML file; or of overrides alone, where a job says which key a bare path stands for."""
    model: type[BaseModel] = job.Config
    subject = getattr(job, "SUBJECT", None)
    is_file = subject is None or config_file.endswith((".yaml", ".yml"))
    values: dict[str, Any] = read_config(Path(config_file)) if is_file else {str(subject): config_file}
    # A job may take the configs of several others: it says which one the keys belong to.
    chosen: type[BaseModel] = job.config_of(values) if hasattr(job, "config_of") else model
    return check_config(chosen, values, overrides)


def help_text(name: str, job: ModuleType) -> str:
    """What the job does and every key of its config with type, default and meaning."""
    subject = getattr(job, "SUBJECT", None)
    config = "CONFIG.yaml" if subject is None else f"CONFIG.yaml|{subject.upper()}"
    lines = [f"python -m jobs {name} {config} [dotted.key=value ...] [--debug]", "", (job.__doc__ or "").strip(), ""]
    return "\n".join([*lines, "Keys:", *help_lines(job.Config)])


def _job_list() -> str:
    lines = ["python -m jobs JOB CONFIG.yaml [dotted.key=value ...]      (--help after a JOB: every key)", ""]
    for name in JOBS:
        lines.append(f"  {name:14} {_docstring(name).strip().splitlines()[0]}")
    return "\n".join(lines)
