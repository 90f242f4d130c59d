"""Time, memory and MFU of a training step of the 2B architecture on one GPU, random weights, bf16.

    python tests/benchmarks/training_step.py [--rows 20] [--seconds 6] [--steps 10] [--only flash lora] [--skip liger]

One line per stage, task and setting. MFU counts 6 FLOPs per parameter and position where weights train, 4 where only
gradients pass through, 2 where there is only a forward pass (the vocabulary matrix at the positions that reach it), against the card's dense bf16 FLOP/s as its maker gives it
(`PEAKS`, --peak); of an unknown card, against the best product of two matrices. A line that cannot be measured (a kernel
that is not installed, too little memory) says why, and the others go on; with the same --output, a second run measures
those alone. The last lines hold the targets and what was reached.
"""

import argparse
import gc
import json
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from side_by_side import now, peak_gib, to_device, write
from transformers import Qwen2Config, WhisperConfig
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from transformers.utils.import_utils import is_flash_attn_4_available

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq
from modeling_part.configuration_part import convolved_length
from modeling_part.layout_part import batch_layout
from modeling_part.recipes.stages import BUILT_IN_STAGES, build_plan
from modeling_part.training.freezing import LanguageModelGate, cast_frozen, parameters_per_part, set_trainable
from modeling_part.training.kernels import let_flex_attention_autocast, use_liger_kernels
from modeling_part.training.lora import add_lora


TEXT_TOKENS, PROMPT_TOKENS = 25, 30
WHISPER = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
QWEN = {"hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960}
QWEN |= {"num_hidden_layers": 28, "vocab_size": 151936, "tie_word_embeddings": True}
TINY_WHISPER = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128}
TINY_QWEN = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 128}
TINY_QWEN |= {"num_hidden_layers": 2, "vocab_size": 512, "tie_word_embeddings": True}
# Dense bf16 FLOP/s by a word of the card's name, from the makers' data sheets; the first that fits.
PEAKS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12}
PEAKS |= {"L40S": 362e12, "L40": 181e12, "L4": 121e12, "A10G": 70e12, "A10": 125e12, "4090": 165e12, "3090": 71e12}


@dataclass(frozen=True)
class Variant:
    """
    One line of the table.

    Attributes:
        label: what `--only` looks for.
        stage, task, tuning: of the stage, its batch and the language model in `joint`.
        attention: of all parts; "flash": the newest flash attention that is installed.
        compiled: by `torch.compile`.
        liger: with the kernels of liger-kernel.
        mixed: clips of half to all of the seconds, as a batch by duration never has them.
        padding_free: see the model's forward.
        loss_chunk_size: see the model's forward; None: all targets at once.
        all_logits: at every position, as transformers' classes compute them.
        times: the batch holds so many times the clips.
        checkpointed: layers compute their activations again in the backward pass: what is left is of the logits.
    """

    label: str
    stage: str = "joint"
    task: str = "s2tt"
    tuning: str = "full"
    attention: str = "sdpa"
    compiled: bool = False
    liger: bool = False
    mixed: bool = False
    padding_free: bool = False
    loss_chunk_size: int | None = 1024
    all_logits: bool = False
    times: int = 1
    checkpointed: bool = False


THREEFOLD = {"tuning": "lora", "times": 3, "checkpointed": True}

VARIANTS = [
    Variant("adapter", "adapter", "asr"),
    Variant("encoder_top", "encoder_top", "asr"),
    Variant("encoder", "encoder", "asr"),
    Variant("joint lora, gated", task="asr", tuning="lora"),
    Variant("joint lora", tuning="lora"),
    Variant("joint lora, 3 x the clips", tuning="lora", times=3),
    Variant("joint lora, logits everywhere", tuning="lora", loss_chunk_size=None, all_logits=True),
    Variant("joint lora, checkpointed, 3 x the clips", **THREEFOLD),
    Variant(
        "joint lora, checkpointed, 3 x the clips, logits everywhere",
        **THREEFOLD,
        loss_chunk_size=None,
        all_logits=True,
    ),
    Variant("joint full, gated", task="asr"),
    Variant("joint full"),
    Variant("joint full, 2 x the clips", times=2),
    Variant("joint full, loss in one piece", loss_chunk_size=None),
    Variant("joint full, loss in chunks of 256", loss_chunk_size=256),
    Variant("joint full, logits everywhere", loss_chunk_size=None, all_logits=True),
    Variant("joint full, mixed lengths", mixed=True),
    Variant("joint full, padding_free, mixed lengths", mixed=True, padding_free=True),
    Variant("joint full, liger", liger=True),
    Variant("joint full, flex", attention="flex_attention"),
    Variant("joint full, flash", attention="flash"),
    Variant("joint full, flash, mixed lengths", attention="flash", mixed=True),
    Variant("joint full, flash, padding_free", attention="flash", mixed=True, padding_free=True),
    Variant("joint full, compiled", compiled=True),
    Variant("joint lora, compiled", tuning="lora", compiled=True),
]


