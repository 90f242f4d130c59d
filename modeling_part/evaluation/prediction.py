# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Prediction with a checkpoint: `predictions.jsonl` (and `predictions_unnamed.jsonl`), from which all figures are read off.

`part score`, `part report` and `part compare` read them. Normalisation is in `normalization.py`, the measures in
`metrics.py`, the counting in `scoring.py`, tables in `reports.py`, `run_report.py` and `comparison.py`.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from tqdm.auto import tqdm

from ..alignment_part import align_answers, clip_embeds, heard_text
from ..audio_part import load_clip
from ..confidence_part import answer_confidence, overall
from ..data.rows import QUESTION
from ..prompts_part import TEXT_TASKS
from .reports import write_report
from .scoring import (
    PREDICTIONS_FILE,
    UNNAMED_FILE,
    annotate,
    check_prediction,
    prediction_key,
    read_predictions,
    refuse_same_keys,
    score,
    write_predictions,
)


logger = logging.getLogger(__name__)
PLANNING_COLUMNS = ["id", "corpus", "task", "source_lang", "target_lang", "text", "source_text", "duration", *QUESTION]


def planning_table(dataset: Dataset | Sequence[Mapping]) -> list[dict]:
    """The rows without their audio: what they ask and are scored by."""
    if isinstance(dataset, Dataset):
        dataset = dataset.select_columns([name for name in PLANNING_COLUMNS if name in dataset.column_names])
    return [{name: row.get(name) for name in PLANNING_COLUMNS} for row in dataset]


def weights_fingerprint(model: torch.nn.Module, salt: str = "") -> str:
    """A short hash that changes with the weights, their type or `salt`, so that what other weights made is known.

    Sums the weights' bits as integers: exact, in any order, on any device.
    """
    integer_types = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    digest = hashlib.sha256(salt.encode())
    for name, parameter in sorted(model.named_parameters()):
        bits = parameter.detach().contiguous().view(integer_types[parameter.element_size()])
        digest.update(f"{name} {parameter.dtype} {int(bits.sum(dtype=torch.int64))}".encode())
    return digest.hexdigest()[:16]


def plan_prediction_batches(
    rows: Sequence[Mapping], remaining: Sequence[int], *, batch_size: int, max_audio_seconds: float
) -> list[list[int]]:
    """Groups row indices into batches of one task and similar length, longest first (memory runs out at once or never).

    A batch holds at most `batch_size` rows and `max_audio_seconds` of audio counted with its padding; a longer
    row is a batch of its own.
    """

    def length(index: int) -> tuple:
        row = rows[index]
        return row["task"], -(row["duration"] or 0.0), -len(row["source_text"] or "")

    batches: list[list[int]] = []
    for index in sorted(remaining, key=length):
        batch = batches[-1] if batches else []
        fits = (
            batch
            and len(batch) < batch_size
            and rows[batch[0]]["task"] == rows[index]["task"]
            and (len(batch) + 1) * (rows[batch[0]]["duration"] or 0.0) <= max_audio_seconds
        )
        if fits:
            batch.append(index)
        else:
            batches.append([index])
    return batches


@torch.inference_mode()
def _generate(model, processor, rows: Sequence[Mapping], max_new_tokens: int) -> list[dict]:
    """`hypothesis` of each row, of transcription also `confidence`, and `ctc_hypothesis` where the model has an alignment head.

    All rows are of one task, so all have audio or none has.
    """
    audio = None
    if rows[0]["task"] not in TEXT_TASKS:
        audio = [load_clip(row, processor.sampling_rate) for row in rows]
    inputs = processor(
        audio=audio,
        task=rows[0]["task"],
        source_lang=[row["source_lang"] for row in rows],
        target_lang=[row["target_lang"] for row in rows],
        source_text=[row["source_text"] for row in rows] if audio is None else None,
        prompt=[row.get("prompt") for row in rows],
        context=[row.get("context") for row in rows],
        padding_side="left",
    ).to(model.device, model.dtype)
    if audio is not None:
        features, mask = (inputs.pop(name, None) for name in ("input_features", "input_features_mask"))
        inputs["mm_encoder_outputs"] = {"audio": model.get_audio_features(features, mask)}
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    answers = ids[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)]
    outcomes: list[dict] = [{"hypothesis": text} for text in texts]
    if rows[0]["task"] != "asr":
        return outcomes
    aligned = align_answers(model, processor, inputs, texts, ["asr"] * len(rows))
    for outcome, units in zip(outcomes, answer_confidence(model, processor, inputs, aligned), strict=True):
        outcome["confidence"] = overall(units)
    if model.alignment_head is not None:
        for outcome, audio_embeds in zip(outcomes, clip_embeds(model, inputs), strict=True):
            outcome["ctc_hypothesis"] = heard_text(model, processor, audio_embeds)
    return outcomes


