"""What looks like a secret in a config that is to be sent: Ray shows it to all who may use the cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import ClusterError

_SECRET_NAME = re.compile(
    r"(?i)^(key|sas|pwd|token)$|secret|passw|passphrase|credential|signature$|authorization|connection_?string"
    r"|(access|account|api|private|shared|encryption|customer|ssh|auth)[_-]?key"
    r"|(session|access|auth|bearer|security|refresh|api|hf|hub|id|sas|oauth)[_-]?token"
)
_PASSWORD = re.compile(r"://[^/?#\s]+(?<=[^/]):[^/?#\s]*@|://:[^/?#\s]*@")


def check_no_secrets(config: Path, overrides: Sequence[str]) -> None:
    """Raise ClusterError, naming the key and never the value, where the config or an override holds a secret."""
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise ClusterError(f"mend {config}: it is no YAML, so nobody can tell whether it holds a secret") from None
    found = list(_secrets(values, ""))
    for override in overrides:
        key, _, text = override.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ClusterError(f"mend the override of {key}: its value is no YAML") from None
        found += _secrets(_nested(key, value), "")
    if found:
        raise ClusterError(
            f"take {', '.join(found)} out of the config: Ray keeps it, and shows it to all who may use the cluster\n"
            "give the nodes an identity of their own, or send variables: --env AWS_SECRET_ACCESS_KEY"
        )


def _nested(key: str, value: Any) -> Any:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _secrets(value: Any, key: str, in_options: bool = False) -> Iterator[str]:
    """The dotted keys of what looks like a secret: by its name in storage options, or as a password in a URL."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            dotted = f"{key}.{name}" if key else str(name)
            if in_options and isinstance(inner, str) and inner and _SECRET_NAME.search(str(name)):
                yield dotted
            else:
                yield from _secrets(inner, dotted, in_options or name == "storage_options")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _secrets(inner, f"{key}.{number}", in_options)
    elif isinstance(value, str) and _PASSWORD.search(value):
        yield key
