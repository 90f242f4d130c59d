"""Time, memory and MFU of a training step of the 2B architecture on one GPU, random weights, bf16.

    python tests/benchmarks/training_step.py [--rows 20] [--seconds 6] [--steps 10]

One line per stage and task. MFU counts 6 FLOPs per parameter and position where weights train, 4 where only gradients
pass through, 2 where there is only a forward pass, against the peak given by --peak (dense bf16 FLOP/s).
"""

import argparse
import time

import torch
from transformers import Qwen2Config, WhisperConfig

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq
from modeling_part.recipes.stages import BUILT_IN_STAGES, build_plan
from modeling_part.training.freezing import LanguageModelGate, cast_frozen, parameters_per_part, set_trainable
from modeling_part.training.lora import add_lora


TEXT_TOKENS, PROMPT_TOKENS = 25, 30


def build() -> PARTForSpeechSeq2Seq:
    """whisper-large-v3's encoder and Qwen2.5-1.5B by their shapes."""
    audio = WhisperConfig(
        d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120, num_mel_bins=128
    )
    text = Qwen2Config(
        hidden_size=1536,
        num_attention_heads=12,
        num_key_value_heads=2,
        intermediate_size=8960,
        num_hidden_layers=28,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    with torch.device("cuda"):
        return PARTForSpeechSeq2Seq(PARTConfig(audio_config=audio, text_config=text, audio_token_id=151900))


def batch(model: PARTForSpeechSeq2Seq, rows: int, seconds: float) -> dict[str, torch.Tensor]:
    """`rows` clips of `seconds`."""
    steps = int(seconds * 100)
    features = torch.randn(rows, 128, steps, device="cuda")
    mask = torch.ones(rows, steps, dtype=torch.long, device="cuda")
    audio_tokens = int(model.get_audio_features(features[:1], mask[:1]).pooler_output.shape[0])
    prompt = torch.randint(1000, (rows, PROMPT_TOKENS), device="cuda")
    audio = torch.full((rows, audio_tokens), model.config.audio_token_id, device="cuda")
    answer = torch.randint(1000, (rows, TEXT_TOKENS), device="cuda")
    ids = torch.cat([prompt, audio, answer], dim=1)
    labels = torch.full_like(ids, -100)
    labels[:, -TEXT_TOKENS:] = answer
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "input_features": features,
        "input_features_mask": mask,
    }


def flops(model, inputs, opens: bool, trains_encoder: bool) -> float:
    """Of one step, attention left out."""
    counts = parameters_per_part(model)
    positions = inputs["input_ids"].numel()
    frames = inputs["input_features_mask"].sum().item() / 2
    return (
        counts["encoder"] * frames * (6 if trains_encoder else 2)
        + counts["adapter"] * frames * 6
        + counts["language_model"] * positions * (6 if opens else 4)
    )


def measure(name: str, task: str, tuning: str, arguments) -> tuple[float, float, float]:
    """Seconds per step, peak GiB, MFU."""
    torch.manual_seed(0)
    model = build().train()
    stage = BUILT_IN_STAGES[name]
    if name == "joint":
        (stage,) = build_plan([{"name": "joint", "tuning": tuning}])
        if tuning == "lora":
            add_lora(stage, model)
            model.to("cuda")
    names = set_trainable(stage, model)
    cast_frozen(model, torch.bfloat16)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    gate = LanguageModelGate(stage, [parameters[one] for one in names.get("language_model", [])])
    trained = {parameters[one] for part in names.values() for one in part}
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    with torch.autocast("cuda", torch.bfloat16):
        inputs = batch(model, arguments.rows, arguments.seconds)
    opens = gate.set_task(task)
    times = []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(arguments.steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    seconds = sorted(times)[len(times) // 2]
    memory = torch.cuda.max_memory_allocated() / 2**30
    trains_encoder = "encoder" in stage.learning_rates
    return seconds, memory, flops(model, inputs, opens and tuning == "full", trains_encoder) / seconds / arguments.peak


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peak", type=float, default=989e12, help="H100 SXM: 989e12")
    arguments = parser.parse_args()
    print(
        torch.cuda.get_device_name(), f"{arguments.rows} clips of {arguments.seconds} s, median of {arguments.steps}"
    )
    for name, task, tuning in (
        ("adapter", "asr", "lora"),
        ("encoder_top", "asr", "lora"),
        ("encoder", "asr", "lora"),
        ("joint", "asr", "lora"),
        ("joint", "s2tt", "lora"),
        ("joint", "asr", "full"),
        ("joint", "s2tt", "full"),
    ):
        seconds, memory, mfu = measure(name, task, tuning, arguments)
        torch.cuda.empty_cache()
        hours = arguments.rows * arguments.seconds / 3600 / seconds
        label = f"{name} {task} ({tuning})" if name == "joint" else f"{name} {task}"
        print(f"{label:20} {seconds:7.3f} s/step {memory:6.1f} GiB {100 * mfu:5.1f} % MFU {hours:7.4f} audio hours/s")


if __name__ == "__main__":
    main()
