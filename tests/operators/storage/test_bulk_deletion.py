"""Many files are removed in few requests, and what a request could not remove is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from operators.errors import InputError
from operators.storage import delete_all, list_folder, locate, write_whole
from operators.storage.location import Location
from tests.s3_servers import S3Server

NAMES = [f"{i:04d} é+&<.bin" for i in range(2300)]


@pytest.mark.parametrize("kind", ["local", "memory", "moto_server", "rgw_server"])
def test_only_the_files_named_go(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = a_place(kind, tmp_path, request)
    for name in (*NAMES[:5], "stays"):
        write_whole(place / name, b"x")
    delete_all([place / name for name in (*NAMES[:4], "never was")])
    assert [info.name for info in list_folder(place)] == [NAMES[4], "stays"]
    delete_all([])
    delete_all([place / NAMES[4], place / "stays"])
    assert list_folder(place) == []


@pytest.mark.parametrize("kind", ["moto_server", "rgw_server"])
def test_a_thousand_objects_a_request(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = a_place(kind, tmp_path, request)
    fs = place.fs
    for name in NAMES[-3:]:
        write_whole(place / name, b"x")
    sent: list[str] = []
    call = fs.call_s3

    def counted(method: str, *arguments: Any, **named: Any) -> Any:
        sent.append(method)
        return call(method, *arguments, **named)

    monkeypatch.setattr(fs, "call_s3", counted)
    delete_all([place / name for name in NAMES])
    assert sent == ["delete_objects"] * 3
    assert list_folder(place) == []


def test_a_file_that_may_not_be_removed_is_told(monkeypatch: pytest.MonkeyPatch, moto_server: S3Server) -> None:
    place = locate(f"s3://{moto_server.make_bucket()}/place", moto_server.storage_options)
    write_whole(place / "kept", b"x")
    answers = [{"Errors": [{"Key": "place/kept", "Code": "AccessDenied", "Message": "no"}]}]
    monkeypatch.setattr(place.fs, "call_s3", lambda *_, **__: answers[0])
    with pytest.raises(InputError, match="^get access to"):
        delete_all([place / "kept"])


def test_a_file_that_is_refused_for_a_moment_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, moto_server: S3Server
) -> None:
    place = locate(f"s3://{moto_server.make_bucket()}/place", moto_server.storage_options)
    answers = [{"Errors": [{"Key": "place/x", "Code": "SlowDown", "Message": "wait"}]}, {}]
    monkeypatch.setattr(place.fs, "call_s3", lambda *_, **__: answers.pop(0))
    delete_all([place / "x"])
    assert answers == []


def a_place(kind: str, folder: Path, request: pytest.FixtureRequest) -> Location:
    """An empty folder on a storage of that kind."""
    if kind == "local":
        return locate(str(folder / "place"))
    if kind == "memory":
        return locate("memory://bulk-deletion")
    server: S3Server = request.getfixturevalue(kind)
    return locate(f"s3://{server.make_bucket()}/some/place", server.storage_options)
