"""Training steps of PART beside those of transformers' own speech LLMs, on a CPU: speed, peak memory, roofline.

    python tests/benchmarks/training.py                                   # all parts, about seven minutes
    python tests/benchmarks/training.py --parts classes --clips 2 6 --rows 16 --padded_rows 4 --training frozen full
    python tests/benchmarks/training.py --dtype bfloat16 --output figures.json

Every row of a table has a process of its own, which is what its peak memory belongs to. The processes of one table
take turns, round by round (A B C A B C), so that a change of the machine's load meets all of them; a ratio is the
median over the rounds, with its spread. Clips per CPU second tell more where the machine has other work. A step is
forward and backward, called directly: `Trainer`, data loading and, but for the part `gate`, the optimizer would add
the same to everybody. Weights and features are random; prompts have 30 tokens, answers four per second of speech.
Fun-ASR-Nano's feature extractor needs torchaudio; random features of its shape stand in for it.

Encoders: 6 layers of width 512 (Whisper's 20.6 or SAN-M's 19.0 million parameters). Language model: that of
SmolLM2-135M by its shapes (Llama, 30 layers of width 576) with a vocabulary of 49,152 or 151,936, its two embeddings
tied, but for Qwen2-Audio and Voxtral, which tie none. Encoder and adapter train in every row. Qwen2-Audio and Voxtral
pad every clip to 30 s; they run a smaller batch, since their cost per clip does not depend on it. FLOPs are counted as
the step runs: matrix products and convolutions without fused attention. torch counts a depthwise convolution's weight
gradient as a full one's, which makes SAN-M's rows some percent too large. The peak is that of a product of square
matrices in the same run.

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
tokens 1.25 and 1.8; with Whisper's encoder 1.2 and 1.8. 4.2 times Qwen2-Audio's and 7.0 times Voxtral's clips/s (5.0 and
8.3 by duration): less than their attention over 1,500 frames made us expect. Peak memory 0.70 of Fun-ASR-Nano's at both
vocabularies, short of the half that is wanted at 152k: in batches of 4 rows weights and gradients weigh most.
(b) The gate takes a full step to 0.68 of its time (0.73 predicted, 0.7 wanted) and 0.52 of its memory; a LoRA step stays
as it was (1.01).
(c) Logits at targets: 1.36 times as fast (1.45 predicted), 0.93 of the memory: with 4 rows the logits are not the largest
part of the peak.
(d) 59 to 82 % of the peak.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    FunAsrNanoConfig,
    FunAsrNanoEncoderConfig,
    FunAsrNanoForConditionalGeneration,
    LlamaConfig,
    PreTrainedModel,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperConfig,
)

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq
from modeling_part.configuration_part import convolved_length
from modeling_part.stages import BUILT_IN_STAGES, LanguageModelGate, add_lora, set_trainable


VOCABULARIES = (49_152, 151_936)  # SmolLM2, Qwen2.5
PROMPT_TOKENS, TOKENS_PER_SECOND = 30, 4
MEL_BINS, STACKED_FRAMES, WINDOW_FRAMES = 80, 7, 3000  # SAN-M stacks 7 mel frames at every sixth
LOSS_TOLERANCE = 1e-4

LABELS = {
    "part_sanm": "PART, SAN-M, 4.2 tokens/s",
    "part_sanm_dense": "PART, SAN-M, 16.7 tokens/s",
    "part_whisper": "PART, Whisper, 12.5 tokens/s",
    "fun_asr_nano": "Fun-ASR-Nano, 16.7 tokens/s",
    "qwen2_audio": "Qwen2-Audio, 25 tokens/s",
    "voxtral": "Voxtral, 30 s",
}
SAN_M = ("part_sanm", "part_sanm_dense", "fun_asr_nano")
FIXED_WINDOW = ("qwen2_audio", "voxtral")


@dataclass(frozen=True)
class Case:
    """
    One row of a table.

    Attributes:
        label: what the table calls it.
        model: key of `LABELS`.
        vocabulary: tokens.
        batches: seconds of each clip of each batch; one round runs them all.
        training: of the language model: `frozen`, `full` or `lora`.
        gated: LoRA or the full language model trains in this stage, but the task gate is closed (an ASR batch).
        optimizer: AdamW belongs to the step.
        all_logits: logits at every position, as transformers' classes compute them, instead of at targets.
        dtype: of weights and activations.
        tiny: two narrow layers, for tests.
    """

    label: str
    model: str
    vocabulary: int
    batches: tuple[tuple[float, ...], ...]
    training: str = "full"
    gated: bool = False
    optimizer: bool = False
    all_logits: bool = False
    dtype: str = "float32"
    tiny: bool = False


# --------------------------------------------------------------------------------------------------------------------
# Models and batches
# --------------------------------------------------------------------------------------------------------------------


def build(case: Case) -> PreTrainedModel:
    """A model of random weights; all classes get the same encoder and language model sizes."""
    layers, width, heads = (2, 32, 2) if case.tiny else (6, 512, 8)
    text = LlamaConfig(
        vocab_size=case.vocabulary,
        num_hidden_layers=2 if case.tiny else 30,
        hidden_size=48 if case.tiny else 576,
        intermediate_size=96 if case.tiny else 1536,
        num_attention_heads=3 if case.tiny else 9,
        num_key_value_heads=1 if case.tiny else 3,
        tie_word_embeddings=True,
    )
    whisper = {"d_model": width, "encoder_layers": layers, "encoder_attention_heads": heads, "num_mel_bins": MEL_BINS}
    whisper["encoder_ffn_dim"] = 4 * width
    san_m = FunAsrNanoEncoderConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_timestamp_prediction_layers=0,
        hidden_dropout=0.0,  # the other encoders have none either
        attention_dropout=0.0,
    )
    audio_token = case.vocabulary - 1
    if case.model == "fun_asr_nano":
        adaptor = {"hidden_size": text.hidden_size, "intermediate_size": text.hidden_size // 4}
        config = FunAsrNanoConfig(
            audio_config=san_m, text_config=text, adaptor_config=adaptor, audio_token_id=audio_token
        )
        return FunAsrNanoForConditionalGeneration(config)
    if case.model == "qwen2_audio":
        audio = {"model_type": "qwen2_audio_encoder", **whisper}
        config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=audio_token)
        return Qwen2AudioForConditionalGeneration(config)
    if case.model == "voxtral":
        audio = dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers)
        audio |= dict(model_type="voxtral_encoder", num_attention_heads=heads, num_mel_bins=MEL_BINS)
        config = VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=audio_token)
        return VoxtralForConditionalGeneration(config)
    # The whole Whisper config; only its encoder is built.
    audio = san_m if case.model in SAN_M else WhisperConfig(**whisper)
    convolution = {"adapter_conv_kernel_size": 1, "adapter_conv_stride": 1} if case.model == "part_sanm_dense" else {}
    return PARTForSpeechSeq2Seq(
        PARTConfig(
            audio_config=audio,
            text_config=text,
            adapter_hidden_size=width,
            audio_token_id=audio_token,
            **convolution,
        )
    )


def make_batch(case: Case, model: PreTrainedModel, seconds: tuple[float, ...]) -> dict[str, torch.Tensor]:
    """Inputs and labels for clips of `seconds`: random features; prompt, audio and answer tokens, padded right."""
    generator = torch.Generator().manual_seed(0)
    rate = 100 / 6 if case.model in SAN_M else 100
    steps = torch.tensor([round(rate * one) for one in seconds])
    size = WINDOW_FRAMES if case.model in FIXED_WINDOW else int(steps.max())
    shape = (size, MEL_BINS * STACKED_FRAMES) if case.model in SAN_M else (MEL_BINS, size)
    features = torch.randn(len(seconds), *shape, generator=generator)
    mask = (torch.arange(size) < steps[:, None]).long()
    if case.model.startswith("part"):
        audio_tokens = convolved_length(steps, model.config.audio_token_convolutions)
    elif case.model == "qwen2_audio":
        audio_tokens = convolved_length(steps, ((3, 1, 1), (3, 2, 1), (2, 2, 0)))
    else:
        audio_tokens = torch.full_like(steps, WINDOW_FRAMES // 8) if case.model == "voxtral" else steps

    ids, labels = [], []
    for duration, tokens in zip(seconds, audio_tokens.tolist(), strict=True):
        prompt = torch.randint(case.vocabulary - 1, (PROMPT_TOKENS,), generator=generator)
        answer = torch.randint(case.vocabulary - 1, (round(TOKENS_PER_SECOND * duration) + 1,), generator=generator)
        audio = torch.full((tokens,), case.vocabulary - 1)
        ids.append(torch.cat([prompt, audio, answer]))
        labels.append(torch.cat([torch.full((PROMPT_TOKENS + tokens,), -100), answer]))
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
        "input_features": features.to(getattr(torch, case.dtype)),
    }
    if case.model != "voxtral":
        batch["feature_attention_mask" if case.model == "qwen2_audio" else "input_features_mask"] = mask
    return batch


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
        parameters = dict(model.named_parameters(remove_duplicate=False))
        LanguageModelGate(stage, [parameters[name] for name in names["language_model"]]).set_task("asr")
        return trained  # those behind a closed gate too, where the optimizer finds no gradient
    return [one for one in model.parameters() if one.requires_grad]


# --------------------------------------------------------------------------------------------------------------------
# The process of one case
# --------------------------------------------------------------------------------------------------------------------


def peak_gib() -> float:
    """High-water mark of this process' resident memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def make_step(case: Case) -> Callable[[tuple[float, ...]], float]:
    """A function that runs a training step on a batch of clips and returns its loss."""
    torch.manual_seed(0)
    model = build(case).train()
    trained = set_training(case, model)
    model.to(getattr(torch, case.dtype))
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if case.optimizer else None
    batches = {seconds: make_batch(case, model, seconds) for seconds in case.batches}

    def step(seconds: tuple[float, ...]) -> float:
        inputs = dict(batches[seconds])
        if case.all_logits:
            labels = inputs.pop("labels")
            logits = model(**inputs, use_cache=False).logits
            loss = model.loss_function(logits=logits, labels=labels, vocab_size=case.vocabulary)
        else:
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return step


