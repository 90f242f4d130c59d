"""What only a GPU can show: bf16 training, FSDP2 through accelerate, and that a closed gate saves time."""

import copy
import json
import sys
import time

import pytest
import tiny
import tiny_training
import torch
from accelerate.utils import send_to_device
from tiny import REPOSITORY
from transformers.utils import is_flash_attn_2_available
from transformers.utils.import_utils import is_flash_attn_4_available

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq
from modeling_part.configuration_part import convolved_length
from modeling_part.layout_part import batch_layout
from modeling_part.recipes.stages import BUILT_IN_STAGES
from modeling_part.training.freezing import LanguageModelGate, set_trainable
from modeling_part.training.kernels import let_flex_attention_autocast


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(900),
]
CONFIGS = tiny_training.CPU_CONFIG.parent


@pytest.fixture
def recipe(tmp_path, tiny_parts):
    """All four stages; `use_cpu` is left out."""
    corpus = tiny.tiny_corpus(tmp_path / "corpus", sentences={"train": 6, "dev": 2, "test": 1}, words=(1, 2))
    stages = [{"name": name, "max_steps": 2} for name in BUILT_IN_STAGES]
    stages[-1] |= {"max_steps": 6, "learning_rates": tiny_training.JOINT}
    saving = {"save_strategy": "steps", "save_steps": 1}
    settings = {"use_cpu": None, "bf16": True, "dataloader_pin_memory": None, "dataloader_num_workers": 2}
    return tiny_training.write_recipe(tmp_path, tiny_parts, corpus, stages=stages, **settings, **saving)


@pytest.mark.parametrize(
    ("config", "processes"), [("single_gpu", 1), ("multi_gpu_bf16", 2), ("fsdp2_bf16", 1), ("fsdp2_bf16", 2)]
)
def test_all_stages_through_the_launcher(recipe, config, processes):
    if torch.cuda.device_count() < processes:
        pytest.skip(f"needs {processes} GPUs")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    command = [*launcher, "--num_processes", str(processes), str(REPOSITORY / "train_part.py"), str(recipe)]
    result = tiny_training.execute(command, timeout=800)
    assert result.returncode == 0, result.stdout[-5000:]
    for name in BUILT_IN_STAGES:
        folder = recipe.parent / "run" / name
        model = PARTForSpeechSeq2Seq.from_pretrained(folder)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert json.loads((folder / "stage.json").read_text())["metrics"]["eval_loss"] > 0
    history = json.loads((recipe.parent / "run" / "joint" / "log_history.json").read_text())
    for entry in history:
        if "asr_loss" in entry and "loss" in entry:
            assert entry["gate_open_share"] == 0.0 and "grad_norm/language_model" not in entry


def test_a_closed_gate_saves_time():
    """A language model that is most of the work, trained whole: a transcription step skips its weight gradients."""
    text = tiny.tiny_text_config(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=8
    )
    config = PARTConfig(audio_config=tiny.tiny_audio_config(), text_config=text, audio_token_id=258)
    model = PARTForSpeechSeq2Seq(config).to("cuda", torch.bfloat16).train()
    stage = tiny_training.joint_stage(tuning="full")
    names = set_trainable(stage, model)
    gate = LanguageModelGate(stage, model, names["language_model"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    features = torch.randn(8, 20, 300, device="cuda", dtype=torch.bfloat16)
    mask = torch.ones(8, 300, dtype=torch.long, device="cuda")
    count = model.get_audio_features(features[:1], mask[:1]).pooler_output.shape[0]
    ids = torch.cat([torch.full((8, count), 258), torch.randint(0, 250, (8, 512))], dim=1).cuda()
    labels = torch.where(ids == 258, -100, ids)
    medians = {}
    for task in ("s2tt", "asr"):
        gate.set_task(task)
        times = []
        for _ in range(12):
            torch.cuda.synchronize()
            start = time.perf_counter()
            model(input_ids=ids, labels=labels, input_features=features, input_features_mask=mask).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        medians[task] = sorted(times[2:])[5]
    assert medians["asr"] < 0.85 * medians["s2tt"], medians


def test_ligers_kernels_train_the_same_weights(tmp_path):
    """Norms, rotations and feed-forward parts by liger-kernel: the same weights after gated and open steps."""
    pytest.importorskip("liger_kernel")
    model, processor = tiny_training.tiny_model()
    weights = []
    for name, settings in (("plain", {}), ("liger", {"use_liger_kernel": True})):
        trainer = tiny_training.make_trainer(
            tmp_path / name,
            tiny_training.joint_stage(),
            model=copy.deepcopy(model),
            processor=processor,
            use_cpu=False,
            **settings,
        )
        trainer.train()
        weights.append(tiny_training.snapshot(trainer.model))
    assert "Liger" in trainer.model.model.language_model.norm.forward.__qualname__
    for name, weight in weights[0].items():
        if "adapter" in name and name.endswith("k_proj.bias"):
            continue  # softmax ignores it: its gradient is rounding alone, of which Adam makes whole steps
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("attention", ["flex_attention", "flash_attention_2", "flash_attention_4"])
def test_kernels_of_attention_agree(attention, padding_free):
    """Under autocast, on rows of unequal lengths: the loss and the gradients' norm of sdpa, as far as bfloat16 tells."""
    available = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_4": is_flash_attn_4_available}
    if attention in available and not available[attention]():
        pytest.skip(f"{attention} is not installed")
    let_flex_attention_autocast()
    text = tiny.tiny_text_config(hidden_size=128, num_attention_heads=2, num_key_value_heads=1)
    audio = tiny.tiny_audio_config(d_model=128, encoder_attention_heads=2)
    config = PARTConfig(
        audio_config=audio,
        text_config=text,
        audio_token_id=258,
        adapter_hidden_size=128,
        adapter_num_attention_heads=2,
    )
    torch.manual_seed(0)
    model = PARTForSpeechSeq2Seq(config).to("cuda").train()
    steps = torch.tensor([300, 180, 77])
    audio_tokens = convolved_length(steps, config.audio_token_convolutions)
    ids, labels = torch.randint(0, 250, (3, 100)), torch.full((3, 100), -100)
    mask = (torch.arange(100) < (audio_tokens + 30)[:, None]).long()
    for row, count in enumerate(audio_tokens.tolist()):
        ids[row, :count] = config.audio_token_id
        labels[row, count + 10 : count + 30] = ids[row, count + 10 : count + 30]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    batch["input_features"] = torch.randn(3, audio.num_mel_bins, 300)
    batch["input_features_mask"] = (torch.arange(300) < steps[:, None]).long()
    batch["layout"] = batch_layout(batch, config.audio_token_id)
    batch = send_to_device(batch, "cuda")
    found = []
    for implementation in ("sdpa", attention):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch, padding_free=padding_free, use_cache=False).loss
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]  # fixed positions have none
        found.append((loss.item(), torch.nn.utils.get_total_norm(gradients).item()))
    assert found[1] == pytest.approx(found[0], rel=2e-2)
