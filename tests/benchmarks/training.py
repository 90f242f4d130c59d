"""Training steps of PART beside those of transformers' own speech LLMs, on a CPU: speed, peak memory, roofline.

    python tests/benchmarks/training.py                                   # the default parts, about thirteen minutes
    python tests/benchmarks/training.py --parts classes --clips 2 6 20 --training frozen full
    python tests/benchmarks/training.py --parts compile scaling
    python tests/benchmarks/training.py --dtype bfloat16 --output figures.json

Every row of a table has a process of its own, which is what its peak memory belongs to. The processes of one table
take turns, round by round (A B C A B C), so that a change of the machine's load meets all of them; a ratio is the
median over the rounds, with its spread. Clips per CPU second tell more where the machine has other work. In the part
`memory`, whose batches are large, no two processes are alive at once; one that needs more than the machine has free
is stopped and says so. A step is forward and backward, called directly: `Trainer`, data loading and, but for the part
`gate`, the optimizer would add the same to everybody (trainers.py has them). Weights and features are random; prompts
have 30 tokens, answers four per second of speech. Fun-ASR-Nano's and Granite Speech's feature extractors need
torchaudio; random features of their shapes stand in for them. The last table holds the targets and what the run
reached.

Models and sizes: speech_models.py. Vocabularies are 49,152 or 151,936, the two embeddings tied but for Qwen2-Audio and
Voxtral, which tie none. Encoder and adapter train in every row. The part `tasks` closes PART's gate for ASR and opens
it for S2TT; the other classes' steps cost the same for both. Each class pads by its own rule: to the longest clip,
Qwen3-ASR to whole seconds, Qwen2-Audio and Voxtral every clip to 30 s; these two run a smaller batch, since their cost
per clip does not depend on it. FLOPs are counted as the step runs: matrix products and convolutions without fused
attention. torch counts a depthwise convolution's weight gradient as a full one's, which makes the rows of SAN-M some
percent too large, and those of Granite Speech's conformer by a third. The peak is that of a product of square matrices
in the same run.

Prediction, before the first run, from FLOPs per clip by formula (which agree with the counter at `--tiny`, the
depthwise convolutions and Fun-ASR-Nano's unfused attention aside):

    GFLOP/clip of the default mix, LLM trained    49k    152k
    Fun-ASR-Nano                                  192     267
    PART, SAN-M, 4.2 tokens/s (by duration)   88 (77) 96 (86)
    PART, SAN-M, 16.7 tokens/s                    161     170
    PART, Whisper                                 173     181
    Qwen2-Audio, Voxtral                     298, 522

(a) PART with Fun-ASR-Nano's own encoder: 2.1 times its clips/s at 49k and 2.8 at 152k, 2.4 and 3.2 by duration, as the
adapter hands the language model a quarter of the audio tokens. With as many tokens as Fun-ASR-Nano only the logits
are left: 1.2 and 1.6. With Whisper's encoder, 50 frames a second in place of 16.7: 1.1 and 1.5, short of the 1.5 and 2
that are wanted. Over the padded classes 3.4 (Qwen2-Audio) and 6 (Voxtral) by FLOPs, 5 and 8 with their attention over
1,500 frames. Peak memory 0.65 of Fun-ASR-Nano's at 49k and 0.5 at 152k: in batches of 4 the weights weigh most.
(b) The gate takes a step of the full language model to 0.73 of its time (0.77 by FLOPs, AdamW the rest; wanted: 0.7):
gradients still pass through it, and encoder and adapter train on. A LoRA step to 0.93.
(c) Logits at targets make a step at 152k 1.45 times as fast (1.41 by FLOPs), with 0.7 of the memory.
(d) Steps reach 55 to 70 % of the matmul peak.

Outcome, on 2 quiet cores of an AMD EPYC (matmul peak 216 GFLOP/s in float32), the default command, 390 s:
(a) 2.1 times Fun-ASR-Nano's clips/s at 49k and 2.9 at 152k, 2.5 and 3.0 by duration, as predicted; with as many audio
tokens 1.25 and 1.8; with Whisper's encoder 1.2 and 1.8. 4.2 times Qwen2-Audio's and 7.0 times Voxtral's clips/s (5.0
and 8.3 by duration): less than their attention over 1,500 frames made us expect. Peak memory 0.70 of Fun-ASR-Nano's at
both vocabularies, short of the half that is wanted at 152k: in batches of 4 rows weights and gradients weigh most.
(b) The gate takes a full step to 0.68 of its time (0.73 predicted, 0.7 wanted) and 0.52 of its memory; a LoRA step
stays as it was (1.01).
(c) Logits at targets: 1.36 times as fast (1.45 predicted), 0.93 of the memory: with 4 rows the logits are not the
largest part of the peak.
(d) 59 to 82 % of the peak.

Prediction of what came later, before its first run, from the forward passes' FLOPs as counted at full size, times
three (gated: the language model's times two); the same way gives 193, 88 and 173 for the classes above:

    GFLOP/clip of the default mix                 49k    152k
    Qwen3-ASR                                     172     236
    Granite Speech (115 of them the encoder)      246     301
    PART, SAN-M and Whisper, ASR              65, 135

(e) Qwen3-ASR is the fastest class of transformers: 1.1 times Fun-ASR-Nano's clips/s; Granite Speech 0.75. PART with
SAN-M is 1.9 times as fast as Qwen3-ASR at 49k (wanted: 1.5) and 2.4 at 152k (2); with Whisper's encoder 1.0 and 1.3,
which misses both. ASR: 1.3 times S2TT's clips/s in PART.
(f) `torch.compile` makes steps 1.1 times as fast, since matrix products weigh most.
(g) `memory`, 16 clips at 152k, estimated from batches of 3 and the sizes of logits and activations: Fun-ASR-Nano and
Granite Speech 16 GiB, Qwen3-ASR 13, PART with SAN-M 0.45 of Qwen3-ASR's (wanted: 0.5), with Whisper's encoder 0.65.
(h) `scaling`: cost per clip grows as its positions do, 6 to 20 s by 2.9 times (Fun-ASR-Nano), 2.5 (PART, SAN-M) and
3.1 (PART, Whisper); from 1 to 16 rows clips/s grow by a fifth; the large vocabulary costs Fun-ASR-Nano 1.4 times, PART
1.1.

Outcome, the default command in one run on 2 quiet cores of an AMD EPYC (219 GFLOP/s), 682 s:
(a) PART with SAN-M 2.16 times Fun-ASR-Nano's clips/s at 49k, 2.40 by duration, and 2.53 at 152k, with as many audio
tokens 1.24, with Whisper's encoder 1.18 and 1.43. 4.4 times Qwen2-Audio's (wanted: 5; 4.9 by duration) and 7.2 times
Voxtral's clips/s. An earlier run beside little other work: 2.21, 2.62, 5.8 and 8.8.
(e) Qwen3-ASR 1.24 times Fun-ASR-Nano's clips/s, Granite Speech 0.86. PART with SAN-M 1.73 times Qwen3-ASR's at 49k and
2.21 times at 152k (both wanted and about as predicted); with Whisper's encoder 0.95 and 1.25, which misses both. ASR
1.34 times S2TT's clips/s with SAN-M, 1.23 with Whisper's encoder.
(g) Fun-ASR-Nano 16.2 GiB, Granite Speech 15.3, Qwen3-ASR 14.3; PART with SAN-M 6.0, 0.42 of Qwen3-ASR's (0.5 wanted),
with Whisper's encoder 9.8, 0.69 of it.
(b) The gate takes a full step to 0.74 of its time (0.7 wanted, 0.77 by FLOPs; 0.76 in another run, 0.68 in the first)
and 0.55 of its memory; a LoRA step stays as it was (1.02). (c) 1.41 times as fast, 0.91 of the memory.
(d) PART's rows 68 to 80 %.
(f) `--parts compile`: nothing gained, 1.00 (0.94 to 1.05) with SAN-M and 0.99 (0.93 to 1.04) with Whisper's encoder,
at 1.24 and 1.14 of the memory, after 193 and 138 s for the two shapes: the matrix products, which it leaves as they
are, are three quarters of a step here.
(h) `--parts scaling`: 6 to 20 s cost 3.2 (Fun-ASR-Nano), 2.2 (PART, SAN-M) and 3.2 times as much (PART, Whisper); from
1 to 16 rows clips/s grow 1.2, 1.9 and 1.2 times; the large vocabulary costs 1.9, 1.06 and 1.4 times: more than its
FLOPs for Fun-ASR-Nano, whose logits at every position are written and read, and for PART with Whisper's encoder in
this table, while the table of (a) has 1.14 for the same.

Prediction for clips of one length, before the first run, from positions times parameters: PART with SAN-M 1.8, 2.1 and
2.4 times Fun-ASR-Nano's clips/s at 2, 6 and 20 s (prompt and answer weigh less in longer clips, attention more),
Qwen3-ASR 1.1, 1.15 and 1.2, PART with Whisper's encoder 1.05, 1.0 and 0.95; Qwen2-Audio 0.2, 0.4 and 0.8, Voxtral 0.1,
0.25 and 0.7. With a frozen language model a twentieth less for PART, as the encoder weighs more.

Outcome at 2, 6 and 20 s (the last in batches of 2): PART with SAN-M 1.62, 2.20 and 2.55, Qwen3-ASR 1.13, 1.29 and
1.08, Granite Speech 0.83, 0.82 and 0.98, PART with Whisper's encoder 1.08, 1.16 and 1.14; Qwen2-Audio 0.16, 0.35 and
0.53, Voxtral 0.11, 0.24 and 0.69. ASR in PART takes 0.68, 0.74 and 0.75 of S2TT's time with SAN-M, 0.72, 0.82 and 0.82
with Whisper's encoder: at 2 s the language model's weights, whose gradients the gate saves, weigh more than the
positions. With a frozen language model PART with SAN-M 1.74 and 2.08 at 2 and 6 s, Qwen3-ASR 1.12 and 1.05, PART with
Whisper's encoder 1.13 and 1.06, Qwen2-Audio 0.15 and 0.28, Voxtral 0.09 and 0.20.
"""

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import torch
from cases import COMPARISONS, DEFAULT_PARTS, Case
from side_by_side import COST_COLUMNS, Worker, add_speeds, now, peak_gib, show, to_device, write
from speech_models import VOCABULARIES, build, make_batch, parameter_counts
from targets import judge, show_targets
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from modeling_part.recipes.stages import BUILT_IN_STAGES
from modeling_part.training.freezing import LanguageModelGate, set_trainable
from modeling_part.training.lora import add_lora


