"""Draw the figures of the explanations: ``python docs/figures/draw.py [NAME ...]``.

Each function of ``FIGURES`` computes numbers with the library, draws them and returns them. The pictures are committed
beside this script, and the numbers in ``figures.json``; tests/test_figures.py computes the numbers anew and compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from computed import COMPUTED, Numbers  # noqa: E402
from drawn import DRAWN  # noqa: E402

STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "legend.frameon": False,
    "svg.hashsalt": "imbalanced-losses",  # the same ids in each run
}


def as_lists(numbers: Numbers) -> dict[str, list[float]]:
    """Return what ``figures.json`` keeps: six digits of each number."""
    return {name: [float(f"{value:.6g}") for value in values.flatten().tolist()] for name, values in numbers.items()}


def main() -> None:
    """Draw all figures, or those named."""
    path = HERE / "figures.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in sys.argv[1:] or COMPUTED:
        numbers = COMPUTED[name]()
        kept[name] = as_lists(numbers)
        with mpl.rc_context(STYLE):
            figure = DRAWN[name](numbers)
            figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
        print(f"drew {name}.svg")
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
