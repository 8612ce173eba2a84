"""What GPUs can do, by their makers' data sheets, and how much of it a training gets: assumptions, named as such."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU and how it is wired; all rates are of one GPU, in one direction."""

    name: str
    memory_bytes: float  # as sold; cards report some per cent more, which are left as a reserve
    bandwidth: float  # bytes/s of its memory
    flops_bfloat16: float  # dense, FLOP/s
    flops_float32: float  # without TF32, as torch computes by default
    node_size: int
    node_link: float  # bytes/s to the others of its node
    network: float  # bytes/s of its share of the node's network
    utilization: float  # assumed: share of the peak that all matrix products of a training reach
    source: str

    def link(self, num_gpus: int) -> float:
        """Bytes/s at which a ring over so many GPUs goes round.

        Across nodes every GPU of a node has a ring with a network card of its own, so the node's cards count together.
        """
        if num_gpus <= self.node_size:
            return self.node_link
        return min(self.node_link, self.node_size * self.network)


# Published: Llama 3 on H100 38 to 43 % (arXiv 2407.21783, table 4), Korthikanti et al. on A100 42 to 56 % (arXiv
# 2205.05198, table 5): long texts and tuned kernels. For plain PyTorch and short texts ours are optimistic.
ACCELERATORS = {
    one.name: one
    for one in (
        Accelerator(
            "H100", 80e9, 3.35e12, 989.4e12, 66.9e12, 8, 450e9, 50e9, 0.40,
            "NVIDIA H100 data sheet (SXM5); DGX H100: NVLink 900 GB/s both ways, 8 x 400 Gbit/s",
        ),
        Accelerator(
            "H200", 141e9, 4.8e12, 989.4e12, 66.9e12, 8, 450e9, 50e9, 0.40,
            "NVIDIA H200 data sheet (SXM); DGX H200: NVLink 900 GB/s both ways, 8 x 400 Gbit/s",
        ),
        Accelerator(
            "A100", 80e9, 2.039e12, 312e12, 19.5e12, 8, 300e9, 25e9, 0.45,
            "NVIDIA A100 data sheet (SXM4 80 GB); DGX A100: NVLink 600 GB/s both ways, 8 x 200 Gbit/s",
        ),
        Accelerator(
            "L4", 24e9, 0.3e12, 121e12, 30.3e12, 8, 32e9, 1.5625e9, 0.35,
            "NVIDIA L4 data sheet; PCIe 4.0 x16; 8 in a machine with 100 Gbit/s (Google g2-standard-96)",
        ),
    )
}  # fmt: skip
LINK_SHARE = 0.8  # assumed: of a link's rate that collectives reach
