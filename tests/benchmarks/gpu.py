"""Everything that waits for a GPU, one part after the other: tests, a step's speed, generation, classes, experiments.

    make gpu                                              # or python tests/benchmarks/gpu.py
    python tests/benchmarks/gpu.py --parts step classes --minutes 10
    python tests/benchmarks/gpu.py --device cpu --tiny --folder /tmp/gpu    # tries the program itself

Each part is a process of its own. It leaves `NAME.log`, `NAME.json` (how it ended, its last lines) and, where it measures,
`NAME.figures.json`. A part that fails does not stop the others; one that the time ends, or Ctrl-C, begins again in the next
run, and what has passed is not run again. Delete the folder to measure anew.
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


REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = Path(__file__).resolve().parent
LAST_LINES = 12
GRACE_SECONDS = 20  # from the request to stop to the end
PRETRAINED = ["--audio_model", "models/whisper-base", "--language_model", "models/SmolLM2-135M-Instruct"]


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


def all_parts(folder: Path, device: str, tiny: bool) -> list[Part]:
    """What is run, in this order."""
    common = ["--device", device, *(["--tiny"] if tiny else [])]
    few = ["--rounds", "1"] if tiny else []
    step = [*common, "--rows", "2", "--seconds", "1", "--steps", "2"] if tiny else common
    dtype = ["--dtype", "bfloat16"] if device == "cuda" else []
    decodings = ["part_sanm", "part_sanm_static"] if tiny else []
    classes = ["--parts", "gate"] if tiny else ["--parts", "classes", "gate", "tasks", "logits"]
    part = [sys.executable, "-m", "modeling_part"]
    experiment = [*part, "experiment", "--folder", str(folder / "runs")]
    passed_on = ["--", *PRETRAINED, "--precision", "auto", "--resume", "true"]
    prepared = ("speech", "digits", "models")
    ablations = ["part", "baseline_2stage", "no_task_gate", "llm_always", "llm_frozen"]
    return [
        Part("tests", (sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests")),
        benchmark("step", "training_step.py", folder, step, 6.0),
        benchmark(
            "inference", "inference.py", folder, [*common, *few, *(["--models", *decodings] if decodings else [])]
        ),
        benchmark("classes", "training.py", folder, [*common, *few, *dtype, *classes], 6.0),
        Part("speech", (*part, "quickstart", "speech", "data/asterisk")),
        Part("models", (*part, "quickstart", "models", "models")),
        Part(
            "digits",
            (*part, "quickstart", "digits", "data/asterisk", "--train", "600", "--dev", "8", "--test", "12"),
            needs=("speech",),
        ),
        Part("aligned", (*experiment, "part_aligned", "--seeds", "42", "43", "44", *passed_on), 25.0, prepared),
        Part("ablations", (*experiment, *ablations, "--seeds", "42", "43", "44", *passed_on), 25.0, prepared),
        Part(
            "sentences",
            (*experiment, *ablations, "--overlays", "data/sentences", "--seeds", "42", "43", "44", *passed_on),
            25.0,
            prepared,
        ),
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
    """Ask a process and its children to stop (training saves first), then make them."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
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
        if before.get("outcome") == "passed":
            outcomes[part.name] = "passed"
            print(f"{part.name}: passed before, {before['seconds']:.0f} s", flush=True)
            continue
        if missing or left <= 0:
            outcomes[part.name] = f"not run: {', '.join(missing)} did not pass" if missing else "not run: no time left"
            print(f"{part.name}: {outcomes[part.name]}", flush=True)
            continue
        print(f"{part.name}: {' '.join(part.command)}", flush=True)
        result = run_part(part, folder, min(60 * part.minutes, left))
        outcomes[part.name] = result["outcome"]
        written = {"part": part.name, "command": part.command, "machine": machine, **result}
        record.write_text(json.dumps(written, indent=1), encoding="utf-8")
        print(
            *result["last_lines"], f"{part.name}: {result['outcome']}, {result['seconds']:.0f} s", sep="\n", flush=True
        )
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 1 where one did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", help="all unless given")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all of them (25)")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try this program")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device; `--device cpu --tiny` tries this program without one.")
    folder = options.folder.resolve()
    parts = all_parts(folder, options.device, options.tiny)
    if unknown := set(options.parts or ()) - {part.name for part in parts}:
        raise SystemExit(f"There are no parts {sorted(unknown)}; there are {[part.name for part in parts]}.")
    chosen = [part for part in parts if options.parts is None or part.name in options.parts]
    machine = {"torch": torch.__version__, "device": options.device}
    if options.device == "cuda":
        machine["device"] = torch.cuda.get_device_name()
    outcomes = run_parts(chosen, folder, options.minutes, machine)
    print(f"{machine['device']}, torch {machine['torch']}; logs and figures are in {folder}")
    for name, outcome in outcomes.items():
        print(f"{name:12} {outcome}")
    return 0 if set(outcomes.values()) <= {"passed"} else 1


if __name__ == "__main__":
    sys.exit(main())
