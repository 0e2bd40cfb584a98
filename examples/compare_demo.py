"""Compare the ranking after BCE alone, Smooth-AP alone, and Smooth-AP after a warm-up on BCE.

    python examples/compare_demo.py --plot compare_demo.png

Data, model, queue and schedule are those of toy_demo.py. On each seed, which also splits the data, the three train from
the same weights on the same batches. The table shows the mean over the seeds. The last lines give the differences from
BCE alone, and say whether they are more than chance. With ``--data digits`` all seeds use the same images: the
intervals cover split, initialisation and order, not other data.

The defaults were chosen for toy_demo.py on seeds 100 to 107, not on the seeds shown, 0 to 4.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from comparison import Contender, Run, load_as_asked, make_parser, parse, run_demo
from toy_demo import Split, add_data_flag, batches_per_epoch, build_loss

from imbalanced_losses import LossWarmupWrapper


def with_flags(name: str, **flags: object) -> Contender:
    """Return the contender with the loss of toy_demo.py, with some flags fixed."""

    def build(args: argparse.Namespace, data: Split) -> LossWarmupWrapper:
        return build_loss(argparse.Namespace(**{**vars(args), **flags}), batches_per_epoch(data, args))

    return Contender(name, build)


CONTENDERS = (
    with_flags("warmup-only", loss="bce"),
    with_flags("AP-only", loss="smooth-ap", warmup_epochs=0, blend_epochs=0),
    with_flags("warmup+blend", loss="smooth-ap"),
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    add_data_flag(parser)
    return parse(parser, argv)


def main(argv: Sequence[str] | None = None) -> list[Run]:
    """Run the demo and return its runs."""
    args = parse_args(argv)
    return run_demo(args.data, load_as_asked, CONTENDERS, args, metrics={})


if __name__ == "__main__":
    main()
