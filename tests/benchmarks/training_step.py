"""Time, memory and MFU of a training step of the 2B architecture on one GPU, random weights, bf16.

    python tests/benchmarks/training_step.py [--rows 20] [--seconds 6] [--steps 10] [--only flash lora]

One line per stage, task and setting. MFU counts 6 FLOPs per parameter and position where weights train, 4 where only
gradients pass through, 2 where there is only a forward pass, against the peak given by --peak (dense bf16 FLOP/s). A line
that cannot be measured (a kernel that is not installed, too little memory) says why, and the others go on.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from side_by_side import now, peak_gib, to_device, write
from transformers import Qwen2Config, WhisperConfig

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq
from modeling_part.configuration_part import convolved_length
from modeling_part.layout_part import batch_layout
from modeling_part.recipes.stages import BUILT_IN_STAGES, build_plan
from modeling_part.training.freezing import LanguageModelGate, cast_frozen, parameters_per_part, set_trainable
from modeling_part.training.kernels import use_liger_kernels
from modeling_part.training.lora import add_lora


TEXT_TOKENS, PROMPT_TOKENS = 25, 30
WHISPER = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
QWEN = {"hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960}
QWEN |= {"num_hidden_layers": 28, "vocab_size": 151936, "tie_word_embeddings": True}
TINY_WHISPER = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128}
TINY_QWEN = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 128}
TINY_QWEN |= {"num_hidden_layers": 2, "vocab_size": 512, "tie_word_embeddings": True}


@dataclass(frozen=True)
class Variant:
    """
    One line of the table.

    Attributes:
        label: what `--only` looks for.
        stage, task, tuning: of the stage, its batch and the language model in `joint`.
        attention: of all parts.
        compiled: by `torch.compile`.
        liger: with the kernels of liger-kernel.
        mixed: clips of half to all of the seconds, as a batch by duration never has them.
        padding_free: see the model's forward.
        loss_chunk_size: see the model's forward; None: all targets at once.
        all_logits: at every position, as transformers' classes compute them.
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


VARIANTS = [
    Variant("adapter", "adapter", "asr"),
    Variant("encoder_top", "encoder_top", "asr"),
    Variant("encoder", "encoder", "asr"),
    Variant("joint lora, gated", task="asr", tuning="lora"),
    Variant("joint lora", tuning="lora"),
    Variant("joint full, gated", task="asr"),
    Variant("joint full"),
    Variant("joint full, loss in one piece", loss_chunk_size=None),
    Variant("joint full, loss in chunks of 256", loss_chunk_size=256),
    Variant("joint full, logits everywhere", loss_chunk_size=None, all_logits=True),
    Variant("joint full, flash", attention="flash_attention_2"),
    Variant("joint full, flex", attention="flex_attention"),
    Variant("joint full, mixed lengths", mixed=True),
    Variant("joint full, flash, mixed lengths", attention="flash_attention_2", mixed=True),
    Variant("joint full, flash, padding_free", attention="flash_attention_2", mixed=True, padding_free=True),
    Variant("joint full, liger", liger=True),
    Variant("joint full, compiled", compiled=True),
    Variant("joint lora, compiled", tuning="lora", compiled=True),
]


def build(attention: str, arguments) -> PARTForSpeechSeq2Seq:
    """whisper-large-v3's encoder and Qwen2.5-1.5B by their shapes."""
    whisper, qwen = (TINY_WHISPER, TINY_QWEN) if arguments.tiny else (WHISPER, QWEN)
    audio = WhisperConfig(num_mel_bins=128, decoder_layers=1, vocab_size=64, **whisper)
    text = Qwen2Config(**qwen)
    settings = {"adapter_hidden_size": 64, "adapter_num_attention_heads": 2} if arguments.tiny else {}
    config = PARTConfig(audio_config=audio, text_config=text, audio_token_id=text.vocab_size - 1, **settings)
    with torch.device(arguments.device):
        model = PARTForSpeechSeq2Seq(config)
    model.set_attn_implementation(attention)
    return model


