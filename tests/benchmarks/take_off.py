"""How fast and how surely the adapter learns in the first stage: its losses, its optimizer, its shape, its random start.

    python tests/benchmarks/take_off.py quickstart --output_dir runs/take_off --json runs/take_off/figures.json

The encoder is frozen, and its frames are computed once; the adapter alone trains on transcription, 8 clips a step. A line for each
variant, which changes one thing of the first: greedy CTC's word error rate and the alignment's nats per token on dev clips,
nats per answer token of a language model that hears them, and the processor's seconds per step without the encoder.

KL here is no loss of the package (whose `kl` is of text tasks): the language model's answer to the audio is pulled towards its
own answer to the transcript (BLSP-KD, arXiv 2405.19041; Ultravox's release recipe). That teacher's own nats stand in the
first line: no student can be led further.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import jiwer
import torch
import torch.nn.functional as F
from side_by_side import write
from tqdm.auto import tqdm, trange
from transformers import set_seed

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.adapter_part import PARTAdapter
from modeling_part.alignment_part import collapse
from modeling_part.audio_part import load_clip
from modeling_part.data.collator import PARTCollator
from modeling_part.data.loading import load_rows
from modeling_part.data.row_tokens import transcript
from modeling_part.data.transcripts import count_transcript_tokens
from modeling_part.recipes.arguments import parse_recipe
from modeling_part.training.setup import load_model


TASKS = ("asr", "s2tt")
BATCH = 8
DEV_ROWS = 40


@dataclass(frozen=True)
class Variant:
    """
    One line of the table.

    Attributes:
        name: what `--only` looks for.
        losses: what trains, each for a share of `--steps`; at each the optimizer and the schedule begin anew.
        rate, warmup, beta2, weight_decay, clip: of AdamW, a linear schedule and the gradient's norm.
        stride: of the adapter's convolution, over frames of 20 ms.
        seed: of the adapter, the blank and the order of the clips.
    """

    name: str
    losses: tuple[tuple[str, float], ...] = (("ctc", 1.0),)
    rate: float = 5e-4
    warmup: float = 0.05
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip: float = 1.0
    stride: int = 4
    seed: int = 42


FIRST = Variant("CTC")
VARIANTS = [
    FIRST,
    replace(FIRST, name="seed 43", seed=43),
    replace(FIRST, name="seed 44", seed=44),
    replace(FIRST, name="rate 1e-3", rate=1e-3),
    replace(FIRST, name="rate 2e-4", rate=2e-4),
    replace(FIRST, name="second beta 0.95", beta2=0.95),
    replace(FIRST, name="weight decay 0.01", weight_decay=0.01),
    replace(FIRST, name="norm not clipped", clip=float("inf")),
    replace(FIRST, name="norm clipped at 10", clip=10.0),
    replace(FIRST, name="no warm-up", warmup=0.0),
    replace(FIRST, name="three schedules in a row", losses=(("ctc", 1 / 3), ("ctc", 1 / 3), ("ctc", 1 / 3))),
    replace(FIRST, name="stride 2", stride=2),
    replace(FIRST, name="stride 8", stride=8),
    replace(FIRST, name="NLL", losses=(("nll", 1.0),)),
    replace(FIRST, name="KL", losses=(("kl", 1.0),)),
    replace(FIRST, name="CTC, then NLL", losses=(("ctc", 1.0), ("nll", 0.5))),
    replace(FIRST, name="CTC, then KL", losses=(("ctc", 1.0), ("kl", 0.5))),
]


class Frames:
    """The frozen encoder's frames of clips, in memory, for [`PARTCollator`]."""

    def __init__(self, model: PARTForSpeechSeq2Seq, processor: PARTProcessor, rows: Sequence[Mapping]) -> None:
        self.clips = {}
        for row in tqdm(rows, desc="encoder", unit="clip"):
            if (key := self.key(row)) not in self.clips:
                features = processor.pad_features(
                    [processor.extract_features(load_clip(row, processor.sampling_rate))]
                )
                frames = model.model.encode(**features).last_hidden_state[0]
                self.clips[key] = (frames, features["input_features_mask"].shape[1], None)

    @staticmethod
    def key(row: Mapping) -> tuple:
        return row["audio"]["path"], row["start"], row["end"]

    def frames_or_silence(self, row: Mapping) -> tuple[torch.Tensor, int, None]:
        return self.clips[self.key(row)]


