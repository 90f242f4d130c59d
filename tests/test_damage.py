"""Thousands of damaged and odd inputs to every surface but corpora and audio (`data/test_mutations.py`), judged alike.

Each is right (worked, and what came out was looked at), refused by name, raw (an exception from inside that names
nothing), silent (accepted and wrong), loss (something that existed is gone) or hang. A few of each run in the suite; `-m slow`
runs thousands and prints the table, a surface at a time (`-k publishing`). With PART_FIRST_SEED=1000000 they are others.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import random
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_training
import torch
import yaml
from safetensors.torch import load_file

import train_part
from modeling_part import PARTForSpeechSeq2Seq, PARTPipeline, PARTProcessor
from modeling_part.evaluation.run_report import run_report
from modeling_part.evaluation.scoring import read_predictions, score
from modeling_part.publishing.contents import prepare
from modeling_part.recipes.arguments import parse_recipe
from modeling_part.recipes.stage_files import check_files
from modeling_part.recipes.stage_record import read_stage_json


SECONDS = 60  # of the processor, until what takes one counts as hanging; ten times as long for what waits
FIRST_SEED = int(os.environ.get("PART_FIRST_SEED", "0"))
SURFACES = {
    "recipes": 500,
    "processor": 500,
    "checkpoints": 450,
    "runs": 150,
    "publishing": 600,
    "metrics": 1200,
    "page": 200,
}
WORDS = [
    "",
    " ",
    "null",
    "NaN",
    "-1",
    "1e400",
    "é\u2028",
    "\t",
    '"',
    "[]",
    "{}",
    "0",
    "²",
    "9" * 30,
    "../../x",
    "<b>",
    "a\nb",
]
VALUES = [None, True, -1, 0, 10**30, 1e400, float("nan"), [], {}, [None], {"a": 1}, "\ud800", *WORDS]
SECRET = "hf_" + "a" * 34  # as long as a token


class Hang(BaseException):
    """It took longer than [`SECONDS`] allow: of the processor's, since a busy machine is no fault of an input."""


class Silent(AssertionError):
    """Accepted, and what came out is wrong."""


class Loss(AssertionError):
    """What was there is gone."""


def judge(action: Callable, names: list[str]) -> tuple[str, str]:
    """What becomes of an input, and the message. An exception is a refusal where the package itself raises it, or where
    it names the file, field or value."""

    def stop(*_):
        raise Hang

    before = [(number, signal.signal(number, stop)) for number in (signal.SIGALRM, signal.SIGPROF)]
    signal.alarm(10 * SECONDS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        action()
    except Hang:
        return "hang", ""
    except (Silent, Loss) as error:
        return type(error).__name__.lower(), str(error)
    except (Exception, SystemExit) as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        ours = f"{tiny.REPOSITORY}/modeling_part" in last.filename or last.filename.endswith("train_part.py")
        named = any(name in str(error) for name in names)
        is_refusal = bool(str(error)) and (named or (ours and last.line.startswith("raise")))
        place = f"{Path(last.filename).name}:{last.lineno}"
        return "refused" if is_refusal else "raw", f"{type(error).__name__}: {str(error)[:200]} ({place})"
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before:
            signal.signal(number, handler)
    return "right", ""


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Bytes with one thing wrong."""
    place, width = chance.randrange(len(data) + 1), chance.choice([1, 10, 1000])
    word = chance.choice(WORDS).encode("utf-8", "surrogatepass")
    return chance.choice(
        [
            data[:place],
            data[:place] + chance.randbytes(width) + data[place + width :],
            data[:place] + word + data[place:],
            data[:place] + data[place + width :],
            b"",
            bytes(len(data)),
            data + data,
            data.decode("utf-8", "replace").encode(chance.choice(["utf-16", "utf-8-sig", "latin-1"]), "replace"),
        ]
    )


def damaged_json(value: object, chance: random.Random, keys: list[str]) -> object:
    """JSON with one value of another kind, missing or too much, anywhere; the keys that lead to it are added to `keys`."""
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.15:
        return chance.choice(VALUES)
    key, copied = chance.choice(list(value) if isinstance(value, dict) else range(len(value))), value.copy()
    keys += [key] if isinstance(key, str) else []
    if chance.random() < 0.2:
        del copied[key]
    else:
        copied[key] = damaged_json(value[key], chance, keys)
    return copied


def damage_file(path: Path, chance: random.Random) -> list[str]:
    """Delete or damage a file, JSON in its values or in its bytes; the name of the file, and the keys of what was damaged."""
    names = [path.name]
    if chance.random() < 0.1:
        path.unlink()
    elif path.suffix == ".json" and chance.random() < 0.6:
        path.write_text(json.dumps(damaged_json(json.loads(path.read_bytes()), chance, names)))
    else:
        path.write_bytes(damaged(path.read_bytes(), chance))
    return names


def content(folder: Path) -> dict[str, str]:
    """A checksum of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_parts):
    """A finished stage, one that was stopped, and what to ask."""
    folder = tmp_path_factory.mktemp("made")
    corpus = tiny.tiny_corpus(folder / "corpus", sentences={"train": 4, "dev": 1, "test": 1}, words=(1, 2))
    stages = [{"name": "adapter", "max_steps": 3}, {"name": "joint", "max_steps": 1}]
    settings = {"stages": stages, "eval_data": None, "max_rows": 2, "save_strategy": "steps", "save_steps": 2}
    recipe = tiny_training.write_recipe(folder, tiny_parts, corpus, **settings)
    train_part.main([str(recipe)])
    run = folder / "run"
    whole = {name: load_file(run / name / "model.safetensors") for name in ("adapter", "joint")}
    stopped = folder / "stopped"
    shutil.copytree(run, stopped)
    shutil.rmtree(stopped / "joint")
    kept = stopped / "adapter" / "checkpoint-2"
    for path in (stopped / "adapter").iterdir():
        if path != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    model = PARTForSpeechSeq2Seq.from_pretrained(run / "joint")
    processor = PARTProcessor.from_pretrained(run / "joint")
    pipe = PARTPipeline(model, processor, max_new_tokens=2)
    predictions = (run / "joint" / "predictions.jsonl").read_bytes()
    names = SimpleNamespace(folder=folder, recipe=recipe, run=run, stopped=stopped, whole=whole)
    return SimpleNamespace(**vars(names), model=model, processor=processor, pipe=pipe, predictions=predictions)