def newest_flash() -> str:
    """What transformers calls the newest flash attention that is installed here."""
    installed = {2: is_flash_attn_2_available(), 3: is_flash_attn_3_available(), 4: is_flash_attn_4_available()}
    found = [version for version, is_there in installed.items() if is_there]
    if not found:
        raise ImportError("None of flash-attn, flash-attn-3 and flash-attn-4 is installed, or there is no GPU.")
    return f"flash_attention_{found[-1]}"


def build(attention: str, arguments) -> PARTForSpeechSeq2Seq:
    """whisper-large-v3's encoder and Qwen2.5-1.5B by their shapes."""
    whisper, qwen = (TINY_WHISPER, TINY_QWEN) if arguments.tiny else (WHISPER, QWEN)
    audio = WhisperConfig(num_mel_bins=128, decoder_layers=1, vocab_size=64, **whisper)
    text = Qwen2Config(**qwen)
    settings = {"adapter_hidden_size": 64, "adapter_num_attention_heads": 2} if arguments.tiny else {}
    config = PARTConfig(audio_config=audio, text_config=text, audio_token_id=text.vocab_size - 1, **settings)
    with torch.device(arguments.device):
        model = PARTForSpeechSeq2Seq(config)
    model.set_attn_implementation(newest_flash() if attention == "flash" else attention)
    return model


def batch(model: PARTForSpeechSeq2Seq, variant: Variant, arguments) -> dict:
    """Clips with a prompt and an answer, as the collator makes them."""
    longest, rows = int(arguments.seconds * 100), variant.times * arguments.rows
    shortest = longest // 2 if variant.mixed else longest
    steps = torch.linspace(shortest, longest, rows).long()
    tokens = convolved_length(steps, model.config.audio_token_convolutions)
    size = int(tokens.max()) + PROMPT_TOKENS + TEXT_TOKENS
    ids = torch.randint(500, (rows, size))
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, count in enumerate(tokens.tolist()):
        end = count + PROMPT_TOKENS + TEXT_TOKENS
        ids[row, :count] = model.config.audio_token_id
        mask[row, :end] = 1
        labels[row, end - TEXT_TOKENS : end] = ids[row, end - TEXT_TOKENS : end]
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    inputs["input_features"] = torch.randn(rows, 128, longest)
    inputs["input_features_mask"] = (torch.arange(longest) < steps[:, None]).long()
    inputs["layout"] = batch_layout(inputs, model.config.audio_token_id)
    return to_device(inputs, arguments.device)


def flops(model, inputs, opens: bool, all_logits: bool) -> float:
    """Of one step, attention, padding and what is computed twice left out."""
    counts = parameters_per_part(model)
    positions = len(inputs["layout"]["positions"])
    at_head = positions if all_logits else len(inputs["layout"]["targets"])
    frames = int(inputs["layout"]["feature_lengths"].sum()) / 2
    encoder = list(model.model.audio_tower.parameters())
    trained = sum(one.numel() for one in encoder if one.requires_grad) / sum(one.numel() for one in encoder)
    head = model.lm_head.weight.numel()  # the embeddings, too
    return (
        counts["encoder"] * frames * (2 + 4 * trained)  # the last layers: no gradient passes the others
        + counts["adapter"] * frames * 6
        + ((counts["language_model"] - head) * positions + head * at_head) * (6 if opens else 4)
    )


