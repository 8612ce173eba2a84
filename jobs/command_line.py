"""`python -m jobs JOB CONFIG.yaml [dotted.key=value ...]`: check the config, run the job, answer with an exit code.

Exit codes: 0 done; 2 the config or an input is wrong and nothing was written; 3 finished but a gate was missed;
1 anything else. The first line of an error says what to do; the traceback comes only with --debug.
"""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic import BaseModel

from cluster.environment import enter_base_directory, sane_environment
from cluster.errors import ClusterError
from jobs.config_keys import help_lines, key_of, kinds_at, section_of
from operators.errors import GateMissed, InputError
from operators.storage import redact

Config = TypeVar("Config", bound=BaseModel)

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
    if subject is None or config_file.endswith((".yaml", ".yml")):
        values = read_config(Path(config_file))
        # A job may take the configs of several others: it says which one the keys belong to.
        chosen: type[BaseModel] = job.config_of(values) if hasattr(job, "config_of") else model
        return check_config(chosen, values, overrides)
    return check_config(model, {subject: config_file}, overrides)


def load_config(model: type[Config], path: Path, overrides: Iterable[str]) -> Config:
    """The checked config of a YAML file with overrides on top; InputError names key, value and what was expected."""
    return check_config(model, read_config(path), overrides)


def read_config(path: Path) -> dict[str, Any]:
    """What a config file holds, unchecked; raises InputError for one that is no mapping of keys."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"check the config's path: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"check the config's path: {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"mend the YAML of {path}: {error}") from None
    values = {} if content is None else content
    if not isinstance(values, dict):
        raise InputError(f"write {path} as a mapping of keys, such as source, model and output; it holds {values!r}")
    return values


def check_config(model: type[Config], values: dict[str, Any], overrides: Iterable[str]) -> Config:
    """The checked config of these values with overrides on top; raises InputError as `load_config` does."""
    for override in overrides:
        _apply(values, override)
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError("\n".join(_explain(fault, model) for fault in _own_faults(error.errors()))) from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"write overrides as dotted.key=value; got {override!r}")
    *path, last = key.split(".")
    at = values
    for name in path:
        inner = at.setdefault(name, {})
        if inner is None:
            inner = at[name] = {}
        if not isinstance(inner, dict):
            raise InputError(f"override {override!r}: {name!r} is no section, it holds {inner!r}")
        at = inner
    try:
        at[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"override {override!r}: the value is no YAML: {error}") from None


def _own_faults(faults: Sequence[Any]) -> list[Any]:
    """Those that are no consequence of others: a list is also called too short when its items are wrong."""
    inside = [fault["loc"][: length + 1] for fault in faults for length in range(len(fault["loc"]) - 1)]
    return [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inside]


def _explain(fault: Any, model: type[BaseModel]) -> str:
    key = key_of(model, fault["loc"])
    # A misspelt section may hold credentials: what looks like a secret, or lies in storage options, is not printed.
    value = redact({str(fault["loc"][-1] if fault["loc"] else ""): fault["input"]})
    shown = "(not shown)" if "storage" in key or "***" in str(value) else repr(fault["input"])
    if fault["type"] == "extra_forbidden":
        names = ", ".join(section_of(model, fault["loc"][:-1]).model_fields)
        return f"{key}: unknown key (value {shown}); expected one of: {names}"
    if fault["type"] == "missing":
        return f"{key}: this key is required"
    if fault["type"] in ("union_tag_not_found", "union_tag_invalid"):
        kind, kinds = kinds_at(model, fault["loc"])
        given = fault["input"].get(kind) if isinstance(fault["input"], dict) else fault["input"]
        return f"{key}.{kind}: expected one of: {', '.join(kinds)}, got {given!r}"
    return f"{key}: {fault['msg']}, got {shown}"


def help_text(name: str, job: ModuleType) -> str:
    """What the job does and every key of its config with type, default and meaning."""
    subject = getattr(job, "SUBJECT", None)
    config = "CONFIG.yaml" if subject is None else f"CONFIG.yaml|{subject.upper()}"
    lines = [f"python -m jobs {name} {config} [dotted.key=value ...] [--debug]", "", (job.__doc__ or "").strip(), ""]
    return "\n".join([*lines, "Keys:", *help_lines(job.Config)])


def _job_list() -> str:
    lines = ["python -m jobs JOB CONFIG.yaml [dotted.key=value ...]      (--help after a JOB: every key)", ""]
    for name in JOBS:
        doc = _module(name).__doc__ or ""
        lines.append(f"  {name:14} {doc.strip().splitlines()[0]}")
    return "\n".join(lines)
