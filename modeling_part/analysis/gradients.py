# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What training does to a checkpoint, as numbers per stage: gradients, representations (probes.py) and weights.

::

    python -m modeling_part.analysis gradients runs/part/joint --data runs/part/data/test --output runs/part/analysis
    python -m modeling_part.analysis probes runs/part/joint --data runs/part/data/test --output runs/part/analysis
    python -m modeling_part.analysis drift runs/part/joint --since runs/part/encoder --output runs/part/analysis

`--data` takes JSONL manifests and the `data/SPLIT` folders of a run. Each command writes `STAGE_COMMAND.json` and, but
for `drift`, a picture.
"""

import argparse
import json
import logging
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..audio_part import load_audio
from ..data.files import read_jsonl
from ..data.rows import group_name
from ..modeling_part import PARTForSpeechSeq2Seq
from ..processing_part import PARTProcessor
from .drift import PART_PATTERNS, print_drift
from .probes import plot_probes, probe_representations


logger = logging.getLogger(__name__)


def read_rows(path: str | Path) -> list[dict]:
    """Canonical rows of a JSONL manifest, or of a run's `data/SPLIT` folder.

    Raises:
        FileNotFoundError: there is neither.
        CorpusError: a line of the manifest is no JSON object.
    """
    path = Path(path)
    if (path / "rows.arrow").is_file():
        from datasets import Dataset

        return Dataset.from_file(str(path / "rows.arrow")).to_list()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is neither a JSONL manifest nor a folder with rows.arrow (runs/NAME/data/test)"
        )
    rows = [row for _, row in read_jsonl(path)]
    for row in rows:
        if isinstance(row.get("audio"), str):
            row["audio"] = {"path": str(path.parent / row["audio"]), "bytes": None}
    return rows


def gradient_similarity(
    model: PARTForSpeechSeq2Seq,
    processor: PARTProcessor,
    rows: Sequence[Mapping],
    *,
    parameters: Sequence[str] = ("adapter",),
    rows_per_group: int = 64,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, dict]:
    """Cosine similarity between the gradients of all (task, languages) groups.

    The gradient of a group is that of the summed negative log-likelihood of its answers, in evaluation mode. On the
    device lies one gradient of the chosen parameters; those of all groups lie in a temporary file and are read in
    blocks, so memory does not grow with the number of groups.

    A gradient from few rows is noisy, and noise alone makes groups look different: `split_half`, the cosine between
    the gradients of two halves of a group's rows, says how far to trust a value.

    Args:
        model: its `requires_grad` flags are as before afterwards; gradients are dropped.
        rows: canonical rows. Text tasks reach neither encoder nor adapter and are left out.
        parameters: `adapter`, `encoder`, or regular expressions on parameter names; one result each.
        rows_per_group: at most so many rows of a group, drawn with `seed`.
        batch_size: rows per forward pass.

    Returns:
        Per entry of `parameters`: `groups`, `rows`, `tokens`, `norm` (per target token), `split_half` (None for a group
        of one row), `cosine` (groups x groups) and `means`, the average off the diagonal per pair of tasks.

    Raises:
        ValueError: no speech rows, an expression that matches no parameter, or a group without any gradient.
    """
    groups = _draw_groups(rows, rows_per_group, seed)
    sets = {chosen: _matching(model, chosen) for chosen in parameters}
    names = list(dict.fromkeys(name for chosen in sets.values() for name in chosen))
    tensors = dict(model.named_parameters())
    sizes = [tensors[name].numel() for name in names]
    offsets = dict(zip(names, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    tokens = dict.fromkeys(groups, 0)
    with tempfile.TemporaryDirectory() as folder, _only_trainable(model, [tensors[name] for name in names]):
        halves = np.memmap(Path(folder) / "gradients", np.float32, "w+", shape=(2 * len(groups), sum(sizes)))
        for index, (group, members) in enumerate(groups.items()):
            for half in range(2):
                tokens[group] += _accumulate(model, processor, members[half::2], batch_size)
                for name in names:
                    if (gradient := tensors[name].grad) is not None:
                        start = offsets[name]
                        halves[2 * index + half, start : start + gradient.numel()] = gradient.float().cpu().flatten()
                model.zero_grad(set_to_none=True)
        results = {}
        for chosen, members in sets.items():
            spans = [(offsets[name], offsets[name] + tensors[name].numel()) for name in members]
            results[chosen] = _similarity(_gram(halves, spans), groups, tokens)
        del halves  # before its folder goes
    return results


def _draw_groups(rows: Sequence[Mapping], rows_per_group: int, seed: int) -> dict[str, list[Mapping]]:
    """The rows of each group that are used, by group in order of name; neighbours are of similar length."""
    members = defaultdict(list)
    for row in rows:
        if row.get("audio") is not None:
            members[group_name(row)].append(row)
    if not members:
        raise ValueError("There are no rows with audio; gradients of encoder and adapter need them.")
    generator = np.random.default_rng(seed)
    groups = {}
    for group in sorted(members):
        drawn = generator.permutation(len(members[group]))[:rows_per_group]
        groups[group] = sorted((members[group][index] for index in drawn), key=lambda row: row.get("duration") or 0.0)
    return groups


def _matching(model: torch.nn.Module, chosen: str) -> list[str]:
    pattern = PART_PATTERNS.get(chosen, chosen)
    # Whisper's positions are fixed sinusoids: never trained, so no gradient of theirs counts.
    names = [
        name for name, _ in model.named_parameters() if re.search(pattern, name) and "embed_positions" not in name
    ]
    if not names:
        raise ValueError(
            f"{chosen!r} matches no parameter; give adapter, encoder or a regular expression on names such as "
            f"{next(name for name, _ in model.named_parameters())!r}."
        )
    return names


@contextmanager
def _only_trainable(model: torch.nn.Module, parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Gradients for `parameters` only, without dropout; everything as before afterwards."""
    before, was_training = [parameter.requires_grad for parameter in model.parameters()], model.training
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    model.eval()
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        for parameter, required in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(required)


