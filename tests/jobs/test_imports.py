"""What a process of the pipeline pays before it does anything."""

from __future__ import annotations

import subprocess
import sys

from tests.jobs.running import ROOT


def test_only_embedding_workers_import_torch() -> None:
    code = (
        "import sys, jobs.embed, jobs.verify, jobs.evaluate\n"
        "import jobs.embedding.pipeline, jobs.embedding.checking, jobs.embedding.workers\n"
        "costly = {'torch', 'transformers', 'sklearn', 'scipy', 'mteb', 'bm25s'}\n"
        "sys.exit(f'imported: {heavy}' if (heavy := costly & set(sys.modules)) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