# ----------------------------------------------------------------------------------------------------------- surfaces


def recipes(made, chance: random.Random, folder: Path) -> tuple[str, str]:
    """A recipe with one odd value, or one damaged text: what is held must be what is written."""
    recipe, path = yaml.safe_load(made.recipe.read_text()), folder / "recipe.yaml"
    if chance.random() < 0.5:
        recipe = damaged_json(recipe, chance, [])
        with contextlib.suppress(yaml.YAMLError):
            path.write_bytes(yaml.safe_dump(recipe, allow_unicode=False).encode("utf-8", "surrogatepass"))
    else:
        path.write_bytes(damaged(made.recipe.read_bytes(), chance))

    def parse():
        parsed = parse_recipe([str(path)])
        written = yaml.safe_load(path.read_bytes())
        groups = [parsed.model, parsed.data, parsed.training]
        held = {name: value for group in groups for name, value in vars(group).items()}
        for name, value in written.items():
            plain = (str, int, float, list)
            if (
                name != "stages"
                and type(value) is type(held[name])
                and isinstance(value, plain)
                and held[name] != value
                and not (
                    isinstance(value, (int, float)) and math.isclose(held[name], value)
                )  # 10**30 by way of a float
            ):
                raise Silent(f"{name} is {held[name]!r}, and {value!r} in the file")
        if missing := set(written) - set(held):
            raise Silent(f"{missing} are read and forgotten")

    return judge(parse, [str(path)])


def odd_audio(chance: random.Random) -> object:
    """A clip of another type, shape, rate or content, or a right one."""
    tone = np.sin(np.arange(chance.choice([0, 1, 100, 8000, 16_000])) / 20).astype(np.float32)
    changed = tone.copy()
    if len(changed):
        changed[chance.randrange(len(changed))] = chance.choice([np.nan, np.inf, 1e20, 0.5])
    rate = chance.choice([16_000, 8000, 44_100, 0, -1, 1, 999, 1e9, float("nan"), None, "16000", True, 16_000.5])
    kinds = [
        np.float16,
        np.float64,
        np.int8,
        np.int16,
        np.uint16,
        np.int64,
        np.complex64,
        bool,
        "datetime64[s]",
        object,
    ]
    return chance.choice(
        [
            tone,
            changed,
            tone.astype(np.float64).round().astype(chance.choice(kinds)) if len(tone) else tone,
            np.stack([tone] * chance.choice([2, 5])),
            tone.reshape(1, 1, -1),
            torch.from_numpy(tone).to(chance.choice([torch.bfloat16, torch.int16, torch.float64])),
            {"array": changed, "sampling_rate": rate},
            {"raw": tone, "sampling_rate": rate},
            {"path": chance.choice(WORDS), "bytes": chance.choice([None, b"", chance.randbytes(50)])},
            chance.randbytes(chance.choice([0, 10, 1000])),
            tone.tolist(),
            chance.choice(VALUES),
            Path(chance.choice(["/", ".", "/dev/null", "absent.wav"])),
        ]
    )


