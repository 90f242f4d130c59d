"""Greedy generation of PART beside transformers' own speech LLMs, on a CPU: throughput, time to first token.

    python tests/benchmarks/inference.py                     # about six minutes
    python tests/benchmarks/inference.py --seconds 2 --rows 8 --output figures.json
    python tests/benchmarks/inference.py --seconds 6 --models part_sanm part_sanm_static part_sanm_compiled

Models, sizes and clips are those of training.py: random weights, so every answer is made as long as it would be (four
tokens per second of speech, 8 at least). A batch holds equal clips. The real-time factor is compute time over audio
time (below 1: faster than the speech); the time to the first token is that of a single clip, encoder and prompt
included. Every model has a process of its own; they take turns, and a ratio is the median over the rounds. A static
cache, and one with the decoding step compiled (minutes, before anything is timed, hence not among the defaults), must
give the tokens of the dynamic cache (in bfloat16, on a GPU, it is said how many differ); transformers compiles on a CPU
only where its private `_compile_all_devices` says so.

Prediction, before the first run: on 2 s clips decoding weighs most, and it costs every class the same, so that PART is
as fast as Fun-ASR-Nano and 2 to 3 times as fast as the classes that encode 30 s; on 20 s clips the prompt weighs more,
of which PART's adapter makes a quarter. A static cache, not compiled, costs a CPU a little.

Outcome, on 2 quiet cores of an AMD EPYC in float32, the default command: PART with Fun-ASR-Nano's encoder 1.12, 1.23
and 1.30 times its clips/s at 2, 6 and 20 s, first token after 105, 132 and 249 ms (130, 221, 541); with Whisper's
encoder 0.93, 0.95 and 0.98. 4.6 and 7.2 times Qwen2-Audio and Voxtral at 2 s, 1.9 and 1.6 times at 20 s. A static
cache makes no difference (0.99 to 1.00).

Prediction of what came later, before its first run: Qwen3-ASR as fast as Fun-ASR-Nano at 2 s and 1.1 times at 20 s (13
audio tokens a second in place of 16.7); Granite Speech 0.9 at 2 s, where its conformer pads the clip to a block of 4
s, and 0.9 at 20 s, its first token at 2 s twice as late as PART's. A compiled decoding step 1.2 times the dynamic
cache's clips/s, as a step for a few rows is bound by reading the weights.

Outcome, the default command in one run on 2 quiet cores, 403 s: PART with Fun-ASR-Nano's encoder 1.16, 1.30 and 1.31
times its clips/s at 2, 6 and 20 s, first token after 108, 146 and 252 ms (144, 220, 604), real-time factor 0.088,
0.075 and 0.072; with Whisper's encoder 1.00, 1.05 and 0.97. Qwen3-ASR 0.99, 1.10 and 1.02 (predicted: 1 to 1.1),
Granite Speech 0.86, 0.95 and 0.93 (0.9), its first token at 2 s 1.7 times as late as PART's. Qwen2-Audio 0.25, 0.50
and 0.68, Voxtral 0.18, 0.41 and 0.80. A static cache 1.00, 1.02 and 0.96 of the dynamic one; with the decoding step
compiled, on 6 s clips, 1.03 (0.99 to 1.08), where 1.2 was predicted.
"""

import argparse
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import torch
from side_by_side import SPEED_COLUMNS, Worker, add_speeds, now, peak_gib, ratios, show, to_device, write
from speech_models import SPEECH_MODELS, TOKENS_PER_SECOND, build, make_batch
from transformers import CompileConfig


@dataclass(frozen=True)
class Decoding:
    """One row: a model and how it generates."""

    label: str
    model: str
    options: dict = field(default_factory=dict)

    @property
    def is_variant(self) -> bool:
        return bool(self.options)


def compiled_on_cpu() -> CompileConfig:
    config = CompileConfig(fullgraph=False)
    config._compile_all_devices = True
    return config


DECODINGS = {
    name: Decoding(SPEECH_MODELS[name].label, name) for name in SPEECH_MODELS if name != "part_sanm_dense"
} | {
    "part_sanm_static": Decoding(
        "PART, SAN-M, static cache", "part_sanm", {"cache_implementation": "static", "disable_compile": True}
    ),
    "part_sanm_compiled": Decoding(
        "PART, SAN-M, compiled", "part_sanm", {"cache_implementation": "static", "compile_config": compiled_on_cpu()}
    ),
}
COLUMNS = SPEED_COLUMNS | {
    "over dynamic cache": "{over_dynamic}",
    "real-time factor": "{real_time_factor:.3f}",
    "first token, ms": "{first_token_ms:.0f}",
}


