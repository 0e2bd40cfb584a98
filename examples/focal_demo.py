"""Compare the ranking after BCE, BCE with ``pos_weight``, focal loss with ``alpha`` and ``gamma``, or ``gamma`` only.

    python examples/focal_demo.py --gamma 2 --alpha 0.25 --plot focal_demo.png

Data and model are those of toy_demo.py. On each seed, which also splits the data, the four train from the same weights
on the same batches. The table shows the mean over the seeds. The last lines give the differences from BCE, and say
whether they are more than chance. With ``--data digits`` all seeds use the same images: the intervals cover split,
initialisation and order, not other data. With ``--warmup-epochs`` all four start with BCE. ``--queue-size`` and the
temperatures have no effect, because these losses have neither.

``gamma`` and ``alpha`` are those of the paper (Lin et al., ICCV 2017), and ``pos_weight`` is negatives / positives. The
rest was chosen for toy_demo.py on seeds 100 to 107, not on the seeds shown, 0 to 4.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial

from comparison import Run, WeightedBCE, after_warm_up, load_as_asked, make_parser, parse, run_demo
from toy_demo import add_data_flag, binary_cross_entropy

from imbalanced_losses import SigmoidFocalLoss

after_bce = partial(after_warm_up, lambda data: binary_cross_entropy())
CONTENDERS = (
    after_bce("BCE", lambda args, data: binary_cross_entropy()),
    after_bce("BCE + pos_weight", lambda args, data: WeightedBCE(data)),
    after_bce("focal alpha+gamma", lambda args, data: SigmoidFocalLoss(alpha=args.alpha, gamma=args.gamma)),
    after_bce("focal gamma only", lambda args, data: SigmoidFocalLoss(alpha=-1, gamma=args.gamma)),
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    add_data_flag(parser)
    parser.add_argument("--gamma", type=float, default=2.0, help="focus on hard rows (default %(default)s)")
    parser.add_argument("--alpha", type=float, default=0.25, help="weight of the positives (default %(default)s)")
    parser.set_defaults(warmup_epochs=0, blend_epochs=0)
    args = parse(parser, argv)
    if not 0 <= args.gamma < math.inf:
        parser.error(f"expected --gamma of at least 0 and finite, got {args.gamma}")
    if not 0 <= args.alpha <= 1:
        parser.error(f"expected --alpha between 0 and 1, got {args.alpha}")
    return args


def main(argv: Sequence[str] | None = None) -> list[Run]:
    """Run the demo and return its runs."""
    args = parse_args(argv)
    return run_demo(args.data, load_as_asked, CONTENDERS, args, metrics={})


if __name__ == "__main__":
    main()
