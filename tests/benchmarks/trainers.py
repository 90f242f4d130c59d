"""Whole training beside transformers' speech LLMs, on a CPU: audio in memory, each class's own processor, `Trainer`.

    python tests/benchmarks/trainers.py                                  # ASR and S2TT, about ten minutes
    python tests/benchmarks/trainers.py --models qwen3_asr part_whisper  # two processes: they are alive together
    python tests/benchmarks/trainers.py --lengths 2 6 20 --clips 8 --rounds 1
    python tests/benchmarks/trainers.py --tasks s2tt --rows 8 --clips 32 --output figures.json

training.py measures steps alone; this is what a user runs. transformers' classes: the stock `Trainer`, rows in random
order, features and prompts made by the class's processor in the collator. PART: `PARTTrainer` in its `joint` stage,
everything trained, `TaskBatchSampler` (neighbours by length), `PARTCollator`. All get the same `TrainingArguments`
(AdamW, clipped gradients), the same clips (noise, of mixed lengths as in Common Voice or of one) and answers (four
tokens per second), models of training.py's sizes. Nothing is loaded in the background: a step waits for its batch. PART
reads WAV bytes in memory, the others arrays. S2TT opens the gate of PART's language model, ASR closes it; to the other
classes these are two prompts. A round is an epoch; the first one is not timed. A class whose processor cannot be made
here is left out, with the reason: the feature extractors of Fun-ASR-Nano (hence also PART with its encoder) and
Granite Speech need torchaudio, Voxtral's tokenizer needs mistral-common and a file of its checkpoint's.

Prediction, before the first run, from the FLOPs per clip in training.py and 0.3 s of AdamW in a step of 5: Qwen2-Audio
trains 0.5 of Qwen3-ASR's clips per second. PART with Whisper's encoder 1.1 times in S2TT (batches by duration save a
tenth) and 1.45 in ASR, whose gate also saves the language model's share of AdamW; with SAN-M 2.2 and 3.0. Features
take less than 3 % of a step, which is why steps alone tell nearly the same. With AdamW's two moments of every weight,
the peak memory of PART is 0.9 of Qwen3-ASR's in S2TT and, without the language model's, 0.6 in ASR.

Outcome, on 2 quiet cores of an AMD EPYC in float32, `--rounds 1`, with torchaudio, S2TT without Granite Speech and
Qwen2-Audio (six processes of S2TT do not fit into 24 GB): Qwen2-Audio 0.35 of Qwen3-ASR's clips per second. PART with
Whisper's encoder 1.15 times in S2TT and 1.45 in ASR, with SAN-M 2.0 and 2.6. Peak memory of PART over Qwen3-ASR's:
SAN-M 0.85 in S2TT and 0.43 in ASR, Whisper 1.08 and 0.66.

Prediction for clips of 2, 6 and 20 s, before the first run, from the steps alone (training.py) and AdamW, whose 0.3 s
weigh more where steps are short: PART with SAN-M 2.3, 2.6 and 2.9 times Fun-ASR-Nano's clips per second in ASR and
1.4, 1.9 and 2.4 in S2TT; with Whisper's encoder 1.8, 1.5 and 1.4, and 1.1, 1.1 and 1.1.

Outcome, `--clips 8 --rounds 1`, so one epoch of two steps: with SAN-M 1.80, 2.17 and 3.54 in ASR, 1.19, 1.90 and 2.60
in S2TT; with Whisper's encoder 1.38, 1.34 and 1.46, and 0.89, 1.17 and 1.22. Qwen3-ASR 0.79, 0.90 and 1.34, and 0.64,
1.07 and 1.29: of two steps of 2 s AdamW and the processors make a large part, which tells less of the models.
"""

import argparse
import io
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import torch
from datasets import Dataset
from processors import ASKING, INSTRUCTIONS, SAMPLING_RATE, AnswerCollator, part_processor
from side_by_side import COST_COLUMNS, Worker, add_speeds, peak_gib, show, write
from speech_models import SPEECH_MODELS, TOKENS_PER_SECOND, VOCABULARIES, build, make_batches
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    WhisperFeatureExtractor,
)

from modeling_part.data.batches import Batches
from modeling_part.data.budget import Budget
from modeling_part.data.collator import PARTCollator
from modeling_part.data.mixture import Mixture, RowTable
from modeling_part.data.row_tokens import count_tokens
from modeling_part.data.sampling import TaskBatchSampler
from modeling_part.fbank_part import PARTFbankFeatureExtractor
from modeling_part.recipes.arguments import PARTTrainingArguments
from modeling_part.recipes.stages import BUILT_IN_STAGES
from modeling_part.training.freezing import set_trainable
from modeling_part.training.trainer import PARTTrainer


