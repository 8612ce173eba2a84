"""What a device computes in: nothing that it would emulate."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from operators.embedder.model.device import compute_dtype, multiplies

CPU = torch.device("cpu")
ASKED = """
import torch
from operators.embedder.model.device import compute_dtype
cpu = torch.device("cpu")
print([compute_dtype(name, cpu) for name in ("float32", "bfloat16", "float16")])
"""


def test_a_cpu_that_is_told_to_be_an_older_one_computes_in_float32() -> None:
    older = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    told = subprocess.run([sys.executable, "-c", ASKED], env=older, capture_output=True, text=True, check=True).stdout
    assert told.strip() == str([torch.float32] * 3)


def test_bfloat16_where_the_cpu_says_that_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert not multiplies(torch.bfloat16, CPU)
    assert compute_dtype("bfloat16", CPU) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True})  # as Arm's are named
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16
    assert compute_dtype("float16", CPU) == torch.float32


def test_other_devices_have_halves() -> None:
    assert compute_dtype("float16", torch.device("cuda")) == torch.float16
    assert compute_dtype("bfloat16", torch.device("mps")) == torch.bfloat16