def _predict_batch(model, processor, rows: Sequence[Mapping], max_new_tokens: int) -> list[dict]:
    """Hypotheses of a batch; where the batch fails, of each row alone, and of a row that fails alone its error."""
    try:
        return _generate(model, processor, rows, max_new_tokens)
    except Exception as error:  # what a broken clip or a full memory raises costs this row only, and is reported
        message = f"{type(error).__name__}: {error}"
    # Outside the handler, which would keep the failed batch's tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(rows) == 1:
        logger.warning("Row %r failed and counts as an error: %s", rows[0]["id"], message)
        return [{"hypothesis": "", "error": message}]
    return [_predict_batch(model, processor, [row], max_new_tokens)[0] for row in rows]


def _answers(prediction: Mapping, row: Mapping) -> bool:
    """Whether a prediction is of a row as it is now: asked the same about as much sound, and scored against its text."""
    names = [name for name in PLANNING_COLUMNS if name != "text"]
    return prediction["reference"] == row["text"] and all(prediction.get(name) == row.get(name) for name in names)


def count_unanswered(dataset: Dataset | Sequence[Mapping], folder: Path) -> int:
    """Rows of a data set that `predictions.jsonl` in a folder does not answer as they are now."""
    path = folder / PREDICTIONS_FILE
    answers = {}
    for row in read_predictions(path) if path.is_file() else []:
        try:
            check_prediction(row)
        except ValueError:
            continue  # no answer: predicted again, this row is named and replaced
        answers[prediction_key(row)] = row
    table = [(row, answers.get(prediction_key(row))) for row in planning_table(dataset)]
    return sum(answer is None or not _answers(answer, row) for row, answer in table)


def _gather(output_path: Path, table: Sequence[Mapping], model_fingerprint: str) -> list[dict]:
    """Puts the file and the part files of this and earlier, perhaps interrupted, runs together into the one file.

    Rows of other weights or of another data set are moved to `predictions.jsonl.replaced-1` with a warning; of two rows
    for the same key one without an error counts. Order: the data set's.
    """
    parts = sorted(output_path.parent.glob(f"{output_path.name}.part-*"))
    wanted, dropped, found = {prediction_key(row): row for row in table}, [], {}
    for path in [output_path, *parts]:
        for row in read_predictions(path) if path.exists() else []:
            try:
                check_prediction(row)
            except ValueError as error:
                logger.warning("%s: %s It is predicted again", path, error)
                continue
            key = prediction_key(row)
            if row.get("model") != model_fingerprint or key not in wanted or not _answers(row, wanted[key]):
                dropped.append(row)
            elif row.get("error") is None or key not in found:
                found[key] = row
    if dropped:
        suffixes = [path.name.rpartition("-")[2] for path in output_path.parent.glob(f"{output_path.name}.replaced-*")]
        number = 1 + max((int(suffix) for suffix in suffixes if suffix.isdecimal()), default=0)
        before = output_path.with_name(f"{output_path.name}.replaced-{number}")
        write_predictions(dropped, before)
        message = "%s: dropped %d predictions of another model or data set; they are in %s now"
        logger.warning(message, output_path, len(dropped), before)
    rows = annotate(found[key] for key in wanted if key in found)
    write_predictions(rows, output_path)
    for path in parts:
        path.unlink()
    return rows


def _predict_share(
    model,
    processor,
    dataset: Dataset | Sequence[Mapping],
    table: Sequence[Mapping],
    batches: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    named: bool,
    part_path: Path,
    model_fingerprint: str,
    progress: bool,
) -> None:
    """This process's batches, appended one by one to its part file."""
    was_training = model.training
    model.eval()
    with (
        part_path.open("w", encoding="utf-8") as part,
        tqdm(total=sum(map(len, batches)), desc="predict", unit="row", disable=None if progress else True) as bar,
    ):
        for batch in batches:
            rows = [dataset[index] if named else {**dataset[index], "source_lang": None} for index in batch]
            outcomes = _predict_batch(model, processor, rows, max_new_tokens)
            for index, outcome in zip(batch, outcomes, strict=True):
                asked = {name: value for name, value in table[index].items() if name != "text"}
                row = {name: value for name, value in asked.items() if value is not None or name not in QUESTION}
                row.update(reference=table[index]["text"], model=model_fingerprint, **outcome)
                part.write(json.dumps(row, ensure_ascii=False) + "\n")
            part.flush()
            bar.update(len(batch))
    model.train(was_training)


def _refuse_unscorable(table: Sequence[Mapping], keys: Sequence[tuple]) -> None:
    """Raise ValueError for rows that are answered by one prediction, or have nothing to be compared with."""
    refuse_same_keys(keys, "rows", "give every row an id of its own.")
    without_text = [row["id"] for row in table if row["text"] is None]
    if without_text:
        raise ValueError(f"Rows without text to score against: {without_text[:5]} ({len(without_text)} in all).")