def run_case(connection, case: Case, threads: int):
    """Body of a process: warm up and count, then one timed round per request, then the peak memory."""
    torch.set_num_threads(threads)
    before = peak_gib()
    step = make_step(case)
    with FlopCounterMode(display=False) as counter:
        losses = [step(seconds) for seconds in case.batches]
    clips = sum(map(len, case.batches))
    connection.send({"loss": statistics.mean(losses), "gflop_per_clip": counter.get_total_flops() / clips / 1e9})
    while connection.recv() == "round":
        start, cpu_start = time.perf_counter(), time.process_time()
        for seconds in case.batches:
            step(seconds)
        connection.send((time.perf_counter() - start, time.process_time() - cpu_start))
    connection.send({"peak_gib": peak_gib(), "before_model_gib": before})


def matmul_peak(connection, dtype: str, size: int, threads: int):
    """Body of a process: the best of ten products of square matrices, FLOP/s."""
    torch.set_num_threads(threads)
    a, b = torch.randn(2, size, size).to(getattr(torch, dtype))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    connection.send(2 * size**3 / min(times))


class Worker:
    """A process with a pipe, forked from this one, which has imported and never computes: all start alike."""

    def __init__(self, target: Callable, *arguments):
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self):
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            message = f"A measuring process ended with code {self.process.exitcode}; its error is printed above."
            if self.process.exitcode == -9:
                message += " It was killed, most likely for its memory: lower `--rows`."
            raise RuntimeError(message) from None

    def ask(self, request: str):
        self.connection.send(request)
        return self.receive()


