"""What training.py compares: the rows of each of its parts."""

from dataclasses import dataclass

from speech_models import PADDED, SPEECH_MODELS, by_duration, make_batches


LARGE = ("fun_asr_nano", "qwen3_asr", "part_sanm", "part_whisper")  # compared at large vocabularies too


@dataclass(frozen=True)
class Case:
    """
    One row of a table.

    Attributes:
        label: what the table calls it.
        model: key of `SPEECH_MODELS`.
        vocabulary: tokens.
        batches: seconds of each clip of each batch; one round runs them all.
        clips: what the batches hold, as `--clips` names it.
        training: of the language model: `frozen`, `full` or `lora`.
        gated: LoRA or the full language model trains in this stage, but the task gate is closed (an ASR batch).
        optimizer: AdamW belongs to the step.
        all_logits: logits at every position, as transformers' classes compute them, instead of at targets.
        compiled: by `torch.compile`, as `torch_compile: true` does.
        dtype: of weights and activations.
        device: `cpu` or `cuda`.
        tiny: two narrow layers, for tests.
    """

    label: str
    model: str
    vocabulary: int
    batches: tuple[tuple[float, ...], ...]
    clips: str = "6"
    training: str = "full"
    gated: bool = False
    optimizer: bool = False
    all_logits: bool = False
    compiled: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    tiny: bool = False


def compare_classes(args) -> dict[str, list[Case]]:
    """(a) PART against transformers' classes; the first row, which the ratios refer to, is Fun-ASR-Nano."""
    tables = {}
    for vocabulary in args.vocabularies:
        for clips in args.clips:
            batches = make_batches(clips, args.rows, args.batches)
            few = (batches[0][: args.padded_rows],)
            for training in args.training:
                common = {"training": training, "clips": clips, "vocabulary": vocabulary}
                common |= {"dtype": args.dtype, "tiny": args.tiny}
                # All rows of a table are in memory together: fewer where a vocabulary takes much of it.
                first = vocabulary == args.vocabularies[0]
                names = [name for name in SPEECH_MODELS if name not in PADDED and (first or name in LARGE)]
                cases = [Case(SPEECH_MODELS[name].label, name, batches=batches, **common) for name in names]
                label = SPEECH_MODELS["part_sanm"].label
                if clips == "mix" and first:
                    cases.append(Case(f"{label}, by duration", "part_sanm", batches=by_duration(batches), **common))
                if first:  # once is enough: their cost is the 30 s window
                    cases += [Case(SPEECH_MODELS[name].label, name, batches=few, **common) for name in PADDED]
                unit = "clips of mixed lengths" if clips == "mix" else f"clips of {clips} s"
                tables[f"{unit}, vocabulary {vocabulary:,}, language model {training}"] = cases
    return tables


def compare_tasks(args) -> dict[str, list[Case]]:
    """(e) ASR against S2TT where the whole language model trains: PART's gate closes for one, opens for the other."""
    common = {"vocabulary": args.vocabularies[0], "dtype": args.dtype, "tiny": args.tiny}
    tables = {}
    for clips in args.clips:
        batches = make_batches(clips, args.rows, args.batches)
        cases = [
            Case(f"{SPEECH_MODELS[model].label}, {task}", model, batches=batches, clips=clips, gated=gated, **common)
            for model in ("part_sanm", "part_whisper")
            for task, gated in (("S2TT", False), ("ASR", True))
        ]
        unit = "clips of mixed lengths" if clips == "mix" else f"clips of {clips} s"
        tables[f"S2TT and ASR, {unit}, vocabulary {args.vocabularies[0]:,}"] = cases
    return tables


def compare_memory(args) -> dict[str, list[Case]]:
    """(g) Peak memory of a large batch at the large vocabulary."""
    names = [name for name in SPEECH_MODELS if name not in (*PADDED, "part_sanm_dense")]
    common = {"vocabulary": args.vocabularies[-1], "dtype": args.dtype, "tiny": args.tiny}
    tables = {}
    for clips in args.clips:
        batches = make_batches(clips, args.memory_rows, 1)
        cases = [Case(SPEECH_MODELS[name].label, name, clips=clips, batches=batches, **common) for name in names]
        unit = "clips of mixed lengths" if clips == "mix" else f"clips of {clips} s"
        tables[f"Memory: a batch of {args.memory_rows} {unit}, vocabulary {args.vocabularies[-1]:,}"] = cases
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


def compare_compiled(args) -> dict[str, list[Case]]:
    """(f) `torch.compile` on batches of other shapes, each compiled before it is timed: same weights, same loss."""
    common = {"vocabulary": args.vocabularies[0], "dtype": args.dtype, "tiny": args.tiny}
    tables = {}
    for model in ("part_sanm", "part_whisper"):
        batches = by_duration(make_batches("mix", args.rows, args.batches))
        cases = [
            Case(label, model, batches=batches, compiled=label == "compiled", **common)
            for label in ("eager", "compiled")
        ]
        tables[f"{SPEECH_MODELS[model].label}, {len(batches)} batches of {args.rows} clips of mixed lengths"] = cases
    return tables


def compare_sizes(args) -> dict[str, list[Case]]:
    """(h) How the cost of a clip grows with its length, the rows of a batch and the vocabulary, one at a time."""
    middle = {"seconds": 6, "rows": args.rows, "vocabulary": args.vocabularies[0]}
    settings = [middle, *({**middle, "seconds": seconds} for seconds in (2, 20))]
    settings += [{**middle, "rows": rows} for rows in (1, 4 * args.rows)]
    settings += [{**middle, "vocabulary": vocabulary} for vocabulary in args.vocabularies[1:]]
    tables = {}
    for model in ("fun_asr_nano", "part_sanm", "part_whisper"):
        tables[f"{SPEECH_MODELS[model].label}: clip length, batch, vocabulary"] = [
            Case(
                f"{one['rows']} clips of {one['seconds']} s, {one['vocabulary']:,}",
                model,
                one["vocabulary"],
                ((float(one["seconds"]),) * one["rows"],),
                dtype=args.dtype,
                tiny=args.tiny,
            )
            for one in settings
        ]
    return tables


COMPARISONS = {
    "classes": compare_classes,
    "tasks": compare_tasks,
    "memory": compare_memory,
    "gate": compare_gates,
    "logits": compare_logits,
    "compile": compare_compiled,
    "scaling": compare_sizes,
}
DEFAULT_PARTS = ("classes", "tasks", "memory", "gate", "logits")