def predict(
    model,
    processor,
    dataset: Dataset | Sequence[Mapping],
    *,
    output_path: str | Path,
    batch_size: int = 16,
    max_audio_seconds: float = 240.0,
    max_new_tokens: int = 200,
    named: bool = True,
    accelerator: Accelerator | None = None,
) -> list[dict]:
    """Greedy predictions for every row of a data set, written to a file.

    Every process takes its share of the batches and appends to a part file of its own; the main process puts the parts
    together at the end. Called again after an interruption it does the missing and the failed rows only; rows in the
    file that are of other weights, or of a row that was another then (its text, length or prompt), are moved to
    `predictions.jsonl.replaced-1` (the next ones to `-2`) with a warning.

    Args:
        model: a `PARTForSpeechSeq2Seq` on its device, whole on every process (not sharded).
        processor: its `PARTProcessor`.
        dataset: rows with the canonical columns; `text` is the reference.
        output_path: the `predictions.jsonl` to write; its folder is created.
        batch_size: rows per batch at most.
        max_audio_seconds: seconds of audio per batch at most, padding included.
        max_new_tokens: tokens per hypothesis at most.
        named: whether the model is told the source language.
        accelerator: tells the processes apart; None makes one, which finds the processes of the launch. Every process
            must make the call.

    Returns:
        On every process, one annotated prediction per row in the order of the data set (see `scoring.annotate`).

    Raises:
        ValueError: rows without `text`, or two rows with the same corpus, id, task and languages.
        RuntimeError: every row failed; gives the first error.
    """
    output_path = Path(output_path)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    table = planning_table(dataset)
    keys = [prediction_key(row) for row in table]
    _refuse_unscorable(table, keys)
    accelerator = accelerator or Accelerator()
    model = accelerator.unwrap_model(model)
    model_fingerprint = weights_fingerprint(model, str(max_new_tokens) if named else f"{max_new_tokens} unnamed")
    if accelerator.is_main_process:
        _gather(output_path, table, model_fingerprint)
    accelerator.wait_for_everyone()
    done = {prediction_key(row) for row in read_predictions(output_path) if row.get("error") is None}
    remaining = [index for index, key in enumerate(keys) if key not in done]
    batches = plan_prediction_batches(table, remaining, batch_size=batch_size, max_audio_seconds=max_audio_seconds)
    _predict_share(
        model,
        processor,
        dataset,
        table,
        batches[accelerator.process_index :: accelerator.num_processes],
        max_new_tokens=max_new_tokens,
        named=named,
        part_path=output_path.with_name(f"{output_path.name}.part-{accelerator.process_index}"),
        model_fingerprint=model_fingerprint,
        progress=accelerator.is_main_process,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _gather(output_path, table, model_fingerprint)
    accelerator.wait_for_everyone()
    rows = read_predictions(output_path)
    if len(rows) != len(keys):
        raise RuntimeError(
            f"{output_path} has {len(rows)} answers to {len(keys)} rows: another process has written there too. Once it has "
            "ended, predict again."
        )
    errors = [row["error"] for row in rows if row.get("error") is not None]
    if rows and len(errors) == len(rows):
        raise RuntimeError(f"All {len(rows)} rows failed, the first with {errors[0]}; see {output_path}.")
    return rows


def predict_and_report(
    model,
    processor,
    dataset: Dataset | Sequence[Mapping],
    folder: str | Path,
    *,
    seed: int = 0,
    ask_unnamed: bool = False,
    accelerator: Accelerator | None = None,
    **generation,
) -> dict:
    """`predictions.jsonl` ([`predict`]) and their report (`scoring.score`) as `report.json` and `report.md`.

    Args:
        folder: for the files; created.
        seed: of the bootstrap.
        ask_unnamed: ask for each transcript a second time, without the name of its language, as people do who do not
            know it: `predictions_unnamed.jsonl`, and `unnamed` in the report.
        **generation: `batch_size`, `max_audio_seconds` and `max_new_tokens` of [`predict`].

    Returns:
        The report, on every process; the main one scores.
    """
    accelerator = accelerator or Accelerator()
    folder = Path(folder)
    generation |= {"accelerator": accelerator}
    predictions = predict(model, processor, dataset, output_path=folder / PREDICTIONS_FILE, **generation)
    speech = [index for index, row in enumerate(predictions) if row["task"] == "asr"] if ask_unnamed else []
    unnamed = None
    if speech:
        rows = dataset.select(speech) if isinstance(dataset, Dataset) else [dataset[index] for index in speech]
        unnamed = predict(model, processor, rows, output_path=folder / UNNAMED_FILE, named=False, **generation)
    report = None
    if accelerator.is_main_process:
        report = score(predictions, unnamed=unnamed, seed=seed)
        write_report(report, folder)
    return broadcast_object_list([report])[0]