def measure(cases: list[Case], rounds: int, threads: int, peaks: dict[str, float]) -> list[dict]:
    """Run `cases` in turn; every speed and memory is also given relative to the first."""
    workers, results = [], []
    for case in cases:  # warmed up one after another: nothing else runs meanwhile
        workers.append(Worker(run_case, case, threads))
        results.append(asdict(case) | workers[-1].receive() | {"seconds": [], "cpu_seconds": []})
    for _ in range(rounds):
        for worker, result in zip(workers, results, strict=True):
            for name, value in zip(("seconds", "cpu_seconds"), worker.ask("round"), strict=True):
                result[name].append(value)
    for worker, result in zip(workers, results, strict=True):
        result |= worker.ask("stop")
        worker.process.join()
        clips = sum(map(len, result["batches"]))
        result["clips_per_s"] = clips / statistics.median(result["seconds"])
        result["clips_per_cpu_s"] = clips / statistics.median(result["cpu_seconds"])
        result["of_peak"] = result["gflop_per_clip"] * 1e9 * result["clips_per_s"] / peaks[result["dtype"]]
        first = results[0]
        scale = clips / sum(map(len, first["batches"]))
        speeds = [scale * a / b for a, b in zip(first["seconds"], result["seconds"], strict=True)]
        result["speed"], result["speed_range"] = statistics.median(speeds), [min(speeds), max(speeds)]
        result["memory"] = result["peak_gib"] / first["peak_gib"]
    return results


