"""What the extra `evaluate` brings; without it evaluations are refused before anything is read."""

from __future__ import annotations

import importlib.util

from operators.errors import InputError

_PACKAGES = ("pytrec_eval", "sklearn", "scipy", "bm25s", "Stemmer")


def check_installed() -> None:
    """Raise InputError, saying what to install, where a package of the extra is not there."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"install the extra: pip install 'embedfleet[evaluate]' ({', '.join(missing)} not found)")
