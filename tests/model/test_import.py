"""What `import modeling_part` costs beside the classes of transformers that it registers with."""

import json
import subprocess
import sys

import tiny


SCRIPT = """
import json, sys, torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline
before = set(sys.modules)
import modeling_part
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_nothing_heavy_is_imported_beside_the_auto_classes():
    """By names, since a clock would not be fair on a busy machine: 0.07 s on the one it was written on."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tiny.REPOSITORY, capture_output=True, text=True, check=True
    )
    modules = json.loads(done.stdout)
    assert {name.split(".")[0] for name in modules} <= {"modeling_part", "transformers", "soundfile", "soxr"}
    rooms = {name.split(".")[1] for name in modules if name.startswith("modeling_part.")}
    assert all(room.endswith("_part") for room in rooms), rooms
    models = {name.split(".")[2] for name in modules if name.startswith("transformers.models.")}
    assert models <= {"auto", "qwen2_audio", "whisper"}