def _accumulate(model, processor, rows: Sequence[Mapping], batch_size: int) -> int:
    """Add the gradient of the summed loss of `rows` to `.grad`; returns the target tokens."""
    tokens = 0
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        inputs = processor(
            audio=[
                load_audio(row["audio"], processor.sampling_rate, row.get("start"), row.get("end")) for row in batch
            ],
            task=batch[0]["task"],
            source_lang=[row["source_lang"] for row in batch],
            target_lang=[row["target_lang"] for row in batch],
            text=[row["text"] for row in batch],
        ).to(model.device, model.dtype)
        # One item per batch: the loss is the sum over tokens, and sums add up over batches.
        model(**inputs, num_items_in_batch=1).loss.backward()
        tokens += int((inputs["labels"] != -100).sum())
    return tokens


def _gram(vectors: np.ndarray, spans: Sequence[tuple[int, int]], block: int = 1 << 20) -> np.ndarray:
    """`(V, P)` -> `(V, V)` inner products over the columns in `spans`, in float64, block by block."""
    gram = np.zeros((len(vectors), len(vectors)))
    for first, last in spans:
        for start in range(first, last, block):
            piece = np.asarray(vectors[:, start : min(start + block, last)], dtype=np.float64)
            gram += piece @ piece.T
    return gram


def _similarity(gram: np.ndarray, groups: Mapping[str, Sequence], tokens: Mapping[str, int]) -> dict:
    """The result of one set of parameters, from the inner products of all groups' halves."""
    names = list(groups)
    first, second = gram[0::2, 0::2], gram[1::2, 1::2]
    between = gram[0::2, 1::2]
    whole = first + second + between + between.T
    norms = np.sqrt(np.diag(whole).clip(min=0.0))
    if not norms.all():
        raise ValueError(
            f"No gradient reaches these parameters from {[n for n, norm in zip(names, norms, strict=True) if not norm]}"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        halves = np.diag(between) / np.sqrt(np.diag(first) * np.diag(second))
    cosine = whole / np.outer(norms, norms)
    return {
        "groups": names,
        "rows": [len(members) for members in groups.values()],
        "tokens": [tokens[name] for name in names],
        "norm": [float(norm / tokens[name]) for name, norm in zip(names, norms, strict=True)],
        "split_half": [float(value) if np.isfinite(value) else None for value in halves],
        "cosine": cosine.tolist(),
        "means": _means_by_task(names, cosine),
    }


def _means_by_task(groups: Sequence[str], cosine: np.ndarray) -> dict[str, float]:
    """`{"asr-asr": ..., "asr-s2tt": ...}`: averages over pairs of different groups."""
    values = defaultdict(list)
    for i, one in enumerate(groups):
        for j in range(i + 1, len(groups)):
            tasks = sorted((one.split("/")[0], groups[j].split("/")[0]))
            values["-".join(tasks)].append(cosine[i, j])
    return {pair: float(np.mean(found)) for pair, found in sorted(values.items())}


def plot_gradients(result: Mapping, axes=None, title: str = ""):
    """Heat map of one entry of [`gradient_similarity`]; figures in the cells where there is room. Returns the axes."""
    from matplotlib import pyplot

    groups, cosine = result["groups"], np.array(result["cosine"])
    if axes is None:
        size = 2.5 + 0.42 * len(groups)
        _, axes = pyplot.subplots(figsize=(size + 0.8, size), layout="constrained")
    image = axes.imshow(cosine, vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(groups)), groups, rotation=90, fontsize=8)
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    if len(groups) <= 16:
        for (row, column), value in np.ndenumerate(cosine):
            color = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=color)
    axes.set_title(title, fontsize=10)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
    return axes