LEARNING_RATE = 1e-4
LONGEST_SECONDS = 20.0  # of make_batches
PART_EXTRACTORS = {"part_sanm": PARTFbankFeatureExtractor, "part_whisper": WhisperFeatureExtractor}
MODELS = (*ASKING, *PART_EXTRACTORS)


@dataclass(frozen=True)
class Run:
    """What one process trains: epochs of `clips` in batches of `rows`, one to warm up and `rounds` timed ones."""

    model: str
    task: str
    length: str  # of the clips: seconds, or mix
    clips: int
    rows: int
    rounds: int
    tiny: bool

    @property
    def steps_per_round(self) -> int:
        return self.clips // self.rows

    @property
    def steps(self) -> int:
        return self.steps_per_round * (1 + self.rounds)

    @property
    def vocabulary(self) -> int:
        return 1024 if self.tiny else VOCABULARIES[0]


class Turns(TrainerCallback):
    """Ends a round after so many steps: sends its seconds and CPU seconds, then waits for the next request."""

    def __init__(self, connection, run: Run):
        self.connection = connection
        self.run = run
        self.start = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.run.steps_per_round:
            return
        now = (time.perf_counter(), time.process_time())
        if self.start is None:
            self.connection.send({"left_out": None})
        else:
            self.connection.send(tuple(end - begin for end, begin in zip(now, self.start, strict=True)))
        if state.global_step < self.run.steps:
            self.connection.recv()
            self.start = (time.perf_counter(), time.process_time())


def make_clips(run: Run) -> list[tuple[np.ndarray, str]]:
    """Noise and answers, a token per letter."""
    generator = np.random.default_rng(0)
    clips = []
    for seconds in make_batches(run.length, run.clips, 1)[0]:
        noise = generator.normal(0, 0.1, round(seconds * SAMPLING_RATE)).astype(np.float32)
        clips.append((noise, "".join(generator.choice(list("bcdfgjkq"), round(TOKENS_PER_SECOND * seconds) + 1))))
    return clips


def settings(run: Run, folder: str) -> dict:
    """The training arguments of everybody."""
    return {
        "output_dir": folder,
        "max_steps": run.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }


def stock_trainer(run: Run, processor, folder: str, **options) -> Trainer:
    """transformers' `Trainer` on one of its own classes."""
    rows = [{"audio": audio, "text": text, "instruction": INSTRUCTIONS[run.task]} for audio, text in make_clips(run)]
    audio_token = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
    return Trainer(
        model=build(run.model, run.vocabulary, run.tiny, audio_token),
        args=TrainingArguments(**settings(run, folder), per_device_train_batch_size=run.rows),
        train_dataset=rows,
        data_collator=AnswerCollator(processor, ASKING[run.model]),
        **options,
    )


def part_trainer(run: Run, processor, folder: str, **options) -> PARTTrainer:
    """`PARTTrainer` as train_part.py puts it together."""
    # Of one task, so that every step of a run is alike; an ASR step costs what it costs between S2TT steps.
    rates = dict.fromkeys(BUILT_IN_STAGES["joint"].learning_rates, LEARNING_RATE)
    stage = replace(BUILT_IN_STAGES["joint"], tasks={run.task: 1.0}, learning_rates=rates, tuning="full")
    dataset = Dataset.from_list([canonical_row(run, i, *clip) for i, clip in enumerate(make_clips(run))])
    sampler = TaskBatchSampler(
        RowTable.from_dataset(dataset, count_tokens(dataset, processor)),
        Mixture(stage.tasks),
        Budget(LONGEST_SECONDS * run.rows, run.rows * 1024, run.rows),
        num_steps=run.steps,
    )
    model = build(run.model, run.vocabulary, run.tiny, processor.audio_token_id)
    return PARTTrainer(
        model,
        args=PARTTrainingArguments(**settings(run, folder)),
        stage=stage,
        trainable=set_trainable(stage, model),
        batches=Batches(dataset, sampler, PARTCollator(processor)),
        processing_class=processor,
        **options,
    )


