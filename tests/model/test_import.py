"""What `import modeling_part` costs, and that the Auto classes know PART in whatever order things are imported."""

import json
import subprocess
import sys

import pytest
import tiny


SCRIPT = """
import json, sys, torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline
before = set(sys.modules)
import modeling_part
for name in modeling_part.__all__:
    getattr(modeling_part, name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""

# What is imported between the package and the first use of the Auto classes: nothing; a file of transformers that is half
# loaded when it loads the Auto classes; a file of the package that is so.
FIRST = ["", "from transformers import GenerationMixin", "from modeling_part.pipeline_part import PARTPipeline"]
USE = """
import sys
import modeling_part
assert not {{"torch", "transformers"}} & set(sys.modules)
{first}
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoProcessor
from transformers import pipeline
folder = {folder!r}
found = [AutoConfig, AutoProcessor, AutoModel, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq]
found = [auto.from_pretrained(folder) for auto in found]
found += [pipeline(task, model=folder) for task in ("speech-to-text", "automatic-speech-recognition")]
print(*(type(one).__name__ for one in found))
assert all(type(one).__module__.startswith("modeling_part.") for one in found)
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tiny.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_heavy_is_imported_beside_the_auto_classes():
    """By names, since a clock would not be fair on a busy machine: 0.07 s on the one it was written on."""
    modules = [name for name in json.loads(run(SCRIPT)) if name != "transformers.models.part"]  # the package itself
    assert {name.split(".")[0] for name in modules} <= {"modeling_part", "transformers", "soundfile", "soxr"}
    rooms = {name.split(".")[1] for name in modules if name.startswith("modeling_part.")}
    assert all(room.endswith("_part") or room == "registration" for room in rooms), rooms
    models = {name.split(".")[2] for name in modules if name.startswith("transformers.models.")}
    assert models <= {"auto", "fun_asr_nano", "qwen2_audio", "voxtral", "whisper"}  # encoders that PART extends


@pytest.mark.parametrize("first", FIRST)
def test_the_auto_classes_know_part(first, tiny_checkpoint):
    names = run(USE.format(first=first, folder=str(tiny_checkpoint))).split()
    model = "PARTForSpeechSeq2Seq"
    assert names == ["PARTConfig", "PARTProcessor", "PARTModel", model, model, "PARTPipeline", "PARTPipeline"]
