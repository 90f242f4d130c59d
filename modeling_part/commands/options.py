# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What the verbs share: how one is added to the parser, and the options that several of them have."""

import argparse
from collections.abc import Callable, Mapping


def add_verb(
    verbs: argparse._SubParsersAction,
    run: Callable[[argparse.Namespace], None],
    summary: str,
    only_beside: Mapping[str, str] | None = None,
    goes_on: Callable[[argparse.Namespace], bool] = lambda options: False,
    passes_on: bool = False,
) -> argparse.ArgumentParser:
    """Add the verb that is called as its function.

    Args:
        verbs: of the parser, or of a group.
        run: what it does. A function imports its room when it runs, so that help is not kept waiting.
        summary: for the list of verbs, without capital and full stop.
        only_beside: options that mean nothing without another one, and that one.
        goes_on: whether the same command, after Ctrl-C, does not do again what is done.
        passes_on: unknown arguments are another program's, which has a `--debug` of its own.
    """
    sentence = f"{summary[0].upper()}{summary[1:]}."
    name = run.__name__.replace("_", "-")
    verb = verbs.add_parser(name, help=summary, description=sentence, allow_abbrev=False)
    if passes_on:
        verb.set_defaults(debug=False)
    else:
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verb.set_defaults(run=run, prog=verb.prog, only_beside=only_beside or {}, goes_on=goes_on, passes_on=passes_on)
    return verb


def add_group(verbs: argparse._SubParsersAction, name: str, summary: str) -> argparse._SubParsersAction:
    """Add a word that is followed by a verb."""
    group = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    return group.add_subparsers(title="verbs", metavar="VERB", required=True)


def add_seed(verb: argparse.ArgumentParser, of: str) -> None:
    """Add `--seed`."""
    verb.add_argument("--seed", type=at_least(0), default=0, help=f"{of} (default 0)")


def add_device(
    verb: argparse.ArgumentParser, help_text: str = "such as cuda:0 or cpu; the first accelerator by default"
) -> None:
    """Add `--device`."""
    verb.add_argument("--device", type=device, help=help_text)


def add_window(verb: argparse.ArgumentParser) -> None:
    """Add `--window`."""
    help_text = (
        "of longer recordings, heard at once; about as long as the clips trained on (default: the encoder's window)"
    )
    verb.add_argument("--window", type=float, metavar="SECONDS", help=help_text)


def device(name: str) -> str:
    """A device that is there; asked for, and torch loaded, only where one is named."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(
            f"{name!r} cannot be used here ({reason}); leave it out, or say cpu"
        ) from error
    return name


def at_least(least: int) -> Callable[[str], int]:
    """Reads a whole number that is not below a bound."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return number

    return read


def chosen(options: argparse.Namespace, *names: str) -> dict:
    """Some of the options, as keyword arguments."""
    return {name: getattr(options, name) for name in names}
