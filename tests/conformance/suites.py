"""transformers' own test suites, from the source distribution of the installed version: nothing of them is in here.

pip downloads the distribution named in transformers.txt into a cache and checks its hash; its `tests` become the
package `transformers_tests`. The distribution holds `tests/*.py` only: what those files import from folders that it
lacks (exporters, generation) is empty here, and tests/model has tests of PART's own for both.
"""

import importlib
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType


REQUIREMENT = Path(__file__).with_name("transformers.txt")

# What cannot apply to PART, by name, with the parts that it is about and the reason. At most eight.
CANNOT_APPLY: dict[str, tuple[set[str], str]] = {
    "test_can_init_all_missing_weights": (
        {"gpt2", "wav2vec2"},
        "transformers leaves out models from before 2023 by their file's date, and reads PART's: these two do not "
        "initialise all of their own weights",
    ),
    "test_training_gradient_checkpointing_use_reentrant_true": (
        {"fun_asr_nano"},
        "SAN-M's first layer takes the features, which need no gradient, so that a reentrant checkpoint skips it; "
        "transformers' own FunAsrNano model does the same",
    ),
    "test_subprocessor_defaults_3_audio": (
        {"whisper", "qwen2_audio", "wav2vec2"},
        "Whisper's feature extractor pads to its window, PART to the longest clip (unless `variable_length=False`), and "
        "wav2vec2's calls its mask `attention_mask`, which in PART is the prompt's",
    ),
}


def pinned_version() -> str:
    """The version that transformers.txt names."""
    (line,) = (line for line in REQUIREMENT.read_text().splitlines() if not line.startswith("#"))
    return line.split()[0].removeprefix("transformers==")


def source_folder() -> Path:
    """The unpacked source distribution of the pinned transformers, downloaded once."""
    pinned = pinned_version()
    if version("transformers") != pinned:
        raise RuntimeError(
            f"transformers {version('transformers')} is installed, but transformers.txt pins {pinned}. Put the hash of "
            "the installed version's source distribution there, as `pip hash` gives it."
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "part-conformance"
    archive = cache / f"transformers-{pinned}.tar.gz"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "transformers", "--require-hashes", "--requirement", str(REQUIREMENT)]
    if not archive.is_file():
        subprocess.run([*command, "--dest", str(cache)], check=True)
    folder = cache / f"transformers-{pinned}"
    if not folder.is_dir():
        with tarfile.open(archive) as tar:
            tar.extractall(cache, filter="data")
    return folder


def load(name: str) -> ModuleType:
    """A module of transformers' tests, such as `test_modeling_common`."""
    if "transformers_tests" not in sys.modules:
        add_module("transformers_tests", __path__=[str(source_folder() / "tests")])
        add_module("transformers_tests.exporters", __path__=[])
        add_module("transformers_tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
        add_module("transformers_tests.generation", __path__=[])
        generation = type("GenerationTesterMixin", (), {})
        add_module("transformers_tests.generation.test_utils", GenerationTesterMixin=generation)
        # Files of the Hub that the tests would fetch; those that need them bring their own below.
        add_module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)
    return importlib.import_module(f"transformers_tests.{name}")


def add_module(name: str, **members) -> None:
    """A module made of its members."""
    module = sys.modules[name] = ModuleType(name)
    vars(module).update(members)


def leave_out(case: type, *parts: str) -> type:
    """Skip what cannot apply to a model of these parts, with its reason."""
    for name, (kinds, reason) in CANNOT_APPLY.items():
        if kinds.intersection(parts) and hasattr(case, name):
            setattr(case, name, lambda self, reason=reason: self.skipTest(reason))
    return case
