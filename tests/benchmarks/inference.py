"""Greedy generation of PART beside transformers' own speech LLMs, on a CPU: throughput, time to first token.

    python tests/benchmarks/inference.py                     # about four minutes
    python tests/benchmarks/inference.py --seconds 2 --rows 8 --output figures.json

Models, sizes and clips are those of training.py: random weights, so every answer is made as long as it would be (four
tokens per second of speech, 8 at least). A batch holds equal clips. The real-time factor is compute time over audio time
(below 1: faster than the speech); the time to the first token is that of a single clip, encoder and prompt included.
Every model has a process of its own; they take turns, and a ratio is the median over the rounds.

Prediction, before the first run: on 2 s clips decoding weighs most, and it costs every class the same, so that PART is
as fast as Fun-ASR-Nano and 2 to 3 times as fast as the classes that encode 30 s; on 20 s clips the prompt weighs more,
of which PART's adapter makes a quarter. A static cache, not compiled, costs a CPU a little.

Outcome, on 2 quiet cores of an AMD EPYC in float32, the default command: PART with Fun-ASR-Nano's encoder 1.12, 1.23 and
1.30 times its clips/s at 2, 6 and 20 s, first token after 105, 132 and 249 ms (130, 221, 541); with Whisper's encoder
0.93, 0.95 and 0.98. 4.6 and 7.2 times Qwen2-Audio and Voxtral at 2 s, 1.9 and 1.6 times at 20 s. A static cache makes
no difference (0.99 to 1.00).
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from training import LABELS, SPEED_COLUMNS, TOKENS_PER_SECOND, Case, Worker, build, make_batch, show


MODELS = ("fun_asr_nano", "part_sanm", "part_sanm_static", "part_whisper", "qwen2_audio", "voxtral")
NAMES = LABELS | {"part_sanm_static": "PART, SAN-M, static cache"}
COLUMNS = SPEED_COLUMNS | {"real-time factor": "{real_time_factor:.3f}", "first token, ms": "{first_token_ms:.0f}"}


def new_tokens(seconds: float) -> int:
    return max(8, round(TOKENS_PER_SECOND * seconds))


def prompts(case: Case, model, seconds: float, rows: int) -> dict[str, torch.Tensor]:
    """A batch of equal clips without answers."""
    batch = make_batch(case, model, (seconds,) * rows)
    asked = (batch.pop("labels") == -100).all(0)  # answers are last and equally long
    return batch | {name: batch[name][:, asked] for name in ("input_ids", "attention_mask")}


@torch.inference_mode()
def run_model(connection, name: str, seconds: float, rows: int, threads: int, tiny: bool):
    """Body of a process: per request the times of a batch and of the first token of one clip."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    case = Case(name, name.removesuffix("_static"), 512 if tiny else 49_152, (), tiny=tiny)
    model = build(case).eval()
    options = {"do_sample": False, "pad_token_id": 0}
    if name.endswith("_static"):
        options |= {"cache_implementation": "static", "disable_compile": True}
    batch, one = prompts(case, model, seconds, rows), prompts(case, model, seconds, 1)

    def timed(inputs: dict, tokens: int) -> float:
        start = time.perf_counter()
        ids = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, **options)
        assert ids.shape[1] - inputs["input_ids"].shape[1] == tokens
        return time.perf_counter() - start

    timed(one, 2)
    connection.send("ready")
    while connection.recv() == "round":
        connection.send((timed(batch, new_tokens(seconds)), timed(one, 1)))


def measure(names: tuple[str, ...], seconds: float, args: argparse.Namespace) -> list[dict]:
    """One table: the models in turns on clips of `seconds`; ratios to the first."""
    workers = [Worker(run_model, name, seconds, args.rows, args.threads, args.tiny) for name in names]
    for worker in workers:
        worker.receive()
    rounds = [[worker.ask("round") for worker in workers] for _ in range(args.rounds)]
    for worker in workers:
        worker.connection.send("stop")
        worker.process.join()
    results = []
    for index, name in enumerate(names):
        whole, first = zip(*(one[index] for one in rounds), strict=True)
        ratios = [one[0][0] / one[index][0] for one in rounds]
        results.append(
            {
                "label": NAMES[name],
                "clips_per_s": args.rows / statistics.median(whole),
                "real_time_factor": statistics.median(whole) / (args.rows * seconds),
                "first_token_ms": 1000 * statistics.median(first),
                "speed": statistics.median(ratios),
                "speed_range": [min(ratios), max(ratios)],
            }
        )
    return results


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", nargs="+", type=float, default=[2, 6, 20], help="clip lengths (2 6 20)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rows", type=int, default=4, help="clips in a batch (4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="two narrow layers, for tests")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    tables = {}
    for seconds in args.seconds:
        title = f"{args.rows} clips of {seconds:g} s, {new_tokens(seconds)} new tokens each"
        tables[title] = measure(tuple(args.models), seconds, args)
        show(title, tables[title], COLUMNS)
    if args.output is not None:
        settings = {key: value for key, value in vars(args).items() if key != "output"}
        args.output.write_text(json.dumps({"settings": settings, "tables": tables}, indent=2) + "\n")


if __name__ == "__main__":
    main()