LOSS_TOLERANCE = 1e-4
SPARE_GIB = 1.0  # left to the rest of the machine
OUT_OF_MEMORY = ("DefaultCPUAllocator", "bad_alloc", "CUDA out of memory")  # torch's own and that of C++


# A GPU's attention kernels are left out of the count: a processor's are not counted at all.
WITHOUT_ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}_attention{end}"): lambda *_, **__: 0
    for kind in ("flash", "efficient", "cudnn")
    for end in ("", "_backward")
}


def set_training(case: Case, model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """Freeze or open the language model, in PART by the stage and its gate; returns what an optimizer holds."""
    if case.training == "frozen":
        for part in (model.model.language_model, model.lm_head):
            part.requires_grad_(False)
    elif case.model.startswith("part"):
        stage = replace(BUILT_IN_STAGES["joint"], tuning=case.training, gate="task_gated" if case.gated else "always")
        if case.training == "lora":
            add_lora(stage, model)
        names = set_trainable(stage, model)
        trained = [one for one in model.parameters() if one.requires_grad]
        LanguageModelGate(stage, model, names["language_model"]).set_task("asr")
        return trained  # those behind a closed gate too, where the optimizer finds no gradient
    return [one for one in model.parameters() if one.requires_grad]


# --------------------------------------------------------------------------------------------------------------------
# The process of one case
# --------------------------------------------------------------------------------------------------------------------


def make_step(case: Case) -> tuple[Callable[[tuple[float, ...]], float], dict[str, int]]:
    """A function that runs a training step on a batch of clips and returns its loss; the parts' parameter counts."""
    torch.manual_seed(0)
    model = build(case.model, case.vocabulary, case.tiny).train()
    counts = parameter_counts(model)  # before LoRA
    trained = set_training(case, model)
    dtype = getattr(torch, case.dtype)
    model.to(case.device, dtype)
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if case.optimizer else None
    forward = torch.compile(model) if case.compiled else model
    batches = {
        seconds: to_device(make_batch(case.model, model, case.vocabulary, seconds), case.device, dtype)
        for seconds in case.batches
    }

    def step(seconds: tuple[float, ...]) -> float:
        inputs = dict(batches[seconds])
        if case.all_logits:
            labels = inputs.pop("labels")
            logits = forward(**inputs, use_cache=False).logits
            loss = model.loss_function(logits=logits, labels=labels, vocab_size=case.vocabulary)
        else:
            loss = forward(**inputs, use_cache=False).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return step, counts


def run_case(connection, case: Case, threads: int):
    """Body of a process: warm up and count, then one timed round per request, then the peak memory."""
    torch.set_num_threads(threads)
    before = peak_gib()
    step, counts = make_step(case)
    if case.compiled:  # before the counter, under which torch compiles nothing
        start = time.perf_counter()
        for seconds in case.batches * 2:
            step(seconds)
        print(f"{case.label}: the first two rounds took {time.perf_counter() - start:.0f} s", flush=True)
    with FlopCounterMode(display=False, custom_mapping=WITHOUT_ATTENTION) as counter:
        losses = [step(seconds) for seconds in case.batches]
    clips = sum(map(len, case.batches))
    flops = counter.get_total_flops()
    if case.device == "cuda":
        torch.cuda.empty_cache()  # the others of the table are alive at the same time
    connection.send({"loss": statistics.mean(losses), "gflop_per_clip": flops / clips / 1e9, "parameters": counts})
    while connection.recv() == "round":
        if case.device == "cuda":  # what the last round has left to the other processes is taken again first
            for seconds in case.batches:
                step(seconds)
        start, cpu_start = now(case.device), time.process_time()
        for seconds in case.batches:
            step(seconds)
        connection.send((now(case.device) - start, time.process_time() - cpu_start))
        if case.device == "cuda":
            torch.cuda.empty_cache()
    connection.send({"peak_gib": peak_gib(case.device), "before_model_gib": before})


def run_alone(connection, case: Case, threads: int, limit_gib: float):
    """Body of a process that has the machine's memory for itself: one pass, and its peak if that fits."""
    torch.set_num_threads(threads)
    # An allocation over the limit fails in this process; without one the kernel would choose whom to end.
    if case.device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gib * 2**30), resource.RLIM_INFINITY))
    loss, fits = None, True
    try:
        step, _ = make_step(case)
        loss = statistics.mean([step(seconds) for seconds in case.batches])
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in OUT_OF_MEMORY):
            raise
        fits = False
    if case.device == "cuda":  # what did not suffice is the card's memory
        limit_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    connection.send({"loss": loss, "fits": fits, "peak_gib": peak_gib(case.device), "limit_gib": limit_gib})