def odd_row(chance: random.Random) -> dict:
    """Arguments of a call, some of them odd."""
    row = {"task": chance.choice(["asr", "s2tt", "mt"]), "source_lang": "en", "target_lang": "fr", "text": "un"}
    row = {name: value for name, value in row.items() if chance.random() < 0.7}
    for _ in range(chance.choice([0, 1, 2])):
        row[chance.choice(["task", "source_lang", "target_lang", "text", "source_text", "prompt"])] = chance.choice(
            VALUES
        )
    return row


def processor(made, chance: random.Random, folder: Path) -> tuple[str, str]:
    """A call with odd audio and arguments: what comes out is finite, and as long as what goes in."""
    audio, row = odd_audio(chance), odd_row(chance)

    def call():
        batch = made.processor(audio, **row)
        if "input_features" in batch and not torch.isfinite(batch["input_features"]).all():
            raise Silent("features that are no numbers")
        if batch["input_ids"].shape != batch["attention_mask"].shape or not batch["attention_mask"].any():
            raise Silent("an empty prompt")
        if "labels" in batch and not (batch["labels"] >= 0).any(dim=1).all():
            raise Silent("an empty answer")

    return judge(call, ["`task`", "`text`", "source_lang", "target_lang", "`prompt`"])


def checkpoints(made, chance: random.Random, folder: Path) -> tuple[str, str]:
    """A damaged file of a finished stage: noticed by the next stage's look at it, and named by who loads it."""
    stage = folder / "joint"
    shutil.copytree(made.run / "joint", stage, ignore=shutil.ignore_patterns("checkpoint-*", "dev"))
    path = chance.choice([one for one in sorted(stage.iterdir()) if one.is_file()])
    before = path.read_bytes()
    names = damage_file(path, chance)
    is_changed = not path.exists() or path.read_bytes() != before
    loads = path.name.startswith(
        ("model", "config", "generation", "process", "tokenizer", "special", "chat", "prepro")
    )

    def load():
        if path.name == "stage.json" or path.name.startswith("model"):
            check_files(stage, read_stage_json(stage), "Put it back.")
            if is_changed and path.name.startswith("model"):
                raise Silent(f"{path.name} is damaged and taken")
        if loads:
            model = PARTForSpeechSeq2Seq.from_pretrained(stage)
            batch = PARTProcessor.from_pretrained(stage)(np.zeros(8000, np.float32))
            model.generate(**batch, max_new_tokens=1)
        else:
            shutil.copytree(made.run / "adapter", folder / "adapter", dirs_exist_ok=True)
            run_report(folder)

    return judge(load, [str(folder), *names])


def runs(made, chance: random.Random, folder: Path) -> tuple[str, str]:
    """An interrupted stage with a damaged file goes on to the same weights, or is refused and left as it is."""
    run = folder / "run"
    shutil.copytree(made.stopped, run)
    checkpoint = run / "adapter" / "checkpoint-2"
    path = chance.choice([one for one in sorted(checkpoint.iterdir()) if one.is_file()])
    before = path.read_bytes()
    names = damage_file(path, chance)
    files = content(run / "adapter")

    def resume():
        options = ["--output_dir", str(run), "--stage", "adapter", "--resume", "true"]
        try:
            train_part.main([str(made.recipe), *options])
        except (Exception, SystemExit):
            if content(run / "adapter") != files:
                raise Loss(f"{path.name}: refused, and not left as it was") from None
            raise
        weights = load_file(run / "adapter" / "model.safetensors")
        if any(not torch.equal(weights[name], tensor) for name, tensor in made.whole["adapter"].items()):
            raise Silent(f"{path.name} of {len(before)} bytes: other weights than without the damage")

    return judge(resume, [str(run), *names])


def publishing(made, chance: random.Random, folder: Path) -> tuple[str, str]:
    """A stage's folder with a damaged, secret or foreign file: nothing private goes out, and nothing is changed."""
    stage = folder / "joint"
    shutil.copytree(made.run / "joint", stage, ignore=shutil.ignore_patterns("checkpoint-*", "dev"))
    names = [one.name for one in sorted(stage.iterdir()) if one.is_file()]
    name = chance.choice([*names, "LICENSE", "NOTICE", "mine.bin", "optimizer.pt", "vocab.txt", "notes.md"])
    path = stage / name
    private = chance.random() < 0.3
    if private and path.suffix == ".json" and path.exists():
        held = json.loads(path.read_text())
        if isinstance(held, dict):
            held[chance.choice(list(held))] = chance.choice([SECRET, f"token {SECRET}", [SECRET], {"a": SECRET}])
        path.write_text(json.dumps(held))
    elif private:
        path.write_bytes((path.read_bytes() if path.exists() else b"") + f"\n{SECRET}\n".encode())
    elif path.exists():
        damage_file(path, chance)
    else:
        path.write_bytes(chance.randbytes(100))
    files = content(stage)
    completed = {one.name for one in (tiny.REPOSITORY / "modeling_part").glob("*_part.py")}
    completed |= {"config.json", "processor_config.json"}  # what lets transformers find the code

    def send():
        try:
            contents = prepare(stage, "ada/model")
        finally:
            after = content(stage)
            if any(after.get(name) != digest for name, digest in files.items() if name not in completed):
                raise Loss(f"{name}: the folder was changed")
        for sent, data in contents.items():
            data = data if isinstance(data, bytes) else Path(data).read_bytes()
            if SECRET.encode() in data and not sent.endswith(".safetensors"):
                raise Silent(f"a token goes out in {sent}")

    return judge(send, [str(stage), name])


