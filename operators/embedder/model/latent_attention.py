"""NV-Embed's latent attention: every token's state is rebuilt from trained vectors before the mean (arXiv 2405.17428).

    states -> norm -> attention, whose keys and values are the latents' -> + states -> norm -> GEGLU -> + states

Since a token attends to the latents and to no other token, padding needs no mask here. The modules bear the names that
the published checkpoint has, so that its weights load as they are.

Shapes: B rows, L padded length, D width of a state, M latents, H heads, K width of a head.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open

from operators.embedder.recipe.checkpoint import weight_files
from operators.errors import InputError

FEED_FORWARD_FACTOR = 4


class LatentAttention(torch.nn.Module):
    """states_BLD -> states_BLD; the published one has 512 latents and 8 heads, each as wide as the model (0.740B)."""

    def __init__(self, width: int, num_latents: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.latents = torch.nn.Parameter(torch.zeros(num_latents, width))
        attention = _CrossAttention(width, num_heads, head_width)
        self.cross_attend_blocks = torch.nn.ModuleList(
            [_PreNorm(width, attention, normed_context=True), _PreNorm(width, _FeedForward(width))]
        )

    def forward(self, states_BLD: torch.Tensor) -> torch.Tensor:
        """The rebuilt states."""
        attention, feed_forward = self.cross_attend_blocks
        states_BLD = attention(states_BLD, self.latents) + states_BLD
        result: torch.Tensor = feed_forward(states_BLD) + states_BLD
        return result


class _PreNorm(torch.nn.Module):
    def __init__(self, width: int, fn: torch.nn.Module, normed_context: bool = False) -> None:
        super().__init__()
        self.fn = fn
        self.norm = torch.nn.LayerNorm(width)
        self.norm_context = torch.nn.LayerNorm(width) if normed_context else None

    def forward(self, states_BLD: torch.Tensor, context_MD: torch.Tensor | None = None) -> torch.Tensor:
        states_BLD = self.norm(states_BLD)
        result: torch.Tensor = (
            self.fn(states_BLD) if self.norm_context is None else self.fn(states_BLD, self.norm_context(context_MD))
        )
        return result


class _CrossAttention(torch.nn.Module):
    def __init__(self, width: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = torch.nn.Linear(width, num_heads * head_width, bias=False)
        self.to_kv = torch.nn.Linear(width, 2 * num_heads * head_width, bias=False)
        self.to_out = torch.nn.Linear(num_heads * head_width, width, bias=False)

    def forward(self, states_BLD: torch.Tensor, context_MD: torch.Tensor) -> torch.Tensor:
        query_BHLK = self.to_q(states_BLD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key_MHK, value_MHK = self.to_kv(context_MD).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        shape = (len(states_BLD), -1, -1, -1)
        key_BHMK, value_BHMK = (x_MHK.transpose(0, 1)[None].expand(shape) for x_MHK in (key_MHK, value_MHK))
        result_BHLK = F.scaled_dot_product_attention(query_BHLK, key_BHMK, value_BHMK)
        result: torch.Tensor = self.to_out(result_BHLK.transpose(1, 2).flatten(2))
        return result


class _FeedForward(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = FEED_FORWARD_FACTOR * width
        self.net = torch.nn.Sequential(torch.nn.Linear(width, 2 * inner), _Geglu(), torch.nn.Linear(inner, width))

    def forward(self, states_BLD: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.net(states_BLD)
        return result


class _Geglu(torch.nn.Module):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        values, gates = states.chunk(2, dim=-1)
        return values * F.gelu(gates)


def load_latent_attention(folder: Path, prefix: str, num_heads: int, width: int) -> LatentAttention:
    """The head that a checkpoint has under `prefix`; raises InputError where it is not there or of another width."""
    weights: dict[str, torch.Tensor] = {}
    try:
        for path in (path for path in weight_files(folder) if path.suffix == ".safetensors"):
            with safe_open(path, framework="pt") as file:
                names = [name for name in list(file.keys()) if name.startswith(prefix)]
                weights |= {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read the latent attention of {folder}: {error}") from error
    latents, query = weights.get("latents"), weights.get("cross_attend_blocks.0.fn.to_q.weight")
    if latents is None or query is None:
        raise InputError(f"{folder} has no latent attention under {prefix!r}: check latent_attention.prefix")
    if latents.shape[1] != width or query.shape[0] % num_heads:
        raise InputError(
            f"the latent attention of {folder} is {latents.shape[1]} wide with queries of {query.shape[0]}; "
            f"expected {width} as the model has, and a multiple of {num_heads} heads"
        )
    head = LatentAttention(width, latents.shape[0], num_heads, query.shape[0] // num_heads)
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the latent attention of {folder} is not whole: {' '.join(str(error).split())}") from error
    return head.requires_grad_(False).eval()
