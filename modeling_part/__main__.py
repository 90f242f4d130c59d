# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The command `part`, also `python -m modeling_part`: what is done with recipes, runs and checkpoints.

    part quickstart speech data/asterisk      real speech, and its digits strung together to train on:
    part quickstart digits data/asterisk
    part train quickstart                     a recipe, through `accelerate launch`
    part report runs/quickstart               its stages side by side
    part demo runs/quickstart/joint           a web page with a microphone
    part publish runs/quickstart --repo_id USER/NAME --preview

The verbs are in `commands`.
"""

import argparse
import sys
from collections.abc import Sequence

from .commands.analyses import add_analyses
from .commands.checkpoints import add_checkpoints
from .commands.evaluation import add_evaluation
from .commands.quickstart import add_quickstart
from .commands.training import add_training
from .commands.transcribe import add_transcribe
from .recipes.user_errors import mistakes_in_one_message


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb.

    Args:
        argv: the words after `part`; None takes those of the command line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["train"]:
        from .recipes.help import leave_with_help

        leave_with_help(argv, "part train [options of accelerate launch]")
    parser = build_parser()
    passed_on = []
    if argv[:1] == ["experiment"] and "--" in argv:
        passed_on = argv[argv.index("--") + 1 :]
        argv = argv[: argv.index("--")]
    options, unknown = parser.parse_known_args(argv)
    if unknown and not options.passes_on:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    options.passed_on = [*unknown, *passed_on]
    with mistakes_in_one_message(options.prog, options.debug, lambda: _interrupted(options)):
        _refuse_without_effect(options)
        options.run(options)


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(
        prog="part",
        description="PART: progressive alignment of speech encoders and language models.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add in (add_training, add_transcribe, add_evaluation, add_analyses, add_checkpoints, add_quickstart):
        add(verbs)
    return parser


def _refuse_without_effect(options: argparse.Namespace) -> None:
    """Raise ValueError for an option that only means something beside another one."""
    for name, other in options.only_beside.items():
        if getattr(options, name) and not getattr(options, other):
            raise ValueError(f"--{name} has no effect without --{other}: add that, or leave it out.")


def _interrupted(options: argparse.Namespace) -> str:
    """What to say after Ctrl-C: whether what is done will be done again."""
    if not options.goes_on(options):
        return "Interrupted."
    # With it what is finished would be done again.
    is_forced = any(word.split("=")[0] == "--force" for word in options.passed_on)
    return f"Interrupted; the same command {'without --force ' * is_forced}goes on."


if __name__ == "__main__":
    main()
