"""Fixtures that many tests share: one Ray for the whole session, tiny checkpoints, configs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from cluster.environment import sane_environment

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads of two test processes on two cores would wait for each other busily: faiss's tests then take twice as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sane_environment()  # before any test imports ray

from tests.checkpoints import tiny_bert  # noqa: E402  # after the environment is set
from tests.s3_servers import S3Server, moto_server, rgw_server  # noqa: E402

__all__ = ["moto_server", "rgw_server"]  # fixtures; imported once, or each importing module starts servers of its own

# A shared machine makes any deadline of an example a matter of luck.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with 32 dimensions that loads in a second."""
    return tiny_bert(tmp_path_factory.mktemp("checkpoints") / "tiny-bert")


@pytest.fixture(params=["moto_server", "rgw_server"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """Each S3 server."""
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of four logical CPUs that the session's in-process jobs share."""
    from cluster.session import connect

    with connect(local_cpus=4):
        yield
