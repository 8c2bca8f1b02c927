"""``python -m backend fit-judge``: fit the offline judge anew and measure it, every family, run and question left out once."""

import argparse
from pathlib import Path

from backend.cli.output import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rollouts", type=Path, required=True, help="folder with judged public rollouts (CSV, Turner's format)")
    parser.add_argument("--out", type=Path, required=True, help="folder for heads, judge.json and the features that were read; a second run goes on there")


def run(options: argparse.Namespace) -> int:
    from backend.judging.calibrate import make_judge

    make_judge(options.rollouts, options.out, say=say)
    return 0
