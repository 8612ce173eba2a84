"""What the rooms of the embedder pay on import: the driver of a job asks recipes and tokenizes without a model."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import operators.embedder.recipe
import operators.embedder.tokens

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("room", [operators.embedder.recipe, operators.embedder.tokens])
def test_recipe_and_tokens_import_neither_torch_nor_transformers(room: ModuleType) -> None:
    modules = [module.name for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")]
    assert len(modules) > 5
    code = (
        f"import sys, {', '.join(modules)}\n"
        "sys.exit(f'imported: {found}' if (found := {'torch', 'transformers'} & set(sys.modules)) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
