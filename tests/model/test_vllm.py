"""vLLM's Transformers backend with a PART folder: the same tokens as `generate`.

vLLM needs an environment of its own; `PART_VLLM_PYTHON` names its interpreter.
"""

import json
import os
import subprocess

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from modeling_part import PARTForSpeechSeq2Seq
from modeling_part.publishing.remote_code import add_remote_code


pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
import numpy as np
from vllm import LLM, SamplingParams

folder, prompt = sys.argv[1:]
llm = LLM(
    folder, model_impl="transformers", trust_remote_code=True, dtype="float32", max_model_len=256,
    enforce_eager=True, max_num_seqs=4, limit_mm_per_prompt={"audio": 1},
)
clips = np.load(f"{folder}/clips.npz")
requests = [{"prompt": prompt, "multi_modal_data": {"audio": (clips[name], 16000)}} for name in sorted(clips)]
answers = llm.generate(requests, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
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


def test_vllm_gives_the_tokens_of_generate(repository):
    python = os.environ.get("PART_VLLM_PYTHON")
    if python is None:
        pytest.skip("set PART_VLLM_PYTHON to the interpreter of an environment with vLLM")
    folder, model, processor = repository
    generator = np.random.default_rng(0)
    clips = [tiny.sentence_sound("en", words, generator) for words in ((0, 3, 2), (5,), (1, 4))]
    np.savez(folder / "clips.npz", **{f"clip{index}": clip for index, clip in enumerate(clips)})
    expected = []
    for clip in clips:
        inputs = processor(clip)
        ids = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)
        expected.append(ids[0, inputs["input_ids"].shape[1] :].tolist())

    prompt = "<|im_start|>user\n<|audio|>\nTranscribe the speech.<|im_end|>\n<|im_start|>assistant\n"
    done = subprocess.run(
        [python, "-c", SCRIPT, str(folder), prompt],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    (answers,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS")]
    assert json.loads(answers.removeprefix("ANSWERS")) == expected
