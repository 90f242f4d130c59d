"""vLLM's Transformers backend with every encoder, with and without a LoRA: the same tokens as `generate`.

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
from named_models import ENCODERS, NOT_BY_VLLM, WITHOUT_POSITIONS, make
from peft import PeftModel

from modeling_part.publishing.remote_code import add_remote_code
from modeling_part.training.lora import save_lora


pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
import numpy as np
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

folder, prompt, lora, overrides = sys.argv[1:]
llm = LLM(
    folder, model_impl="transformers", trust_remote_code=True, dtype="float32", max_model_len=512,
    hf_overrides=json.loads(overrides),
    enforce_eager=True, max_num_seqs=4, limit_mm_per_prompt={"audio": 1}, enable_lora=True, max_lora_rank=8,
)
clips = np.load(f"{folder}/clips.npz")
requests = [{"prompt": prompt, "multi_modal_data": {"audio": (clips[name], 16000)}} for name in sorted(clips)]
for adapter in (None, LoRARequest("lora", 1, lora)):
    how = SamplingParams(temperature=0, min_tokens=8, max_tokens=8, logprobs=0)
    answers = llm.generate(requests, how, lora_request=adapter)
    for output in (answer.outputs[0] for answer in answers):
        ids = list(output.token_ids)
        print("ANSWER", json.dumps([ids, [step[token].logprob for step, token in zip(output.logprobs, ids)]]))
"""
ENVIRONMENT = {
    "PYTHONPATH": "",  # the published code alone
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # `enforce_eager` leaves the sampler to be compiled, a minute of C++
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
TOLERANCE = 1e-4  # of log-probabilities


def answers_of(model, processor, clips: list[np.ndarray]) -> tuple[list[list[int]], torch.Tensor]:
    """Token ids of each clip's answer, and their log-probabilities `(clips, 8)`."""
    tokens, log_probabilities = [], []
    for clip in clips:
        inputs = processor(clip)
        output = model.generate(
            **inputs, max_new_tokens=8, min_new_tokens=8, return_dict_in_generate=True, output_logits=True
        )
        ids = output.sequences[0, inputs["input_ids"].shape[1] :]
        steps = torch.cat(output.logits).log_softmax(-1)
        tokens.append(ids.tolist())
        log_probabilities.append(steps.gather(1, ids[:, None])[:, 0])
    return tokens, torch.stack(log_probabilities)


def save_random_lora(model, folder) -> None:
    """An adapter as a stage leaves it, whose tensors are not zero."""
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
    save_lora(tensors, stage, (), folder)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ENCODERS)
def test_vllm_gives_the_tokens_of_generate(kind, tmp_path):
    """vLLM's attention on a CPU wants heads of 32."""
    python = os.environ.get("PART_VLLM_PYTHON")
    if python is None:
        pytest.skip("set PART_VLLM_PYTHON to the interpreter of an environment with vLLM")
    model, processor, folder = make(tmp_path, kind, tiny.tiny_text_config(hidden_size=128))
    add_remote_code(folder)
    save_random_lora(model, tmp_path / "lora")
    generator = np.random.default_rng(0)
    clips = [tiny.sentence_sound("en", words, generator) for words in ((0, 3, 2), (5,), (1, 4))]
    np.savez(folder / "clips.npz", **{f"clip{index}": clip for index, clip in enumerate(clips)})
    adapted = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "lora")
    tokens, log_probabilities = answers_of(model, processor, clips)
    adapted_tokens, adapted_log_probabilities = answers_of(adapted, processor, clips)
    assert tokens != adapted_tokens
    assert log_probabilities.std(0).max() > 100 * TOLERANCE, "what is heard makes a difference"

    prompt = processor.apply_transcription_request(clips[0], tokenize=False)[0]
    overrides = {"audio_config": {"max_source_positions": 1500}} if kind in WITHOUT_POSITIONS else {}
    done = subprocess.run(
        [python, "-c", SCRIPT, str(folder), prompt, str(tmp_path / "lora"), json.dumps(overrides)],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    if kind in NOT_BY_VLLM:
        assert done.returncode and "expecting query weights" in done.stderr, done.stderr[-5000:]
        return
    assert done.returncode == 0, done.stderr[-5000:]
    lines = [line.removeprefix("ANSWER") for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    given, of_given = zip(*map(json.loads, lines), strict=True)
    assert list(given) == tokens + adapted_tokens
    expected = torch.cat([log_probabilities, adapted_log_probabilities])
    torch.testing.assert_close(torch.tensor(of_given), expected, rtol=0, atol=TOLERANCE)
