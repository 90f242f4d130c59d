# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Dev losses: of the answers and of the alignment, what greedy CTC reads, and whether the model listens at all."""

import logging
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import Trainer

from ..alignment_part import ctc_text
from ..data.batches import Batches
from ..data.row_tokens import transcript
from ..evaluation.metrics import count_text_edits
from ..prompts_part import TASKS, TEXT_TASKS
from .losses import GroupLosses, LossSums, add_output, add_sums, mean_losses


logger = logging.getLogger(__name__)

# A model that listens loses more than this with the clip of another row, in nats per token.
LEAST_GAIN = 0.1

# language -> errors and reference units
Errors = dict[str, tuple[int, int]]


@dataclass
class DevSums:
    """Sums over dev batches that add up over ranks.

    Attributes:
        answers: nats and tokens of the answers by group.
        alignment: nats and tokens of the transcripts by group.
        errors: of greedy CTC on transcription, errors and reference units by language.
    """

    answers: GroupLosses = field(default_factory=dict)
    alignment: GroupLosses = field(default_factory=dict)
    errors: Errors = field(default_factory=dict)

    def add(self, other: "DevSums") -> None:
        """Add the sums of other batches."""
        add_sums(self.answers, other.answers)
        add_sums(self.alignment, other.alignment)
        add_sums(self.errors, other.errors)

    def over_ranks(self) -> "DevSums":
        """The sums of all ranks; every rank must make the call."""
        total = DevSums()
        for one in gather_object([self]):
            total.add(one)
        return total

    def loss(self, tasks: Collection[str] = TASKS) -> float | None:
        """Nats per token of the answers of these tasks; of the alignment where the language model does not run.

        None where no token has a loss.
        """
        sums = [one for group, one in (self.answers or self.alignment).items() if group[0] in tasks]
        tokens = sum(tokens for _, tokens in sums)
        return sum(nats for nats, _ in sums) / tokens if tokens else None

    def figures(self, prefix: str) -> dict[str, float]:
        """`{prefix}loss`, `{prefix}asr/fr_loss`, `{prefix}asr_ctc_loss`, `{prefix}ctc/fr_error_rate`, ..."""
        loss = self.loss()
        figures = {} if loss is None else {f"{prefix}loss": loss}
        figures |= mean_losses(self.answers, prefix)
        figures |= mean_losses(self.alignment, prefix, "ctc_loss")
        rates = {language: errors / units for language, (errors, units) in sorted(self.errors.items()) if units}
        if rates:
            figures[f"{prefix}ctc_error_rate"] = sum(rates.values()) / len(rates)
        return figures | {f"{prefix}ctc/{language}_error_rate": rate for language, rate in rates.items()}


def dev_sums(trainer: Trainer, batches: Batches, options: dict, swap: bool = False) -> tuple[DevSums, DevSums]:
    """One pass over the dev batches; every rank takes its share and must make the call.

    Args:
        trainer: whose model, device and precision are used.
        batches: with the dev rows.
        options: of the model's forward, the losses' weights among them.
        swap: give each row the clip of its neighbour in the batch; batches of one row are left out.

    Returns:
        The sums of all batches, and those of the batches with several rows, which can be compared with swapped clips.
    """
    rows = batches.eval_rows
    planned: dict[bool, list[list[int]]] = {False: [], True: []}
    for batch in batches.eval_batches:
        if len(batch) > 1 or not swap:
            planned[rows[batch[0]]["task"] in TEXT_TASKS].append(batch)
    if not options["nll_weight"]:  # the language model does not run
        planned[True] = []
    model, was_training = trainer.model_wrapped, trainer.model.training
    model.eval()
    sums, of_several = DevSums(), DevSums()
    for of_a_kind in planned.values():
        for total, found in zip((sums, of_several), _share(trainer, batches, options, swap, of_a_kind), strict=True):
            total.add(found)
    if was_training:
        model.train()
    return sums.over_ranks(), of_several.over_ranks()


