"""Everything that waits for a GPU, one part after the other: tests, a step's speed, generation, classes, experiments.

    make gpu                                              # or python tests/benchmarks/gpu.py
    python tests/benchmarks/gpu.py --parts step classes --minutes 10
    python tests/benchmarks/gpu.py --packages DIR         # .deb files of the sounds, where none can be downloaded
    python tests/benchmarks/gpu.py --device cpu --tiny --folder /tmp/gpu    # tries the program itself

Each part is a process of its own. It leaves `NAME.log`, `NAME.json` (how it ended, its last lines) and, where it measures,
`NAME.figures.json`. A part that fails does not stop the others; one that the time ends, or Ctrl-C, begins again in the next
run, and what has passed is not run again, unless it is another command now or passed on another machine. Delete the folder
to measure anew.

The experiments need recordings (the Asterisk core sounds, Tux Paint's stamps): what lies under data/ already, or comes
from `--packages`, or can be downloaded; without, they are not run, and the rest is.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from modeling_part.recipes.arguments import parse_recipe
from modeling_part.recipes.stages import build_plan


REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = Path(__file__).resolve().parent
LAST_LINES = 12
GRACE_SECONDS = 20  # from the request to stop to the end
PRETRAINED = ["--audio_model", "models/whisper-base", "--language_model", "models/SmolLM2-135M-Instruct"]
COMPILED = ["part_sanm", "part_sanm_static", "part_sanm_compiled"]
DIGITS = ["--train", "600", "--dev", "8", "--test", "12"]
SEEDS = ("42", "43", "44", "45", "46")
ALIGNED = {"digits": ("part_aligned",), "sentences": ("sentences_aligned", "data/sentences")}


@dataclass(frozen=True)
class Part:
    """
    One process.

    Attributes:
        name: of its files.
        command: its words.
        minutes: the most it may take, of what is left.
        needs: parts that must have passed.
    """

    name: str
    command: tuple[str, ...]
    minutes: float = 5.0
    needs: tuple[str, ...] = ()


def benchmark(name: str, program: str, folder: Path, options: Sequence[str], minutes: float = 5.0) -> Part:
    """A program beside this one, which writes its figures as JSON."""
    figures = folder / f"{name}.figures.json"
    return Part(name, (sys.executable, str(BENCHMARKS / program), *options, "--output", str(figures)), minutes)


def benchmarks(folder: Path, device: str, tiny: bool, memory_gib: float) -> list[Part]:
    """What measures. Whatever compiles, or comes from other packages, has a process of its own, as it may take that down."""
    common = ["--device", device, *(["--tiny"] if tiny else [])]
    few = ["--rounds", "1"] if tiny else []
    step = [*common, "--rows", "2", "--seconds", "1", "--steps", "2"] if tiny else common
    decodings = ["part_sanm", "part_sanm_static"]
    if not tiny:
        decodings += ["part_whisper", "qwen3_asr", "fun_asr_nano", "granite_speech", "qwen2_audio", "voxtral"]
    # Batches that keep a GPU busy: with few rows these small models wait for Python, all equally. Transformers' classes
    # need 1 GiB for a row of 20 s at the large vocabulary.
    rows = 48 if memory_gib > 70 else 12
    large = ["--rows", str(rows), "--padded_rows", str(rows // 4), "--memory_rows", str(rows), "--dtype", "bfloat16"]
    large = large if device == "cuda" else []
    classes = ["--parts", "gate"] if tiny else ["--parts", "classes", "gate", "memory", "tasks", "logits"]
    several = ["--rows", "16", "--seconds", "2", "6", "20"] if device == "cuda" else ["--seconds", "2"]
    drafts = ["--device", device, "--shape", "tiny" if tiny else "qwen2.5-1.5b", "--rounds", "1" if tiny else "3"]
    others = ["flex", "flash"]
    return [
        benchmark("step", "training_step.py", folder, [*step, "--skip", *others, "liger", "compiled"]),
        benchmark("classes", "training.py", folder, [*common, *few, *large, *classes]),
        benchmark("inference", "inference.py", folder, [*common, *few, *several, "--models", *decodings]),
        benchmark("drafts", "decoding.py", folder, drafts, 2.0),
        benchmark("kernels", "training_step.py", folder, [*step, "--only", *others], 3.0),
        benchmark(
            "liger", "training_step.py", folder, [*step, "--only", "liger"], 2.0
        ),  # it changes what comes after it
        benchmark("compiled", "training_step.py", folder, [*step, "--only", "compiled"]),
        benchmark(
            "inference_compiled", "inference.py", folder, [*common, *few, "--seconds", "6", "--models", *COMPILED], 3.0
        ),
    ]


def changes(data: str) -> dict[str, dict]:
    """What the aligned plan is compared with, at the same steps: the stages of each that are otherwise.

    The gate is taken out where the plan has it and put in where it has none. The baseline spends the steps of the stages
    that it leaves out in `encoder`, on both tasks with speech.
    """
    plan = {stage.name: stage for stage in build_plan(parse_recipe([*ALIGNED[data], *PRETRAINED]).training.stages)}
    joint = plan["joint"]
    speech = {"tasks": {task: joint.tasks[task] for task in ("asr", "s2tt")}}
    rates = {part: joint.learning_rates[part] for part in ("adapter", "encoder")}
    steps = sum(stage.max_steps for stage in plan.values()) - plan["adapter"].max_steps
    both = {**speech, "learning_rates": rates, "losses": dict(joint.losses), "max_steps": steps}
    gate = ("no_task_gate", "always") if joint.gate == "task_gated" else ("task_gate", "task_gated")
    return {
        gate[0]: {"joint": {"gate": gate[1]}},
        "no_text_tasks": {"joint": speech},
        "llm_frozen": {"joint": {**speech, "learning_rates": rates}},
        "baseline_2stage": {**dict.fromkeys(plan), "adapter": speech, "encoder": both},
    }


def experiments(folder: Path, packages: Path | None) -> list[Part]:
    """What trains on real speech: first one seed of each, whose figures are then there whatever the time that is left."""
    part = (sys.executable, "-m", "modeling_part")
    given = () if packages is None else ("--packages", str(packages))
    stamps = sorted(packages.glob("tuxpaint-stamps-default_*.deb")) if packages else []
    unpack = ("dpkg-deb", "-x", str(stamps[-1]), "data/tuxpaint") if stamps else ("ls", "data/tuxpaint")
    ablations = ("part", "baseline_2stage", "no_task_gate", "llm_always", "llm_frozen")
    sentences = ("--overlays", "data/sentences")
    options = (*PRETRAINED, "--precision", "auto", "--resume", "true")
    changed = {data: changes(data) for data in ALIGNED}
    folder.mkdir(parents=True, exist_ok=True)
    needs = {"digits": ("models", "digits"), "sentences": ("models", "speech", "stamps")}

    def aligned(data: str, seed: str, change: str | None = None) -> Part:
        """A run with alignment; one with a change takes the stages before it from the run without."""
        name, plain = (f"{data}_{what}_{seed}" for what in (change or "aligned", "aligned"))
        recipes, kept = ALIGNED[data], ()
        if change is not None:
            laid_over = folder / f"{data}_{change}.yaml"
            laid_over.write_text(yaml.safe_dump({"stages": changed[data][change]}), encoding="utf-8")
            recipes = (*recipes, str(laid_over))
            kept = ("--reuse_runs", str(folder / "runs" / plain))
        words = ("train", *recipes, *options, *kept, "--seed", seed, "--output_dir", str(folder / "runs" / name))
        return Part(name, (*part, *words), 15.0, needs[data] if change is None else (*needs[data], plain))

    def runs(
        name: str, recipes: Sequence[str], needs: tuple[str, ...], *laid_over: str, seeds=("42", "43", "44")
    ) -> Part:
        # Recipes on other data have a folder of their own: a run's is called after recipe and seed.
        where = str(folder / "runs" / ("sentences" if laid_over else "digits"))
        words = [*part, "experiment", *recipes, "--folder", where, *laid_over, "--seeds", *seeds]
        return Part(name, (*words, "--", *options), 25.0, needs)

    first = {"seeds": ("42",)}
    return [
        Part("speech", (*part, "quickstart", "speech", "data/asterisk", *given), 2.0),
        Part("stamps", unpack, 1.0),
        Part("models", (*part, "quickstart", "models", "models"), 3.0),
        Part("digits", (*part, "quickstart", "digits", "data/asterisk", *DIGITS), 2.0, ("speech",)),
        *(aligned(data, "42", change) for data in ALIGNED for change in (None, *changed[data])),
        runs("digits_recipes", ablations, needs["digits"], **first),
        *(aligned("digits", seed) for seed in SEEDS[1:]),
        *(aligned("sentences", seed, change) for seed in SEEDS[1:3] for change in (None, *changed["sentences"])),
        runs("sentences_recipes", ablations, needs["sentences"], *sentences, **first),
        runs("digits_recipes_3", ablations, needs["digits"]),
        runs("sentences_recipes_3", ablations, needs["sentences"], *sentences),
    ]


def all_parts(
    folder: Path, device: str, tiny: bool, memory_gib: float = 0.0, packages: Path | None = None
) -> list[Part]:
    """What is run, in this order."""
    files = [
        path for path in sorted((REPOSITORY / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()
    ]
    tests = (sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", *map(str, files))
    return [
        Part("tests", (*tests, "-k", "not kernels_of_attention")),
        Part("tests_of_kernels", (*tests, "-k", "kernels_of_attention")),  # which compile, for minutes
        *benchmarks(folder, device, tiny, memory_gib),
        *experiments(folder, packages),
    ]


def run_part(part: Part, folder: Path, seconds: float) -> dict:
    """Run to the end or for so many seconds; what is written of it."""
    log, began = folder / f"{part.name}.log", time.monotonic()
    paths = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            part.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # so that all of its processes can be ended together
        )
        outcome = "out of time"
        try:
            process.wait(seconds)
            outcome = "passed" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                end(process)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    took = time.monotonic() - began
    return {"outcome": outcome, "returncode": process.returncode, "seconds": took, "last_lines": lines[-LAST_LINES:]}


def end(process: subprocess.Popen):
    """Ask a process and its children to stop (training saves first), then make them.

    Children that outlive it, such as the training of an experiment, have the same time.
    """
    asked = time.monotonic()
    try:
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() - asked < GRACE_SECONDS:
            process.poll()  # or it would stay in its group
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # nothing of the group is left
        pass
    process.wait()


def run_parts(parts: Sequence[Part], folder: Path, minutes: float, machine: dict) -> dict[str, str]:
    """Run what has not passed yet, as far as the time goes; the outcome of each part."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * minutes
    outcomes = {}
    for part in parts:
        record = folder / f"{part.name}.json"
        before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        left = deadline - time.monotonic()
        missing = [name for name in part.needs if outcomes.get(name, "passed") != "passed"]
        this = {"part": part.name, "command": list(part.command), "machine": machine}
        others = [name for name, value in this.items() if before.get(name) != value]
        if before.get("outcome") == "passed" and not others:
            outcomes[part.name] = "passed"
            print(f"{part.name}: passed before, {before['seconds']:.0f} s", flush=True)
            continue
        if missing or left <= 0:
            outcomes[part.name] = f"not run: {', '.join(missing)} did not pass" if missing else "not run: no time left"
            print(f"{part.name}: {outcomes[part.name]}", flush=True)
            continue
        if before.get("outcome") == "passed":
            told = ", ".join(f"{name} {before.get(name)}" for name in others)
            print(f"{part.name}: passed before with {told}; now again", flush=True)
        print(f"{part.name}: {' '.join(part.command)}", flush=True)
        result = run_part(part, folder, min(60 * part.minutes, left))
        outcomes[part.name] = result["outcome"]
        record.write_text(json.dumps({**this, **result}, indent=1), encoding="utf-8")
        print(
            *result["last_lines"], f"{part.name}: {result['outcome']}, {result['seconds']:.0f} s", sep="\n", flush=True
        )
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 1 where one did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", help="all unless given")
    parser.add_argument("--minutes", type=float, default=22.0, help="for all of them (22: `make gpu` installs first)")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--packages", type=Path, help="folder with the .deb files of the recordings")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try this program")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device; `--device cpu --tiny` tries this program without one.")
    folder = options.folder.resolve()
    machine, memory = {"torch": torch.__version__, "device": options.device}, 0.0
    if options.device == "cuda":
        machine["device"] = torch.cuda.get_device_name()
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    packages = None if options.packages is None else options.packages.resolve()
    parts = all_parts(folder, options.device, options.tiny, memory, packages)
    if unknown := set(options.parts or ()) - {part.name for part in parts}:
        raise SystemExit(f"There are no parts {sorted(unknown)}; there are {[part.name for part in parts]}.")
    chosen = [part for part in parts if options.parts is None or part.name in options.parts]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the part's processes on the way
    outcomes = run_parts(chosen, folder, options.minutes, machine)
    print(f"{machine['device']}, torch {machine['torch']}; logs and figures are in {folder}")
    for name, outcome in outcomes.items():
        print(f"{name:20} {outcome}")
    return 0 if set(outcomes.values()) <= {"passed"} else 1


if __name__ == "__main__":
    sys.exit(main())