def metrics(made, chance: random.Random, folder: Path) -> tuple[str, str]:
    """Damaged predictions: each is scored once or refused, and equal texts have no errors."""
    path = folder / "predictions.jsonl"
    lines = made.predictions.splitlines()
    if chance.random() < 0.6:
        place = chance.randrange(len(lines))
        row = json.loads(lines[place])
        if chance.random() < 0.5:
            row["hypothesis"] = row["reference"] = chance.choice([row["reference"], *WORDS])
        else:
            row = damaged_json(row, chance, [])
        lines[place] = json.dumps(row).encode()
        path.write_bytes(b"\n".join(lines))
    else:
        path.write_bytes(damaged(made.predictions, chance))

    def count():
        rows = read_predictions(path)
        report = score(rows, bootstrap_samples=5)
        if sum(group["utterances"] for group in report["groups"].values()) != len(rows):
            raise Silent("rows that are not counted")
        if rows and all(row["hypothesis"] == row["reference"] for row in rows):
            if any(group["error_rate"] for group in report["groups"].values()):
                raise Silent("equal texts with errors")
        json.dumps(report, allow_nan=False)

    return judge(count, [str(path)])


def page(made, chance: random.Random, folder: Path) -> tuple[str, str]:
    """What visitors of the page can send: a text, or a message that is not empty."""
    demo = pytest.importorskip("modeling_part.demo", reason="the page needs gradio")
    path = folder / chance.choice(["clip.wav", "clip.mp3", "clip.raw", "clip.txt", "é .flac", "clip.webm"])
    kind = chance.choice(["WAV", "FLAC", "OGG", "MP3"])
    import soundfile

    soundfile.write(path.with_suffix(".x"), np.sin(np.arange(8000) / 20), 16_000, format=kind)
    data = path.with_suffix(".x").read_bytes()
    path.write_bytes(damaged(data, chance) if chance.random() < 0.8 else data)
    audio = chance.choice([str(path)] * 8 + [None, str(folder)])
    task, source, target = chance.choice(["Transcribe", "Translate"]), chance.choice(["en", "", None, "tlh"]), "fr"

    def visit():
        try:
            *_, last = demo.answer(made.pipe, audio, task, source, target, max_minutes=1.0)
        except demo.gradio.Error as error:
            if not error.message.strip() or "<" in error.message:
                raise Silent(f"an empty message, or one with HTML: {error.message!r}") from None
            if error.message.split(":")[0].endswith("Error"):  # not foreseen: shown by its type
                raise RuntimeError(error.message) from None
            return
        if not any(last.texts.values()) and not last.status.strip():  # of silence the status tells
            raise Silent("neither a text nor a word on why")

    return judge(visit, [])


def survey(made, surface: str, count: int, folder: Path) -> tuple[Counter, list[str]]:
    """Judge `count` inputs; how many of each kind, and what is not right."""
    found, told = Counter(), []
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        place = folder / f"{surface}-{seed}"
        place.mkdir()
        verdict, message = globals()[surface](made, random.Random(f"{surface} {seed}"), place)
        found[verdict] += 1
        if verdict not in ("right", "refused"):
            told.append(f"{surface} {seed} {verdict}: {message}")
        shutil.rmtree(place)
    return found, told


@pytest.mark.parametrize("surface", ["recipes", "processor", "runs", "metrics", "page"])
def test_a_few_inputs(made, surface, tmp_path):
    _, told = survey(made, surface, 4 if surface == "runs" else 25, tmp_path)
    assert not told, "\n".join(told)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("surface", SURFACES)
def test_thousands_of_inputs(made, surface, tmp_path, capsys):
    logging.disable(logging.WARNING)
    try:
        found, told = survey(made, surface, SURFACES[surface], tmp_path)
    finally:
        logging.disable(logging.NOTSET)
    kinds = ("right", "refused", "raw", "silent", "loss", "hang")
    with capsys.disabled():
        print(
            "", "\t".join(["surface", *kinds]), "\t".join([surface, *(str(found[kind]) for kind in kinds)]), sep="\n"
        )
        print(*told, sep="\n")
    assert not found["silent"] and not found["loss"] and not found["hang"]
    assert found["raw"] < 0.02 * found.total()