def batch(model: PARTForSpeechSeq2Seq, variant: Variant, arguments) -> dict:
    """Clips with a prompt and an answer, as the collator makes them."""
    longest = int(arguments.seconds * 100)
    shortest = longest // 2 if variant.mixed else longest
    steps = torch.linspace(shortest, longest, arguments.rows).long()
    tokens = convolved_length(steps, model.config.audio_token_convolutions)
    size = int(tokens.max()) + PROMPT_TOKENS + TEXT_TOKENS
    ids = torch.randint(500, (arguments.rows, size))
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, count in enumerate(tokens.tolist()):
        end = count + PROMPT_TOKENS + TEXT_TOKENS
        ids[row, :count] = model.config.audio_token_id
        mask[row, :end] = 1
        labels[row, end - TEXT_TOKENS : end] = ids[row, end - TEXT_TOKENS : end]
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    inputs["input_features"] = torch.randn(arguments.rows, 128, longest)
    inputs["input_features_mask"] = (torch.arange(longest) < steps[:, None]).long()
    inputs["layout"] = batch_layout(inputs, model.config.audio_token_id)
    return to_device(inputs, arguments.device)


def flops(model, inputs, opens: bool, trains_encoder: bool) -> float:
    """Of one step, attention and padding left out."""
    counts = parameters_per_part(model)
    positions = len(inputs["layout"]["positions"])
    frames = int(inputs["layout"]["feature_lengths"].sum()) / 2
    return (
        counts["encoder"] * frames * (6 if trains_encoder else 2)
        + counts["adapter"] * frames * 6
        + counts["language_model"] * positions * (6 if opens else 4)
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
            add_lora(stage, model)
            model.to(device)
    names = set_trainable(stage, model)
    cast_frozen(model, torch.bfloat16)
    if variant.liger:
        use_liger_kernels(model.model.language_model, None)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    gate = LanguageModelGate(stage, [parameters[one] for one in names.get("language_model", [])])
    trained = {parameters[one] for part in names.values() for one in part}
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    inputs, opens = batch(model, variant, arguments), gate.set_task(variant.task)
    forward = torch.compile(model) if variant.compiled else model
    options = {"padding_free": variant.padding_free, "loss_chunk_size": variant.loss_chunk_size}
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
    trains_encoder = "encoder" in stage.learning_rates
    work = flops(model, inputs, opens and variant.tuning == "full", trains_encoder)
    return {
        "seconds": seconds,
        "first_seconds": times[0],
        "peak_gib": peak_gib(device.type) if device.type == "cuda" else None,
        "mfu": work / seconds / arguments.peak,
        "audio_hours_per_second": arguments.rows * arguments.seconds / 3600 / seconds,
        "loss": loss.item(),
    }


def line(row: dict) -> str:
    """One line of the table."""
    if "error" in row:
        return f"{row['label']:36} not measured: {row['error']}"
    memory = "" if row["peak_gib"] is None else f"{row['peak_gib']:6.1f} GiB"
    return (
        f"{row['label']:36} {row['seconds']:7.3f} s/step {memory} {100 * row['mfu']:5.1f} % MFU "
        f"{row['audio_hours_per_second']:7.4f} audio hours/s"
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peak", type=float, default=989e12, help="H100 SXM: 989e12")
    parser.add_argument("--only", nargs="+", default=[""], help="lines whose label holds one of these")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers, to test this program")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
    print(name, f"{arguments.rows} clips of {arguments.seconds} s, median of {arguments.steps}")
    rows = []
    for variant in VARIANTS:
        if not any(word in variant.label for word in arguments.only):
            continue
        row = asdict(variant)
        try:
            row |= measure(variant, arguments)
        except (ImportError, RuntimeError, ValueError) as error:  # what this machine lacks; the others go on
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        torch.compiler.reset()
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
        rows.append(row)
        print(line(row), flush=True)
        write(arguments.output, {"device": name, "torch": torch.__version__, "rows": rows})
    if all("error" in row for row in rows):
        raise SystemExit("Nothing could be measured.")


if __name__ == "__main__":
    main()