# --------------------------------------------------------------------------------------------------------------------
# What is compared
# --------------------------------------------------------------------------------------------------------------------


def make_batches(clips: str, rows: int, batches: int) -> tuple[tuple[float, ...], ...]:
    """
    Seconds of the clips of each batch.

    Args:
        clips: a number of seconds for clips of equal length (one batch), or `mix`: lengths as in Common Voice
            (log-normal around 5 s, cut to 1-20 s; its quantiles, in random order).
    """
    if clips != "mix":
        return ((float(clips),) * rows,)
    quantiles = (np.arange(rows * batches) + 0.5) / (rows * batches)
    lengths = [min(max(5 * np.exp(0.45 * statistics.NormalDist().inv_cdf(q)), 1.0), 20.0) for q in quantiles]
    lengths = np.random.default_rng(0).permutation(np.round(lengths, 1)).tolist()
    return tuple(tuple(lengths[i : i + rows]) for i in range(0, len(lengths), rows))


def by_duration(batches: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """The same clips in batches of neighbours by length, as `TaskBatchSampler` makes them (from far more clips)."""
    lengths = sorted(length for batch in batches for length in batch)
    rows = len(batches[0])
    return tuple(tuple(lengths[i : i + rows]) for i in range(0, len(lengths), rows))


def compare_classes(args) -> dict[str, list[Case]]:
    """(a) PART against transformers' classes; the first row, which the ratios refer to, is Fun-ASR-Nano."""
    tables = {}
    for vocabulary in args.vocabularies:
        for clips in args.clips:
            batches = make_batches(clips, args.rows, args.batches)
            few = (batches[0][: args.padded_rows],)
            for training in args.training:
                common = {"training": training, "dtype": args.dtype, "tiny": args.tiny, "vocabulary": vocabulary}
                names = ("fun_asr_nano", "part_sanm", "part_sanm_dense", "part_whisper")
                cases = [Case(LABELS[name], name, batches=batches, **common) for name in names]
                if clips == "mix":
                    label = f"{LABELS['part_sanm']}, by duration"
                    cases.append(Case(label, "part_sanm", batches=by_duration(batches), **common))
                # Their cost is the 30 s window, whatever the vocabulary: once is enough.
                if vocabulary == args.vocabularies[0]:
                    cases += [Case(LABELS[name], name, batches=few, **common) for name in FIXED_WINDOW]
                unit = "clips of mixed lengths" if clips == "mix" else f"clips of {clips} s"
                tables[f"{unit}, vocabulary {vocabulary:,}, language model {training}"] = cases
    return tables


def compare_gates(args) -> dict[str, list[Case]]:
    """(b) An ASR step behind the gate against one that trains the language model, AdamW included."""
    common = {"model": "part_whisper", "vocabulary": args.vocabularies[0], "dtype": args.dtype, "tiny": args.tiny}
    common |= {"batches": make_batches("6", args.rows, 1), "optimizer": True}
    cases = [
        Case("full, not gated", training="full", **common),
        Case("full, gated", training="full", gated=True, **common),
        Case("LoRA, not gated", training="lora", **common),
        Case("LoRA, gated", training="lora", gated=True, **common),
    ]
    return {f"ASR steps with AdamW, {args.rows} clips of 6 s": cases}


def compare_logits(args) -> dict[str, list[Case]]:
    """(c) Logits at all positions against logits at targets: same weights, same loss."""
    common = {"model": "part_whisper", "vocabulary": args.vocabularies[-1], "dtype": args.dtype, "tiny": args.tiny}
    common |= {"batches": make_batches("6", args.rows, 1)}
    cases = [Case("logits everywhere", all_logits=True, **common), Case("logits at targets", **common)]
    return {f"PART, {args.rows} clips of 6 s, vocabulary {args.vocabularies[-1]:,}": cases}


COMPARISONS = {"classes": compare_classes, "gate": compare_gates, "logits": compare_logits}


def check_losses(title: str, results: list[dict]):
    """Raise when two ways to compute the same loss disagree."""
    reference, *others = (result["loss"] for result in results)
    tolerance = LOSS_TOLERANCE if results[0]["dtype"] == "float32" else 100 * LOSS_TOLERANCE
    for loss in others:
        if abs(loss - reference) > tolerance * abs(reference):
            raise RuntimeError(f"{title}: losses {reference} and {loss} differ by more than {tolerance:g} of them.")


SPEED_COLUMNS = {
    "": "{label}",
    "clips/s": "{clips_per_s:.2f}",
    "speed": "{speed:.2f} ({speed_range[0]:.2f}-{speed_range[1]:.2f})",
}
COLUMNS = SPEED_COLUMNS | {
    "per CPU s": "{clips_per_cpu_s:.2f}",
    "peak GiB": "{peak_gib:.2f}",
    "memory": "{memory:.2f}",
    "GFLOP/clip": "{gflop_per_clip:.1f}",
    "of matmul peak": "{of_peak:.0%}",
}


def show(title: str, results: list[dict], columns: dict[str, str] = COLUMNS):
    """Print one table: `columns` are headers and how a result fills them."""
    table = Table(title=title, title_justify="left")
    for header in columns:
        table.add_column(header, justify="right" if header else "left", no_wrap=True)
    for result in results:
        table.add_row(*(form.format(**result) for form in columns.values()))
    Console(width=140).print(table)


def main():
    """Measure, print, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--clips", nargs="+", default=["mix"], help="seconds, or mix (default)")
    parser.add_argument("--vocabularies", nargs="+", type=int, default=list(VOCABULARIES))
    parser.add_argument("--training", nargs="+", choices=["frozen", "full"], default=["full"])
    parser.add_argument("--rows", type=int, default=4, help="clips per batch")
    parser.add_argument("--batches", type=int, default=2, help="batches of the mix")
    parser.add_argument("--padded_rows", type=int, default=1, help="clips per batch of the classes that pad to 30 s")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiny", action="store_true", help="tiny models on short clips, to test this program")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    if args.tiny:
        args.vocabularies, args.rows, args.padded_rows, args.batches = [300, 600], 2, 1, 2
        args.clips = ["mix"] if args.clips == ["mix"] else ["1"]

    start = time.perf_counter()
    size = 128 if args.tiny else 2048
    peaks = {dtype: Worker(matmul_peak, dtype, size, args.threads).receive() for dtype in ("float32", "bfloat16")}
    print(f"Matmul peak, {args.threads} threads: " + ", ".join(f"{x / 1e9:.0f} GFLOP/s {t}" for t, x in peaks.items()))
    print("Speed and memory are relative to the first row of each table.")
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    figures = {"settings": settings, "machine": machine, "matmul_flop_per_s": peaks, "tables": {}}
    for part in args.parts:
        for title, cases in COMPARISONS[part](args).items():
            results = measure(cases, args.rounds, args.threads, peaks)
            show(title, results)
            if part == "logits":
                check_losses(title, results)
            figures["tables"][title] = results
            if args.output:  # after each table: a run that is cut short keeps what it has
                args.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