def matmul_peak(connection, dtype: str, size: int, threads: int, device: str):
    """Body of a process: the best of ten products of square matrices, FLOP/s."""
    torch.set_num_threads(threads)
    a, b = torch.randn(2, size, size).to(device, getattr(torch, dtype))
    times = []
    for _ in range(10):
        start = now(device)
        torch.mm(a, b)
        times.append(now(device) - start)
    connection.send(2 * size**3 / min(times))


def in_turns(cases: list[Case], args, peaks: dict[str, float]) -> list[dict]:
    """Run `cases` in turn; every speed and memory is also given relative to the first."""
    workers, results = [], []
    try:
        for case in cases:  # warmed up one after another: nothing else runs meanwhile
            workers.append(Worker(run_case, case, args.threads))
            results.append(asdict(case) | workers[-1].receive() | {"seconds": [], "cpu_seconds": []})
        for _ in range(args.rounds):
            for worker, result in zip(workers, results, strict=True):
                for name, value in zip(("seconds", "cpu_seconds"), worker.ask("round"), strict=True):
                    result[name].append(value)
        for worker, result in zip(workers, results, strict=True):
            result |= worker.ask("stop")
    finally:  # after an error too: the next part needs their memory
        for worker in workers:
            worker.process.terminate()
            worker.process.join()
    for result in results:
        result["clip_count"] = sum(map(len, result["batches"]))
    add_speeds(results)
    for result in results:
        result["clips_per_cpu_s"] = result["clip_count"] / statistics.median(result["cpu_seconds"])
        result["of_peak"] = result["gflop_per_clip"] * 1e9 * result["clips_per_s"] / peaks[result["dtype"]]
    return results


