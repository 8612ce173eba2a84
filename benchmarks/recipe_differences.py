"""Largest difference of every published recipe from its reference, as the tests measure it.

    python -m benchmarks.recipe_differences

Runs the tests that record recipe, reference and difference in float32 (published recipes, sparse ones, models that see
images, static embedders, late chunking), and prints one line a recipe: the largest of its tests.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests" / "operators" / "embedder"
FILES = (
    "test_published_*.py",
    "tokens/test_windows.py",
    "sparse/test_sparse_recipes.py",
    "test_static_distillation.py",
    "static/test_word_vectors.py",
    "vision/test_vision_vectors.py",
)


def main() -> int:
    """Print the table; returns pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-m", "not slow", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        tests = sorted(str(path) for pattern in FILES for path in TESTS.glob(pattern))
        command = [sys.executable, "-m", "pytest", *options, *tests]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if not report.is_file():
            print(result.stdout, result.stderr, file=sys.stderr)
            return result.returncode
        rows = read_differences(report)
    print("| recipe | reference | largest difference |\n|---|---|---|")
    for recipe, (reference, difference) in sorted(rows.items()):
        print(f"| {recipe} | {reference} | {difference:.1e} |")
    print(f"\n{result.stdout.splitlines()[-1]}")
    return result.returncode


def read_differences(report: Path) -> dict[str, tuple[str, float]]:
    """Recipe -> reference and largest difference, from pytest's JUnit report."""
    rows: dict[str, tuple[str, float]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        recorded = [(item.get("name", ""), item.get("value", "")) for item in case.iter("property")]
        for i in range(0, len(recorded), 3):  # recipe, reference, difference; a test may compare several times
            recipe, reference, difference = (value for _, value in recorded[i : i + 3])
            known = rows.get(recipe, (reference, 0.0))[1]
            rows[recipe] = (reference, max(known, float(difference)))
    return rows


if __name__ == "__main__":
    sys.exit(main())