def canonical_row(run: Run, number: int, audio: np.ndarray, text: str) -> dict:
    """A row as PART's corpora give it, the sound inside."""
    file = io.BytesIO()
    soundfile.write(file, audio, SAMPLING_RATE, format="WAV", subtype="PCM_16")
    languages = {"source_lang": "en", "target_lang": "en" if run.task == "asr" else "de"}
    row = {"id": str(number), "corpus": "noise", "task": run.task, "text": text, "source_text": None, **languages}
    piece = {"duration": len(audio) / SAMPLING_RATE, "start": None, "end": None}
    return row | piece | {"audio": {"path": None, "bytes": file.getvalue()}}


def make_processor(run: Run):
    """Raises ImportError or FileNotFoundError where the class needs what is not here."""
    if run.model in ASKING:
        return ASKING[run.model].processor()
    with torch.device("meta"):  # for its configuration
        convolutions = build(run.model, run.vocabulary, run.tiny).config.audio_token_convolutions
    return part_processor(convolutions, PART_EXTRACTORS[run.model])


def train(connection, run: Run, threads: int):
    """Body of a process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    try:
        processor = make_processor(run)
    except (ImportError, FileNotFoundError) as error:
        connection.send({"left_out": " ".join(str(error).split())})
        return
    make: Callable = part_trainer if run.model in PART_EXTRACTORS else stock_trainer
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(run, processor, folder, callbacks=[Turns(connection, run)])
        trainer.remove_callback(PrinterCallback)
        collator = trainer.data_collator
        collated = []
        trainer.data_collator = lambda rows: collated.append(len(rows)) or collator(rows)
        loss = trainer.train().training_loss
    connection.send({"loss": loss, "peak_gib": peak_gib(), "batches": collated})


def measure(runs: list[Run], threads: int) -> tuple[list[dict], dict[str, str]]:
    """The runs in turns, ratios to the first that can be made here; the others with the reason."""
    workers, results, left_out = [], [], {}
    for run in runs:  # warmed up one after another: nothing else runs meanwhile
        worker = Worker(train, run, threads)
        label = SPEECH_MODELS[run.model].label
        reason = worker.receive()["left_out"]
        if reason is None:
            workers.append(worker)
            results.append({"model": run.model, "label": label, "clip_count": run.clips, "rounds": []})
        else:
            left_out[label] = reason
    for _ in range(runs[0].rounds):
        for worker, result in zip(workers, results, strict=True):
            result["rounds"].append(worker.ask("round"))
    for worker, result in zip(workers, results, strict=True):
        result |= worker.receive()
        worker.process.join()
        if set(result["batches"]) != {runs[0].rows} or len(result["batches"]) != runs[0].steps:
            raise RuntimeError(
                f"{result['label']}: a round was not an epoch; its batches had {result['batches']} rows."
            )
        result["seconds"], result["cpu_seconds"] = (list(column) for column in zip(*result.pop("rounds"), strict=True))
        result["clips_per_cpu_s"] = result["clip_count"] / statistics.median(result["cpu_seconds"])
        result["steps_per_s"] = runs[0].steps_per_round / statistics.median(result["seconds"])
    add_speeds(results)
    return results, left_out


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tasks", nargs="+", choices=list(INSTRUCTIONS), default=list(INSTRUCTIONS))
    parser.add_argument("--lengths", nargs="+", default=["mix"], help="of clips: seconds, or mix (default)")
    parser.add_argument("--clips", type=int, default=16, help="clips of a round, an epoch (16)")
    parser.add_argument("--rows", type=int, default=4, help="clips in a batch (4)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test this program")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    if args.clips % args.rows:
        parser.error(f"--clips {args.clips} is not a multiple of --rows {args.rows}: a round is an epoch.")
    figures = {"settings": {name: value for name, value in vars(args).items() if name != "output"}, "tables": {}}
    run = partial(Run, clips=args.clips, rows=args.rows, rounds=args.rounds, tiny=args.tiny)
    columns = {**COST_COLUMNS, "steps/s": "{steps_per_s:.2f}"}
    for task, length in product(args.tasks, args.lengths):
        runs = [run(model, task, length) for model in args.models]
        results, figures["left_out"] = measure(runs, args.threads)
        unit = "clips of mixed lengths" if length == "mix" else f"clips of {length} s"
        title = f"{task}: {args.clips} {unit} in batches of {args.rows}"
        figures["tables"][title] = results
        show(title, results, columns)
        write(args.output, figures)
    for label, reason in figures["left_out"].items():
        print(f"Left out: {label}: {reason}")


if __name__ == "__main__":
    main()