def one_after_another(cases: list[Case], args, peaks: dict[str, float]) -> list[dict]:
    """Peak memory of `cases`, no two of which are alive at once; also relative to the first."""
    results = []
    for case in cases:
        limit = args.memory_gib or psutil.virtual_memory().available / 2**30 - SPARE_GIB
        worker = Worker(run_alone, case, args.threads, limit)
        results.append(asdict(case) | worker.receive())
        worker.process.join()
    for result in results:
        known = result["fits"] and results[0]["fits"]
        result["memory"] = result["peak_gib"] / results[0]["peak_gib"] if known else None
        result["ratio"] = f"{result['memory']:.2f}" if known else ""
        result["verdict"] = "yes" if result["fits"] else f"no, not into {result['limit_gib']:.1f} GiB"
    return results


# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------

SAME_LOSS = ("logits", "compile")
COLUMNS = COST_COLUMNS | {"GFLOP/clip": "{gflop_per_clip:.1f}", "of matmul peak": "{of_peak:.0%}"}
MEMORY_COLUMNS = {"": "{label}", "peak GiB": "{peak_gib:.2f}", "memory": "{ratio}", "fits": "{verdict}"}
SIZE_COLUMNS = {
    "": "{label}",
    "encoder": "{encoder:.1f}",
    "of which layers": "{encoder_layers:.1f}",
    "what joins both": "{joint:.1f}",
    "language model": "{language_model:.1f}",
}