class Bench:
    """A recipe's model in float32, of which the adapter and the blank train, and its rows."""

    def __init__(self, arguments: Sequence[str], clips: int) -> None:
        recipe = parse_recipe([*arguments, "--precision", "float32", "--use_cpu"])
        rows = load_rows(recipe)
        set_seed(recipe.training.seed)
        self.model, self.processor = load_model(None, recipe.model)
        self.model.eval().float().requires_grad_(False)
        self.counts = count_transcript_tokens(rows, self.processor, self.model.config.text_config.vocab_size)
        train, dev = (dataset.shuffle(seed=0) for dataset in (rows.train, rows.eval))
        self.train = [row for row in train if row["task"] == "asr"][:clips]
        self.dev = {task: [row for row in dev if row["task"] == task][:DEV_ROWS] for task in TASKS}
        with torch.no_grad():
            frames = Frames(self.model, self.processor, [*self.train, *self.dev["asr"], *self.dev["s2tt"]])
        self.collate = PARTCollator(
            self.processor, pad_seconds_multiple=0.5, with_transcripts=True, encoder_outputs=frames
        )

    def restart(self, variant: Variant) -> list[torch.nn.Parameter]:
        """A new adapter and blank; what trains."""
        set_seed(variant.seed)
        config = self.model.config
        config.adapter_conv_stride, config.adapter_conv_kernel_size = variant.stride, variant.stride + 1
        self.processor.audio_token_convolutions = config.audio_token_convolutions
        self.model.model.adapter = PARTAdapter(config)
        self.model.model.adapter.apply(self.model._init_weights)
        self.model.add_alignment_head(self.counts)
        parts = (self.model.model.adapter, self.model.alignment_head)
        return [parameter.requires_grad_() for part in parts for parameter in part.parameters()]

    def outputs(self, rows: Sequence[dict], losses: Sequence[str]) -> dict:
        """Sums over a batch of the losses that are asked for, what they are divided by, and what greedy CTC reads."""
        batch = self.collate(rows)
        batch.pop("batch_info")
        targets, lengths = batch["layout"]["targets"], batch["layout"]["audio_lengths"].tolist()
        hears = set(losses) & {"nll", "kl"}
        outputs = self.model(**batch, nll_weight=float(bool(hears)), ctc_weight=1.0, num_items_in_batch=1)
        sums = {"ctc": outputs.ctc_losses.sum(), "tokens": len(targets)}
        sums["transcript_tokens"] = int((batch["transcript_ids"] != -100).sum())
        if hears:
            sums["nll"] = F.cross_entropy(outputs.logits.float(), targets, reduction="sum")
        if "kl" in losses:
            student, teacher = outputs.logits.float().log_softmax(-1), self.teacher(rows)
            sums["kl"] = F.kl_div(student, teacher, reduction="sum", log_target=True)
            sums["teacher"] = F.nll_loss(teacher, targets, reduction="sum")
        read = [collapse(best.tolist()) for best in outputs.ctc_tokens.split(lengths)]
        return {"sums": sums, "read": self.processor.tokenizer.batch_decode(read, skip_special_tokens=True)}

    @torch.no_grad()
    def teacher(self, rows: Sequence[dict]) -> torch.Tensor:
        """`(answer tokens, V)` log-probabilities of the language model that reads what the student hears."""
        encoded = []
        for row in rows:
            prompt, answer = self.processor._encode_row(row, 1)
            at = prompt.index(self.processor.audio_token_id)
            said = self.processor.text_ids(transcript(row["task"], row["text"], row["source_text"]))
            encoded.append(([*prompt[:at], *said, *prompt[at + 1 :]], answer))
        longest = max(len(prompt) + len(answer) for prompt, answer in encoded)
        return self.model(**self.processor._pad_tokens(encoded, True, "right", longest)).logits.float().log_softmax(-1)

    def learn(self, variant: Variant, steps: int) -> float:
        """Train; seconds of the processor per step of the last loss."""
        parameters, draw = self.restart(variant), random.Random(variant.seed)
        for loss, share in variant.losses:
            count = round(steps * share)
            optimizer = torch.optim.AdamW(
                parameters, variant.rate, betas=(0.9, variant.beta2), weight_decay=variant.weight_decay
            )
            warmup = max(1, round(variant.warmup * count))
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer,
                lambda step: min((step + 1) / warmup, (count - step) / max(1, count - warmup)),  # noqa: B023
            )
            begin = process_time()
            for _ in trange(count, desc=f"{variant.name}: {loss}"):
                sums = self.outputs(draw.sample(self.train, BATCH), [loss])["sums"]
                (sums[loss] / sums["tokens"]).backward()
                torch.nn.utils.clip_grad_norm_(parameters, variant.clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            seconds = (process_time() - begin) / count
        return seconds

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Of dev rows that are heard: see the module."""
        figures = {}
        for task in TASKS:
            rows = self.dev[task]
            found = [self.outputs(rows[at : at + BATCH], ["nll", "kl"]) for at in range(0, len(rows), BATCH)]
            sums = {name: sum(float(one["sums"][name]) for one in found) for name in found[0]["sums"]}
            figures |= {f"{task}_{name}": sums[name] / sums["tokens"] for name in ("nll", "kl", "teacher")}
            if task == "asr":
                said = [transcript(row["task"], row["text"], row["source_text"]) for row in rows]
                figures["greedy_wer"] = 100 * jiwer.wer(said, [text for one in found for text in one["read"]])
                figures["ctc"] = sums["ctc"] / sums["transcript_tokens"]
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--clips", type=int, default=600, help="to train on")
    parser.add_argument("--only", nargs="+", default=None, help="names of variants")
    parser.add_argument("--json", type=Path, help="gets the figures")
    args, recipe = parser.parse_known_args()
    bench, figures = Bench(recipe, args.clips), {}
    bench.restart(FIRST)
    figures["untrained"] = bench.evaluate()
    print("untrained", figures["untrained"], flush=True)
    for variant in VARIANTS:
        if args.only is None or variant.name in args.only:
            seconds = bench.learn(variant, args.steps)
            figures[variant.name] = {**bench.evaluate(), "cpu_seconds_per_step": seconds}
            print(variant.name, {name: round(value, 3) for name, value in figures[variant.name].items()}, flush=True)
            write(args.json, figures)


if __name__ == "__main__":
    main()
