"""The files of a PEFT adapter, found and checked without torch, for the driver of a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from operators.embedder.recipe import checkpoint, fingerprint
from operators.errors import InputError


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter on this machine."""

    folder: Path
    weights: Path


def locate_adapter(name: str, weights: bool = True) -> AdapterFiles:
    """The files of an adapter: a folder, or a hub id with an optional `@revision`."""
    checkpoint_name, _, revision = name.partition("@")
    on_disk = Path(name).expanduser().is_dir()
    folder = (
        checkpoint.locate_root(name, None, weights)
        if on_disk
        else checkpoint.locate_root(checkpoint_name, revision or None, weights)
    )
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"adapter {name} is not one: {folder} has no adapter_config.json")
    kind = checkpoint.read_json(folder / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise InputError(f"adapter {name} is of the kind {kind}: only LORA is supported")
    files = AdapterFiles(folder, folder / "adapter_model.safetensors")
    if weights and not files.weights.is_file():
        pickled = " only pickled weights: convert them to" if (folder / "adapter_model.bin").is_file() else " no"
        raise InputError(f"adapter {folder} has{pickled} adapter_model.safetensors")
    return files


def adapter_digest(name: str) -> str:
    """What determines an adapter: its commit on the hub, or the contents of its files."""
    on_hub = checkpoint.is_hub_id(name.partition("@")[0]) and not Path(name).expanduser().is_dir()
    files = locate_adapter(name, weights=not on_hub)
    commit = checkpoint.hub_commit(files.folder) if on_hub else None
    return (
        f"{name.partition('@')[0]}@{commit}"
        if commit
        else fingerprint.files_digest([files.folder / "adapter_config.json", files.weights])
    )


def pinned(name: str) -> str:
    """An adapter's name with its hub commit, so that every worker loads the same."""
    if not checkpoint.is_hub_id(name.partition("@")[0]) or Path(name).expanduser().is_dir():
        return name
    commit = checkpoint.hub_commit(locate_adapter(name, weights=False).folder)
    return f"{name.partition('@')[0]}@{commit}" if commit else name
