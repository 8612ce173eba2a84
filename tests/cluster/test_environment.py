from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.environment import BASE_VARIABLE, ROOT, enter_base_directory

SHOW = """
import os
from cluster.environment import sane_environment
sane_environment(may_start_ray={may_start_ray})
shown = [os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED")]
print(shown, len(os.environ.get("RAY_AUTH_TOKEN", "")))
"""


@pytest.mark.parametrize(
    ("env", "may_start_ray", "shown"),
    [
        ({}, True, "['token', '0'] 64"),  # a token for a Ray of our own
        ({}, False, "[None, '0'] 0"),  # the cluster says whether it wants one
        ({"RAY_ADDRESS": "head:6379"}, True, "[None, '0'] 0"),
        ({"RAY_AUTH_TOKEN": "given"}, False, "['token', '0'] 5"),
        ({"RAY_AUTH_TOKEN": "given", "RAY_AUTH_MODE": "disabled"}, True, "['disabled', '0'] 5"),
        ({"RAY_USAGE_STATS_ENABLED": "1"}, False, "[None, '1'] 0"),  # the user wins
    ],
)
def test_environment_takes_part_in_authentication_as_the_user_set_it(
    env: dict[str, str], may_start_ray: bool, shown: str, tmp_path: Path
) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    script = SHOW.format(may_start_ray=may_start_ray)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**clean, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), **env},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == shown, done.stderr


@pytest.mark.parametrize(("base", "there"), [(None, "start"), ("shared", "shared"), ("absent", "/")])
def test_environment_of_a_submitted_job_puts_it_where_the_user_was(
    base: str | None, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("start", "shared"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "start")
    monkeypatch.delenv(BASE_VARIABLE, raising=False)
    if base is not None:
        monkeypatch.setenv(BASE_VARIABLE, str(tmp_path / base))
    enter_base_directory()
    assert Path.cwd() == tmp_path / there