def measure(variant: Variant, arguments) -> dict:
    """Seconds per step, peak GiB, MFU."""
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    model = build(variant.attention, arguments).train()
    stage = BUILT_IN_STAGES[variant.stage]
    if variant.stage == "joint":
        (stage,) = build_plan([{"name": "joint", "tuning": variant.tuning}])
        if variant.tuning == "lora":
            add_lora(stage, model, autocast=True)
            model.to(device)
    names = set_trainable(stage, model)
    if variant.checkpointed:
        model.gradient_checkpointing_enable()
    cast_frozen(model, torch.bfloat16)
    if variant.attention == "flex_attention":
        let_flex_attention_autocast()
    if variant.liger:
        use_liger_kernels(model.model.language_model, None)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    gate = LanguageModelGate(stage, model, names.get("language_model", []))
    trained = {parameters[one] for part in names.values() for one in part}
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    inputs, opens = batch(model, variant, arguments), gate.set_task(variant.task)
    forward = torch.compile(model) if variant.compiled else model
    options = {"padding_free": variant.padding_free, "loss_chunk_size": variant.loss_chunk_size, "use_cache": False}
    labels = inputs.pop("labels") if variant.all_logits else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(arguments.steps):
        start = now(device.type)
        with torch.autocast(device.type, torch.bfloat16):
            output = forward(**inputs, **options)
            loss = output.loss
            if labels is not None:
                loss = model.loss_function(output.logits, labels, vocab_size=output.logits.shape[-1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(now(device.type) - start)
    seconds = sorted(times)[len(times) // 2]
    work = flops(model, inputs, opens and variant.tuning == "full", variant.all_logits)
    return {
        "seconds": seconds,
        "first_seconds": times[0],
        "peak_gib": peak_gib(device.type) if device.type == "cuda" else None,
        "mfu": work / seconds / arguments.peak,
        "audio_hours_per_second": int(inputs["layout"]["feature_lengths"].sum()) / 100 / 3600 / seconds,
        "loss": loss.item(),
    }


def line(row: dict) -> str:
    """One line of the table."""
    if "error" in row:
        return f"{row['label']:44} not measured: {row['error']}"
    memory = "" if row["peak_gib"] is None else f"{row['peak_gib']:6.1f} GiB"
    return (
        f"{row['label']:44} {row['seconds']:7.3f} s/step {memory} {100 * row['mfu']:5.1f} % MFU "
        f"{row['audio_hours_per_second']:7.4f} audio hours/s"
    )


def reached(rows: list[dict]) -> list[dict]:
    """The targets: name, what is wanted, what was measured (None where a line is missing) and whether that is enough."""
    measured = {row["label"]: row for row in rows if "error" not in row}

    def ratio(one: str, other: str, key: str) -> float | None:
        values = [measured.get(label, {}).get(key) for label in (one, other)]
        return None if None in values else values[0] / values[1]

    large = "joint lora, checkpointed, 3 x the clips"
    joint = [row["mfu"] for row in measured.values() if row["stage"] == "joint"]
    targets = [
        ("best MFU in `joint`", ">=", 0.45, max(joint, default=None)),
        (
            "peak memory over that with logits everywhere",
            "<=",
            0.4,
            ratio(large, f"{large}, logits everywhere", "peak_gib"),
        ),
        (
            "time of a gated ASR step over an ungated full one",
            "<=",
            0.7,
            ratio("joint full, gated", "joint full", "seconds"),
        ),
    ]
    return [
        {
            "name": name,
            "wanted": f"{sign} {wanted}",
            "measured": value,
            "met": None if value is None else (value >= wanted if sign == ">=" else value <= wanted),
        }
        for name, sign, wanted, value in targets
    ]


def peak_of(name: str, device: str) -> float:
    """Dense bf16 FLOP/s of a card: from its data sheet, or of the best of ten products of two matrices."""
    known = next((peak for word, peak in PEAKS.items() if word in name), None)
    if known is not None:
        return known
    size = 8192 if device == "cuda" else 512
    one, other = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(10):
        start = now(device)
        torch.mm(one, other)
        times.append(now(device) - start)
    return 2 * size**3 / min(times)


def measured_before(path: Path | None, settings: dict) -> dict[str, dict]:
    """Rows of an earlier run with the same settings, by label, without those that failed."""
    if path is None or not path.is_file():
        return {}
    figures = json.loads(path.read_text(encoding="utf-8"))
    if figures["settings"] != settings:
        return {}
    return {row["label"]: row for row in figures["rows"] if "error" not in row}


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peak", type=float, help="dense bf16 FLOP/s of the card, where its name does not say it")
    parser.add_argument("--only", nargs="+", default=[""], help="lines whose label holds one of these")
    parser.add_argument("--skip", nargs="+", default=[], help="lines whose label holds one of these are left out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers, to test this program")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
    arguments.peak = arguments.peak or peak_of(name, arguments.device)
    print(name, f"{arguments.rows} clips of {arguments.seconds} s, median of {arguments.steps}")
    settings = {key: getattr(arguments, key) for key in ("rows", "seconds", "steps", "tiny")}
    settings |= {"device": name, "torch": torch.__version__}
    before, rows = measured_before(arguments.output, settings), []
    for variant in VARIANTS:
        is_chosen = any(word in variant.label for word in arguments.only)
        if not is_chosen or any(word in variant.label for word in arguments.skip):
            continue
        row = asdict(variant)
        if variant.label in before:
            row = before[variant.label]
        else:
            try:
                row |= measure(variant, arguments)
            except Exception as error:  # whatever this machine or a kernel lacks; the others go on
                traceback.print_exc()
                row["error"] = f"{type(error).__name__}: {(str(error) or repr(error)).splitlines()[0]}"
            torch.compiler.reset()
            gc.collect()  # some kernels bind functions to modules that hold them
            if arguments.device == "cuda":
                torch.cuda.empty_cache()
        rows.append(row)
        print(line(row), flush=True)
        done = {one["label"] for one in rows}
        # What an earlier run has measured and this one has not come to yet: an interruption must not cost it.
        kept = rows + [one for label, one in before.items() if label not in done]
        figures = {"settings": settings, "peak_flop_per_s": arguments.peak, "rows": kept, "targets": reached(kept)}
        write(arguments.output, figures)
    for target in reached(rows):
        value = "not measured" if target["measured"] is None else f"{target['measured']:.2f}"
        print(f"{target['name']}: {value} (wanted {target['wanted']})")
    if all("error" in row for row in rows):
        raise SystemExit("Nothing could be measured.")


if __name__ == "__main__":
    main()