def main(argv: Sequence[str] | None = None) -> dict:
    """The command `python -m modeling_part.analysis`; returns what it wrote as JSON."""
    parser = argparse.ArgumentParser(prog="python -m modeling_part.analysis", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    gradients = commands.add_parser("gradients", help="cosine similarity between the gradients of tasks and languages")
    gradients.add_argument("--parameters", nargs="+", default=["adapter"], help="adapter, encoder, expressions")
    gradients.add_argument("--rows_per_group", type=int, default=64)
    gradients.add_argument("--batch_size", type=int, default=8)
    probes = commands.add_parser(
        "probes", help="language, content and similarity in the layers of encoder and adapter"
    )
    probes.add_argument("--clips_per_language", type=int, default=200)
    drift = commands.add_parser("drift", help="how far each part moved since another checkpoint")
    drift.add_argument("--since", type=Path, required=True, help="the earlier checkpoint, mostly the stage before")
    for command in (gradients, probes):
        command.add_argument("--data", nargs="+", required=True, help="JSONL manifests, or data folders of a run")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for command in (gradients, probes, drift):
        command.add_argument("checkpoint", type=Path, help="folder of a stage or a checkpoint")
        command.add_argument("--output", type=Path, required=True, help="folder for JSON and pictures")
    args = parser.parse_args(argv)
    stem = args.output / f"{args.checkpoint.resolve().name}_{args.command}"
    args.output.mkdir(parents=True, exist_ok=True)
    result = {"drift": print_drift, "gradients": _gradients, "probes": _probes}[args.command](args, stem)
    Path(f"{stem}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"Written: {stem}.json")
    return result


def _load(args: argparse.Namespace) -> tuple[PARTForSpeechSeq2Seq, PARTProcessor, list[dict]]:
    rows = [row for path in args.data for row in read_rows(path)]
    model = PARTForSpeechSeq2Seq.from_pretrained(args.checkpoint, dtype=torch.float32).to(args.device).eval()
    return model, PARTProcessor.from_pretrained(args.checkpoint), rows


def _gradients(args: argparse.Namespace, stem: Path) -> dict:
    model, processor, rows = _load(args)
    settings = {name: getattr(args, name) for name in ("parameters", "rows_per_group", "batch_size", "seed")}
    result = gradient_similarity(model, processor, rows, **settings)
    for position, (chosen, found) in enumerate(result.items()):
        axes = plot_gradients(found, title=f"{args.checkpoint.resolve().name}: gradients of {chosen}")
        suffix = re.sub(r"\W+", "_", chosen).strip("_") or str(position)
        axes.figure.savefig(f"{stem}_{suffix}.png", dpi=120)
        print(f"{chosen}: " + ", ".join(f"{pair} {value:.3f}" for pair, value in found["means"].items()))
    return {"settings": settings, "parameters": result}


def _probes(args: argparse.Namespace, stem: Path) -> dict:
    model, processor, rows = _load(args)
    result = probe_representations(model, processor, rows, clips_per_language=args.clips_per_language, seed=args.seed)
    plot_probes({args.checkpoint.resolve().name: result}).savefig(f"{stem}.png", dpi=120)
    for layer, found in result["layers"].items():
        line = [f"{name} {value:.3f}" for name, value in found.items() if isinstance(value, float)]
        print(f"{layer:20} " + ", ".join(line))
    return result


if __name__ == "__main__":
    main()
