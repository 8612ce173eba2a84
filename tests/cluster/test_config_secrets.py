"""A config that is sent to a cluster holds no secret, and the refusal does not tell it either."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.config_secrets import check_no_secrets
from cluster.errors import ClusterError

CANARY = "CANARY-b52e"


@pytest.mark.parametrize(
    ("values", "overrides", "key"),
    [
        ({"source": {"storage_options": {"secret": CANARY}}}, [], "source.storage_options.secret"),
        (
            {"output": {"storage_options": {"client_kwargs": {"aws_session_token": CANARY}}}},
            [],
            "output.storage_options.client_kwargs.aws_session_token",
        ),
        ({"sets": [{"storage_options": {"headers": {"Authorization": CANARY}}}]}, [], "sets.0.storage_options.headers"),
        ({"output": {"path": f"sftp://me:{CANARY}@host/x"}}, [], "output.path"),
        ({}, [f"output.storage_options.key={CANARY}"], "output.storage_options.key"),
        ({}, [f"output.storage_options={{password: {CANARY}}}"], "output.storage_options.password"),
        ({}, [f"source.path=ftp://:{CANARY}@host/x"], "source.path"),
        ({}, [f"source.storage_options.key={{{CANARY}: ["], "source.storage_options.key"),
    ],
)
def test_a_secret_is_refused_by_its_key(
    tmp_path: Path, values: dict[str, object], overrides: list[str], key: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    with pytest.raises(ClusterError, match=key) as caught:
        check_no_secrets(config, overrides)
    assert CANARY not in str(caught.value)


def test_what_is_no_secret_may_go(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    options = {"endpoint_url": "http://minio:9000", "anon": False, "client_kwargs": {"region_name": "eu"}, "key": None}
    config.write_text(yaml.safe_dump({"source": {"id": "key", "storage_options": options}, "model": "a"}))
    check_no_secrets(config, ["embedder.max_tokens=12", "source.id=token"])