def check_losses(title: str, results: list[dict]):
    """Raise when two ways to compute the same loss disagree."""
    reference, *others = (result["loss"] for result in results)
    tolerance = LOSS_TOLERANCE if results[0]["dtype"] == "float32" else 100 * LOSS_TOLERANCE
    for loss in others:
        if abs(loss - reference) > tolerance * abs(reference):
            raise RuntimeError(f"{title}: losses {reference} and {loss} differ by more than {tolerance:g} of them.")


def show_sizes(results: list[dict]):
    """Print how many parameters each class of a table has, once a class."""
    sizes = {}
    for result in results:
        millions = {name: count / 1e6 for name, count in result["parameters"].items()}
        sizes.setdefault(result["model"], {"label": result["label"], **millions})
    show("Parameters, millions", list(sizes.values()), SIZE_COLUMNS)


def measure(part: str, args, peaks: dict[str, float]) -> Iterator[tuple[str, list[dict]]]:
    """Measure, check and print the tables of one part, one at a time."""
    alone = part == "memory"
    for number, (title, cases) in enumerate(COMPARISONS[part](args).items()):
        cases = [replace(case, device=args.device) for case in cases]
        results = (one_after_another if alone else in_turns)(cases, args, peaks)
        if part == "classes" and number == 0:
            show_sizes(results)
        show(title, results, MEMORY_COLUMNS if alone else COLUMNS)
        if part in SAME_LOSS:
            check_losses(title, results)
        yield title, [{"part": part, **result} for result in results]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(COMPARISONS), default=list(DEFAULT_PARTS))
    parser.add_argument("--clips", nargs="+", default=["mix"], help="seconds, or mix (default)")
    parser.add_argument("--vocabularies", nargs="+", type=int, default=list(VOCABULARIES))
    parser.add_argument("--training", nargs="+", choices=["frozen", "full"], default=["full"])
    parser.add_argument("--rows", type=int, default=4, help="clips per batch")
    parser.add_argument("--batches", type=int, default=2, help="batches of the mix")
    parser.add_argument("--padded_rows", type=int, default=1, help="clips per batch of the classes that pad to 30 s")
    parser.add_argument("--memory_rows", type=int, default=16, help="clips in the batch of the part `memory`")
    parser.add_argument(
        "--memory_gib", type=float, help="limit of a process of that part; all that is free but 1 GiB if none"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny models on short clips, to test this program")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    if args.tiny:
        args.vocabularies, args.rows, args.padded_rows, args.batches, args.memory_rows = [300, 600], 2, 1, 2, 4
        args.clips = ["mix"] if args.clips == ["mix"] else ["1"]
    return args


def main():
    """Measure, print, and write JSON where asked to."""
    args = parse_arguments()
    start = time.perf_counter()
    size = 128 if args.tiny else 2048
    # Of what is measured alone: a processor without bfloat16 instructions imitates them, for minutes.
    peaks = {args.dtype: Worker(matmul_peak, args.dtype, size, args.threads, args.device).receive()}
    print(f"Matmul peak, {args.threads} threads: " + ", ".join(f"{x / 1e9:.0f} GFLOP/s {t}" for t, x in peaks.items()))
    print("Speed and memory are relative to the first row of each table.")
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    figures = {"settings": settings, "machine": machine, "matmul_flop_per_s": peaks, "tables": {}}
    failed = []
    for part in args.parts:
        try:
            for title, results in measure(part, args, peaks):
                figures["tables"][title] = results
                write(args.output, figures)  # after each table: a run that is cut short keeps what it has
        except (RuntimeError, EOFError) as error:  # such as too little memory; the other parts may fit
            print(f"{part} failed: {type(error).__name__}: {error}", flush=True)
            failed.append(part)
    rows = [row for table in figures["tables"].values() for row in table]
    figures["targets"] = judge(rows, args.vocabularies)
    if any(target["measured"] is not None for target in figures["targets"]):
        show_targets(figures["targets"])
    write(args.output, figures)
    print(f"{time.perf_counter() - start:.0f} s in all")
    if failed:
        raise SystemExit(f"Not measured: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
