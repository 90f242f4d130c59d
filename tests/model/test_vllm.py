"""vLLM's Transformers backend with a PART folder, with and without a LoRA: the same tokens as `generate`.

vLLM needs an environment of its own; `PART_VLLM_PYTHON` names its interpreter (see conformance/README.md).
"""

import copy
import json
import os
import subprocess

import numpy as np
import pytest
import tiny
import tiny_training
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from modeling_part import PARTForSpeechSeq2Seq
from modeling_part.publishing.remote_code import add_remote_code
from modeling_part.training.lora import save_lora


pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
import numpy as np
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

folder, prompt, lora = sys.argv[1:]
llm = LLM(
    folder, model_impl="transformers", trust_remote_code=True, dtype="float32", max_model_len=256,
    enforce_eager=True, max_num_seqs=4, limit_mm_per_prompt={"audio": 1}, enable_lora=True, max_lora_rank=8,
)
clips = np.load(f"{folder}/clips.npz")
requests = [{"prompt": prompt, "multi_modal_data": {"audio": (clips[name], 16000)}} for name in sorted(clips)]
for adapter in (None, LoRARequest("lora", 1, lora)):
    answers = llm.generate(
        requests, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), lora_request=adapter
    )
    print("ANSWERS", json.dumps([list(answer.outputs[0].token_ids) for answer in answers]))
"""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@pytest.fixture(scope="module")
def repository(tiny_parts, tmp_path_factory):
    """vLLM's attention on a CPU wants heads of 32."""
    folder = tmp_path_factory.mktemp("vllm")
    torch.manual_seed(0)
    language_model = AutoModelForCausalLM.from_config(tiny.tiny_text_config(hidden_size=128))
    language_model.save_pretrained(folder / "language_model")
    tiny.tiny_tokenizer().save_pretrained(folder / "language_model")
    model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(
        str(tiny_parts.audio_model),
        str(folder / "language_model"),
        adapter_hidden_size=32,
        adapter_num_attention_heads=2,
    )
    model.save_pretrained(folder / "repository")
    processor.save_pretrained(folder / "repository")
    add_remote_code(folder / "repository")
    return folder / "repository", model, processor


def answers_of(model, processor, clips: list[np.ndarray]) -> list[list[int]]:
    answers = []
    for clip in clips:
        inputs = processor(clip)
        ids = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)
        answers.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


@pytest.fixture(scope="module")
def lora(repository):
    """The folder of an adapter as a stage leaves it, whose tensors are not zero."""
    folder, model, _ = repository
    stage = tiny_training.joint_stage(lora_rank=4)
    layers = {
        f"model.language_model.{name}": module
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    torch.manual_seed(1)
    tensors = {}
    for name, module in layers.items():
        tensors[f"{name}.lora_A.default.weight"] = 0.3 * torch.randn(4, module.in_features)
        tensors[f"{name}.lora_B.default.weight"] = 0.3 * torch.randn(module.out_features, 4)
    save_lora(tensors, stage, (), folder.parent / "lora")
    return folder.parent / "lora"


@pytest.mark.timeout(1800)
def test_vllm_gives_the_tokens_of_generate(repository, lora):
    python = os.environ.get("PART_VLLM_PYTHON")
    if python is None:
        pytest.skip("set PART_VLLM_PYTHON to the interpreter of an environment with vLLM")
    folder, model, processor = repository
    generator = np.random.default_rng(0)
    clips = [tiny.sentence_sound("en", words, generator) for words in ((0, 3, 2), (5,), (1, 4))]
    np.savez(folder / "clips.npz", **{f"clip{index}": clip for index, clip in enumerate(clips)})
    expected = [answers_of(model, processor, clips)]
    expected.append(answers_of(PeftModel.from_pretrained(copy.deepcopy(model), lora), processor, clips))
    assert expected[0] != expected[1]

    prompt = "<|im_start|>user\n<|audio|>\nTranscribe the speech.<|im_end|>\n<|im_start|>assistant\n"
    done = subprocess.run(
        [python, "-c", SCRIPT, str(folder), prompt, str(lora)],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    answers = [line.removeprefix("ANSWERS") for line in done.stdout.splitlines() if line.startswith("ANSWERS")]
    assert [json.loads(answer) for answer in answers] == expected
