"""Memory per GPU by model size, number of GPUs and launch configuration: a table, by arithmetic.

    python tests/benchmarks/memory.py

Nothing is measured: `modeling_part.training.memory.estimate_memory` on models that have shapes and no weights.
"""

import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, WhisperConfig

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq
from modeling_part.configuration_part import convolved_length
from modeling_part.recipes.stages import BUILT_IN_STAGES, PARTS, Stage
from modeling_part.training.freezing import set_trainable
from modeling_part.training.lora import add_lora
from modeling_part.training.memory import estimate_memory


WHISPER_LARGE_V3 = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
QWEN = {
    "2B": {"hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960}
    | {"num_hidden_layers": 28, "vocab_size": 151936, "tie_word_embeddings": True},
    "8B": {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944}
    | {"num_hidden_layers": 28, "vocab_size": 152064},
}
# (size, tuning of the joint stage, GPUs, configuration, checkpointing)
ROWS = [
    ("2B", "lora", 1, "single_gpu", False),
    ("2B", "lora", 8, "multi_gpu_bf16", False),
    ("2B", "full", 8, "multi_gpu_bf16", True),
    ("2B", "full", 8, "fsdp2_bf16", False),
    ("8B", "lora", 8, "multi_gpu_bf16", True),
    ("8B", "lora", 8, "fsdp2_bf16", True),
    ("8B", "full", 8, "fsdp2_bf16", True),
    ("8B", "full", 256, "multi_node_bf16", True),
]
AUDIO_SECONDS, CLIP_SECONDS, TEXT_TOKENS, PROMPT_TOKENS = 120, 6, 25, 30  # a default batch: 20 clips of 6 s


def build(size: str, stage: Stage) -> PARTForSpeechSeq2Seq:
    """The paper's model without weights."""
    encoder = WhisperConfig(num_mel_bins=128, decoder_layers=1, vocab_size=64, **WHISPER_LARGE_V3)
    with torch.device("meta"):
        model = PARTForSpeechSeq2Seq(PARTConfig(audio_config=encoder, text_config=Qwen2Config(**QWEN[size])))
        if stage.tuning == "lora":
            add_lora(stage, model)
    return model


def main():
    """Print the table as Markdown and on the screen."""
    table = Table(
        "model", "joint stage", "GPUs", "configuration", "checkpointing", "weights", "optimizer", "total GiB"
    )
    clips = AUDIO_SECONDS // CLIP_SECONDS
    for size, tuning, gpus, configuration, checkpointing in ROWS:
        stage = Stage(**{**vars(BUILT_IN_STAGES["joint"]), "tuning": tuning})
        model = build(size, stage)
        names = set_trainable(stage, model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        trainable = {
            part: sum(p.numel() for p in {parameters[name] for name in names.get(part, [])}) for part in PARTS
        }
        config = model.config
        audio_tokens = convolved_length(100 * CLIP_SECONDS, config.audio_token_convolutions)
        shapes = {
            "frames": clips * convolved_length(100 * CLIP_SECONDS, config.encoder_convolutions),
            "positions": clips * (audio_tokens + TEXT_TOKENS + PROMPT_TOKENS),
            "targets": clips * TEXT_TOKENS,
        }
        sharded = "fsdp" in configuration or "node" in configuration
        sizes = estimate_memory(
            model,
            trainable,
            shapes,
            world_size=gpus,
            sharded=sharded,
            gradient_checkpointing=checkpointing,
            autocast=not sharded,
        )
        row = [size, tuning, str(gpus), f"`{configuration}.yaml`", "yes" if checkpointing else "no"]
        row += [f"{sizes[name]:.1f}" for name in ("weights", "optimizer", "total")]
        table.add_row(*row)
        print("| " + " | ".join(row) + " |")
    Console().print(table)


if __name__ == "__main__":
    main()
