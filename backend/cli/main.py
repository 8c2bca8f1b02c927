"""The parser: each command's module adds its own arguments and is imported only when it runs."""

import argparse
import gc
import importlib
import keyword
import sys

from backend.errors import BackendError

COMMANDS = {
    "models": "list base models, fetch or add one",
    "organisms": "list organisms; add, fetch or remove one",
    "generate": "answer prompts with any mix of variants",
    "evaluate": "answer a prompt set and judge the answers: rates with intervals",
    "judge": "judge the answers of a CSV file",
    "import": "judged rollouts, step summaries and Inspect logs into the store",
    "export": "a stored run as CSV or as an Inspect log",
    "rates": "rates of imported runs",
    "fit-judge": "fit the offline judge anew",
    "causal": "do the latents that changed most drive an organism, both ways?",
    "sweep": "answers at many doses of a direction, judged, beside random directions",
    "study": "training studies: many small fine-tunings of one question",
    "train": "fine-tune a LoRA organism on chat rows",
    "latents": "a text token by token, with latents of a sparse autoencoder",
    "diff": "latents that an organism activates more or less than its base",
    "pair": "all stored results of a base, its organisms and an SAE, in one go",
    "directions": "directions of the residual stream: make, import, list",
    "sae": "sparse autoencoders: list, fetch, add; make one for the embedded model",
    "space": "put PersonaScope on a Space of the Hub",
    "findings": "what was kept from pages: list it, show it, make it anew, files of it for others",
    "bench": "measure the engine beside the tools of the field",
    "doctor": "say what works on this machine",
}


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole name; parsers of sub-commands are of the same class."""

    def __init__(self, **options) -> None:
        super().__init__(**options, allow_abbrev=False)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 for a fault that was told, 130 for an interrupt."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = _Parser(prog="python -m backend", description="PersonaScope: explore misaligned personas in language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((a for a in given if a in COMMANDS), "")
    module = importlib.import_module(f"backend.cli.{chosen.replace('-', '_')}{'_' * keyword.iskeyword(chosen)}") if chosen else None
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        if name == chosen and module:
            module.add_arguments(command)
    options = parser.parse_args(given)
    try:
        return module.run(options) or 0 if module else 2
    except BackendError as fault:
        print(f"{fault}", file=sys.stderr)
        if next_command := getattr(fault, "command", ""):
            print(f"Run: {next_command}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    finally:
        gc.unfreeze()  # what the models' worker froze would be told as leaked by libraries that count their objects at the end
