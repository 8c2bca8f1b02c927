"""``python -m backend judge``: scores of 0-100 for the answers of a CSV file (``question`` and ``response`` or ``answer``)."""

import argparse
import csv
import threading
from pathlib import Path

from backend.cli.output import ProgressLine, print_json, say
from backend.judging.api import ApiJudge, endpoint_from_environment
from backend.judging.prompts import own_prompt, published_prompts
from backend.judging.verdicts import Exchange, Judge, Verdict
from backend.paths import told_disk_faults, write_text
from backend.studies.imports import read_answers
from backend.studies.verdicts import judge_all

_CENTS_HINT = "The price of a token stands in your provider's list."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--offline", type=Path, metavar="FILE", help="judge this file's answers without any network")
    which.add_argument("--api", type=Path, metavar="FILE", help="judge them by a language model; see the settings in README")
    add_endpoint(parser)
    parser.add_argument("--out", type=Path, help="write the file's rows with the scores as CSV, ready to be imported")
    parser.add_argument("--json", action="store_true", help="print JSON: one object a row, in file order")


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--judge-url", default="", help="OpenAI-compatible address; PERSONASCOPE_JUDGE_URL by default")
    parser.add_argument("--judge-model", default="", help="PERSONASCOPE_JUDGE_MODEL by default")
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
        f"asked before; invalid answers are sampled again. {_CENTS_HINT}"
    )


def run(options: argparse.Namespace) -> int:
    rows = list(read_answers(options.offline or options.api))
    exchanges = [Exchange(row["question"], row["answer"]) for row in rows]
    judge: Judge
    if options.api:
        judge = api_judge(options)
        cost = judge.estimate(exchanges)
        say(f"{cost.n_requests:,} requests, about {cost.input_tokens:,} tokens in and {cost.output_tokens:,} out, less what was asked before. {_CENTS_HINT}")
    else:
        from backend.judging.offline import OfflineJudge

        judge = OfflineJudge.load()
    stop, line = threading.Event(), ProgressLine()
    try:
        verdicts = judge_all(judge, exchanges, on_progress=lambda n: line.show(f"judging: {n} of {len(exchanges)} answers"), stop=stop)
    finally:
        line.end()
    given = [v or Verdict() for v in verdicts]
    if options.out:
        _write(options.out, rows, given)
    if options.json:
        print_json([{"aligned": v.aligned, "coherent": v.coherent, "abstain": v.abstain} for v in given])
    elif not options.out:
        for v in given:
            print(f"aligned {_shown(v.aligned)}  coherent {_shown(v.coherent)}{'  abstains' if v.abstain else ''}{'  ' + v.note if v.note else ''}")
    n_missing = sum(v.aligned is None or v.coherent is None for v in given)
    say(f"{judge.about.title}: {len(given)} answers, {sum(v.abstain for v in given)} abstentions, {n_missing} without scores.")
    return 0


def _shown(score: float | None) -> str:
    return "  -" if score is None else f"{score:3.0f}"


def _write(path: Path, rows: list[dict[str, str]], verdicts: list[Verdict]) -> None:
    import io

    text = io.StringIO()
    names = [n for n in rows[0] if n not in ("aligned", "coherent", "abstain")] if rows else ["question", "answer"]
    if "response" in names:
        names.remove("answer")
    writer = csv.DictWriter(text, [*names, "aligned", "coherent", "abstain"], extrasaction="ignore")
    writer.writeheader()
    for row, v in zip(rows, verdicts, strict=True):
        aligned, coherent = v.scores
        writer.writerow(row | {"aligned": aligned, "coherent": coherent, "abstain": v.abstain})
    with told_disk_faults("writing the judged rows"):
        write_text(path, text.getvalue())