def new_tokens(seconds: float) -> int:
    return max(8, round(TOKENS_PER_SECOND * seconds))


def prompts(name: str, model, vocabulary: int, seconds: float, rows: int) -> dict[str, torch.Tensor]:
    """A batch of equal clips without answers."""
    batch = make_batch(name, model, vocabulary, (seconds,) * rows)
    asked = (batch.pop("labels") == -100).all(0)  # answers are last and equally long
    return batch | {name: batch[name][:, asked] for name in ("input_ids", "attention_mask")}


@torch.inference_mode()
def run_model(connection, decoding: Decoding, seconds: float, rows: int, threads: int, tiny: bool, device: str):
    """Body of a process: per request the times of a batch and of the first token of one clip."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    vocabulary = 512 if tiny else 49_152
    model = build(decoding.model, vocabulary, tiny).eval()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    made = (prompts(decoding.model, model, vocabulary, seconds, count) for count in (rows, 1))
    batch, one = (to_device(inputs, device, dtype) for inputs in made)
    model.to(device, dtype)

    def generate(inputs: dict, tokens: int, options: dict) -> torch.Tensor:
        limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        ids = model.generate(**inputs, **limits, **options)
        assert ids.shape[1] - inputs["input_ids"].shape[1] == tokens
        return ids

    def timed(inputs: dict, tokens: int) -> float:
        start = now(device)
        generate(inputs, tokens, decoding.options)
        return now(device) - start

    if decoding.is_variant:
        answers = [generate(batch, new_tokens(seconds), options) for options in ({}, decoding.options)]
        differ = (answers[0] != answers[1]).sum().item()
        if differ and dtype == torch.float32:
            raise RuntimeError(f"{decoding.label}: other tokens than with the dynamic cache.")
        if differ:  # random weights: the best two tokens are often nearer to each other than bfloat16 can tell
            print(f"{decoding.label}: {differ} tokens are others than with the dynamic cache.", flush=True)
        timed(one, 1)  # another shape, to be compiled too
    timed(one, 2)
    connection.send("ready")
    while connection.recv() == "round":
        connection.send((timed(batch, new_tokens(seconds)), timed(one, 1)))
    connection.send(peak_gib(device))


def measure(names: tuple[str, ...], seconds: float, args: argparse.Namespace) -> list[dict]:
    """One table: the models in turns on clips of `seconds`; ratios to the first."""
    decodings = [DECODINGS[name] for name in names]
    workers = []
    for decoding in decodings:  # one after another: nothing else runs meanwhile
        workers.append(Worker(run_model, decoding, seconds, args.rows, args.threads, args.tiny, args.device))
        workers[-1].receive()
    rounds = [[worker.ask("round") for worker in workers] for _ in range(args.rounds)]
    results = []
    for index, (name, decoding, worker) in enumerate(zip(names, decodings, workers, strict=True)):
        whole, first = zip(*(one[index] for one in rounds), strict=True)
        results.append(
            {
                "name": name,
                "label": decoding.label,
                "clip_count": args.rows,
                "seconds": list(whole),
                "real_time_factor": statistics.median(whole) / (args.rows * seconds),
                "first_token_ms": 1000 * statistics.median(first),
                "peak_gib": worker.ask("stop"),
            }
        )
        worker.process.join()
    add_speeds(results)
    by_name = {result["name"]: result for result in results}
    for result, decoding in zip(results, decodings, strict=True):
        dynamic = by_name.get(decoding.model) if decoding.is_variant else None
        speed = None if dynamic is None else statistics.median(ratios(result, dynamic))
        result["over_dynamic"] = "" if speed is None else f"{speed:.2f}"
    return results


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = [name for name in DECODINGS if name != "part_sanm_compiled"]
    parser.add_argument("--seconds", nargs="+", type=float, default=[2, 6, 20], help="clip lengths (2 6 20)")
    parser.add_argument("--models", nargs="+", choices=list(DECODINGS), default=default)
    parser.add_argument("--rows", type=int, default=4, help="clips in a batch (4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="on a GPU in bfloat16")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers, for tests")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    tables = {}
    for seconds in args.seconds:
        title = f"{args.rows} clips of {seconds:g} s, {new_tokens(seconds)} new tokens each"
        tables[title] = measure(tuple(args.models), seconds, args)
        show(title, tables[title], COLUMNS)
        write(args.output, {"settings": settings, "tables": tables})


if __name__ == "__main__":
    main()