def _share(
    trainer: Trainer, batches: Batches, options: dict, swap: bool, planned: Sequence[list[int]]
) -> tuple[DevSums, DevSums]:
    """The sums of this rank's share of planned batches, all with audio or all without, see [`dev_sums`].

    FSDP2 gathers weights inside forward: every rank runs as many forwards as the one with the most, of the same parts.
    """
    args, rows, model = trainer.args, batches.eval_rows, trainer.model_wrapped
    mine = planned[args.process_index :: args.world_size]

    def collate(chosen: list[dict]) -> dict:
        return batches.eval_collator(swap_clips(chosen) if swap else chosen) | {"rows": chosen}

    rounds = math.ceil(len(planned) / args.world_size)
    # With a generator of its own: the draws of training's dropout are those that they are without an evaluation.
    options_of_loader = {"pin_memory": args.dataloader_pin_memory, "generator": torch.Generator()}
    loader = DataLoader(rows, batch_sampler=mine, collate_fn=collate, **options_of_loader)
    sums, of_several, last = DevSums(), DevSums(), None
    for index, batch in enumerate(_padded(loader, rounds)):
        batch = last if batch is None else batch
        if batch is None:
            batch = collate([rows[row] for row in planned[0]])
        last = batch
        inputs = trainer._prepare_inputs({name: value for name, value in batch.items() if name != "rows"})
        info = inputs.pop("batch_info")
        trainer.broken_rows.warn(info)
        with torch.no_grad(), trainer.accelerator.autocast():
            outputs = model(**inputs, **options)
        if index < len(mine):
            answers, alignment = LossSums(), LossSums()
            add_output(answers, alignment, info, outputs)
            found = DevSums(answers.sums(), alignment.sums())
            lost = {info["ids"][place]: None for one in (answers, alignment) for place in one.not_finite()}
            if lost and not swap:
                logger.warning(
                    "The loss of these dev rows is not finite, and the dev loss without them: %s", ", ".join(lost)
                )
            if outputs.get("ctc_tokens") is not None and info["task"] == "asr":
                found.errors = greedy_errors(batch["rows"], info, inputs, outputs, trainer)
            sums.add(found)
            if len(batch["rows"]) > 1:
                of_several.add(found)
    return sums, of_several


def swap_clips(rows: Sequence[dict]) -> list[dict]:
    """Each row with the clip of the next one, the last with that of the first."""
    others = [*rows[1:], rows[0]]
    names = ("audio", "start", "end", "duration")
    return [{**row, **{name: other.get(name) for name in names}} for row, other in zip(rows, others, strict=True)]


def greedy_errors(rows: Sequence[dict], info: dict, inputs: dict, outputs: dict, trainer: Trainer) -> Errors:
    """Errors of what greedy CTC writes for a batch of transcription, by language; not of rows whose audio is broken."""
    tokens = outputs["ctc_tokens"].cpu().split(inputs["layout"]["audio_lengths"].tolist())
    errors: Errors = {}
    for row, best, answer_tokens in zip(rows, tokens, info["target_counts"], strict=True):
        if not answer_tokens:
            continue
        language = row["source_lang"]
        hypothesis = ctc_text(trainer.processing_class.tokenizer, best.tolist())
        reference = transcript(row["task"], row["text"], row["source_text"])
        counts = count_text_edits(reference, hypothesis, language)
        add_sums(errors, {language: (counts.errors, counts.reference_units)})
    return errors


def listens(trainer: Trainer, batches: Batches, options: dict, own: DevSums) -> dict[str, float | bool] | None:
    """Whether the model uses its audio: the dev loss with the clips of other rows is higher than with their own.

    A model on the plateau has learned what the texts look like and not yet to listen; both losses are then alike.

    Args:
        trainer, batches, options: see [`dev_sums`].
        own: of the batches with several rows, with their own clips.

    Returns:
        `own_clip_loss`, `other_clip_loss` (over the same batches) and `listens`; None without a batch of two rows that have
        a loss.
    """
    tasks = {task for task in trainer.stage.active_tasks if task not in TEXT_TASKS}
    of_speech = [
        batch for batch in batches.eval_batches if len(batch) > 1 and batches.eval_rows[batch[0]]["task"] in tasks
    ]
    if not of_speech:
        return None
    other = dev_sums(trainer, replace(batches, eval_batches=of_speech), options, swap=True)[0].loss()
    own_loss = own.loss(tasks)
    if own_loss is None or other is None:  # CTC alone, of translations without transcript
        return None
    return {"own_clip_loss": own_loss, "other_clip_loss": other, "listens": other - own_loss > LEAST_GAIN}


def _padded(items: DataLoader, size: int) -> Iterator:
    """`items`, then None until there are `size`."""
    yield from chain(items, repeat(None, size - len(items)))
