"""``python -m backend judge``: scores of 0-100 for the answers of a CSV file (``question`` and ``response`` or ``answer``)."""

import argparse
import csv
import io
import threading
from collections import Counter
from pathlib import Path

from backend.cli.output import ProgressLine, check_out, print_json, say
from backend.errors import InputError
from backend.judging.api import ApiJudge
from backend.judging.endpoint import endpoint_from_environment
from backend.judging.prompts import own_prompt, published_prompts
from backend.judging.verdicts import Exchange, Judge, Verdict
from backend.paths import told_disk_faults, write_text
from backend.studies.imports import free_name, read_answers
from backend.studies.verdicts import judge_all

_SCORES = ("aligned", "coherent", "abstain")
CENTS_HINT = "The price of a token stands in your provider's list."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--offline", type=Path, metavar="FILE", help="judge this file's answers without any network")
    which.add_argument("--api", type=Path, metavar="FILE", help="judge them by a language model; see the settings in README")
    add_judge(parser)
    parser.add_argument("--out", type=Path, help="write the file's rows with the scores as CSV, ready to be imported")
    parser.add_argument("--json", action="store_true", help="print JSON: one object a row, in file order")


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--judge-url", default="", help="OpenAI-compatible address; PERSONASCOPE_JUDGE_URL by default")
    parser.add_argument("--judge-model", default="", help="PERSONASCOPE_JUDGE_MODEL by default")


def add_judge(parser: argparse.ArgumentParser) -> None:
    add_endpoint(parser)
    parser.add_argument("--judge-prompts", default="", metavar="FILE", help="take the judge prompts from a published question file (YAML)")


def api_judge(options: argparse.Namespace, *, grades: bool = False) -> ApiJudge:
    """The API judge as options and environment say."""
    endpoint = endpoint_from_environment(url=options.judge_url, model=options.judge_model)
    if grades:
        return ApiJudge(endpoint, [own_prompt("grade")])
    return ApiJudge(endpoint, published_prompts(options.judge_prompts) if options.judge_prompts else ())


def say_cost(judge: ApiJudge, n_answers: int, n_tokens: int) -> None:
    """Say what a run will ask of the endpoint, before it starts."""
    one = judge.estimate([Exchange("x" * 200, "x" * 4 * n_tokens)])
    say(
        f"About {one.n_requests * n_answers:,} requests, {one.input_tokens * n_answers:,} tokens in and {one.output_tokens * n_answers:,} out, less what was "
        f"asked before; invalid answers are sampled again. {CENTS_HINT}"
    )


def run(options: argparse.Namespace) -> int:
    file = options.offline or options.api
    if options.out:
        check_out(options.out)
        if options.out.resolve() == file.resolve():
            raise InputError(f"{options.out} is the file that is to be judged. Give --out another name.")
    given = list(read_answers(file))
    exchanges = [exchange for exchange, _ in given]
    judge: Judge
    if options.api:
        judge = api_judge(options)
        cost = judge.estimate(exchanges)
        say(f"{cost.n_requests:,} requests, about {cost.input_tokens:,} tokens in and {cost.output_tokens:,} out, less what was asked before. {CENTS_HINT}")
    else:
        from backend.judging.offline import OfflineJudge

        judge = OfflineJudge.load()
    stop, line = threading.Event(), ProgressLine()
    try:
        verdicts = judge_all(judge, exchanges, on_progress=lambda n: line.show(f"judging: {n} of {len(exchanges)} answers"), stop=stop)
    finally:
        line.end()
    found = [v or Verdict() for v in verdicts]
    if options.out:
        _write(options.out, [row for _, row in given], found)
    if options.json:
        print_json([{name: getattr(v, name) for name in _SCORES} for v in found])
    elif not options.out:
        for v in found:
            print(f"aligned {_shown(v.aligned)}  coherent {_shown(v.coherent)}{'  abstains' if v.abstain else ''}{'  ' + v.note if v.note else ''}")
    missing = [v for v in found if v.aligned is None or v.coherent is None]
    say(f"{judge.about.title}: {len(found)} answers, {sum(v.abstain for v in found)} abstentions, {len(missing)} without scores.{_why(missing)}")
    return int(bool(found) and len(missing) == len(found))


def _why(missing: list[Verdict]) -> str:
    """The commonest reason why scores are missing, and the next step; empty where none are."""
    if not missing:
        return ""
    reasons = [v.note.split("; ")[0].partition(": ")[2] for v in missing]
    (kind, is_partial), n = Counter((reason.partition(" in ")[0], v.is_partial) for reason, v in zip(reasons, missing, strict=True)).most_common(1)[0]
    example = next(reason for reason in reasons if reason.startswith(kind))
    step = "Run the same again: only these are asked." if is_partial else "Replies are kept; give another --judge-model or other --judge-prompts."
    return f" Commonest reason: {example} ({n} answer{'s' * (n > 1)}). {step}"


def _shown(score: float | None) -> str:
    return "  -" if score is None else f"{score:3.0f}"


def _write(path: Path, rows: list[dict[str, str]], verdicts: list[Verdict]) -> None:
    """The file's own columns, earlier scores among them by another name, and the new scores."""
    text = io.StringIO()
    names = list(rows[0]) if rows else ["question", "answer"]
    writer = csv.writer(text)
    writer.writerow([free_name(f"{n}_before", names) if n.casefold() in _SCORES else n for n in names] + list(_SCORES))
    for row, v in zip(rows, verdicts, strict=True):
        writer.writerow([*row.values(), *v.scores, v.abstain])
    with told_disk_faults("writing the judged rows"):
        write_text(path, text.getvalue())
