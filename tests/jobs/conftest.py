"""Jobs run inside the test process: what they import once must not belong to one test alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# Its log handler keeps the stderr of the moment, which inside a test that captures it is closed soon after.
import ray.data  # noqa: F401

import jobs.embed
import jobs.verify
from jobs.embedding import outcome, small, workers
from jobs.embedding.in_process import InProcess, in_process
from operators.embedder.factory import load_embedder
from operators.storage import Location


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of embed, verify and index take place in this process, whose model stays loaded, though a Ray may be up.

    For tests whose subject is not the workers: a run on Ray starts five processes, which takes ten CPU-seconds.
    """

    @contextmanager
    def here(config: Any, spec: Any, dataset: Location, *_: Any) -> Iterator[InProcess]:
        with in_process(config, spec, dataset) as place:
            yield place

    kept: dict[str, Any] = {}

    def load_once(spec: Any, **_: Any) -> Any:
        if spec.fingerprint not in kept:
            kept[spec.fingerprint] = load_embedder(spec)
        return kept[spec.fingerprint]

    monkeypatch.setattr(jobs.embed, "_place", here)
    monkeypatch.setattr(jobs.verify, "needs_no_ray", lambda *_: True)
    monkeypatch.setattr(small, "_has_ray", lambda: False)
    monkeypatch.setattr(outcome, "report_page", lambda _: "")  # half a second of plots a run
    monkeypatch.setattr(workers, "load_embedder", load_once)
