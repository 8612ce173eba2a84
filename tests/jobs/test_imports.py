"""What a process pays before it does anything: Ray, torch and the like are seconds of CPU time each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.command_line.main import JOBS
from tests.jobs.running import ROOT

HEAVY = {"ray", "torch", "transformers", "pandas", "scipy", "sklearn"}


def heavy_imports(code: str, folder: Path) -> set[str]:
    """The heavy packages that a fresh Python has imported after it ran `code`."""
    names = folder / "names.json"
    ending = f"import json, sys; json.dump(sorted(sys.modules), open({str(names)!r}, 'w'))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{ending}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(json.loads(names.read_text()))


def run_code(*arguments: str) -> str:
    return f"from jobs.command_line.main import main; assert main({list(arguments)!r}) == 0"


def test_the_list_of_jobs(tmp_path: Path) -> None:
    assert heavy_imports("from jobs.command_line.main import main; main([])", tmp_path) == set()


@pytest.mark.parametrize("job", JOBS)
def test_help(job: str, tmp_path: Path) -> None:
    assert heavy_imports(run_code(job, "--help"), tmp_path) == set()


def test_a_plan(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"id": {i}, "text": "time and people {i}"}}\n' for i in range(50)))
    config = tmp_path / "embed.yaml"
    config.write_text(
        f"source: {{path: {tmp_path}/rows.jsonl, id: id, text: text}}\nmodel: {tiny_model}\n"
        f"output: {{path: {tmp_path}/out}}\n"
    )
    assert heavy_imports(run_code("plan", str(config)), tmp_path) <= {"pandas"}
    assert (tmp_path / "out" / "plan.json").exists()


def test_only_embedding_workers_import_torch() -> None:
    code = (
        "import sys, jobs.embed, jobs.verify, jobs.evaluate\n"
        "import jobs.embedding.pipeline, jobs.embedding.checking_on_ray, jobs.embedding.workers\n"
        "costly = {'torch', 'transformers', 'sklearn', 'scipy', 'mteb', 'bm25s'}\n"
        "sys.exit(f'imported: {heavy}' if (heavy := costly & set(sys.modules)) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
