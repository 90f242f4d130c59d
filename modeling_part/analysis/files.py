# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What the analyses read and write: canonical rows, checkpoints and `STAGE_ANALYSIS.json`."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ..data.corpora import kept_rows
from ..data.files import read_jsonl
from ..modeling_part import PARTForSpeechSeq2Seq
from ..processing_part import PARTProcessor
from ..recipes.files import write_json


def read_rows(path: str | Path) -> list[dict]:
    """Canonical rows of a JSONL manifest, or of a run's `data/SPLIT` folder.

    Raises:
        FileNotFoundError: there is neither.
        CorpusError: a line of the manifest is no JSON object.
        ValueError: a row leaves something out that a run's own rows have.
    """
    path = Path(path)
    if (kept := kept_rows(path)) is not None:
        return list(kept)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is neither a JSONL manifest nor a folder with rows.arrow (runs/NAME/data/test)"
        )
    rows = [row for _, row in read_jsonl(path)]
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in ("task", "source_lang", "target_lang", "text") if row.get(name) is None]:
            raise ValueError(
                f"{path}: row {number} ({row.get('id')}) has no {', '.join(missing)}. Fill it in, or give the folder data/test "
                "of a run, whose rows have all of it."
            )
        if isinstance(row.get("audio"), str):
            row["audio"] = {"path": str(path.parent / row["audio"]), "bytes": None}
    return rows


def load_checkpoint(checkpoint: str | Path, device: str | None = None) -> tuple[PARTForSpeechSeq2Seq, PARTProcessor]:
    """Model (float32, in evaluation mode) and processor of a folder; None puts the model on the first accelerator."""
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model = PARTForSpeechSeq2Seq.from_pretrained(checkpoint, dtype=torch.float32).to(device).eval()
    return model, PARTProcessor.from_pretrained(checkpoint)


def write_result(checkpoint: str | Path, analysis: str, output: str | Path, result: Mapping) -> Path:
    """Write `OUTPUT/STAGE_ANALYSIS.json` and say so; returns its path without `.json`, for pictures beside it."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    stem = output / f"{Path(checkpoint).resolve().name}_{analysis}"
    write_json(Path(f"{stem}.json"), result)
    print(f"Written: {stem}.json")
    return stem
