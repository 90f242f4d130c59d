"""Fixtures of the data's tests; what they are made of is in made_data.py."""

import numpy as np
import pytest
import soundfile
from made_data import RATE, tone


@pytest.fixture
def clips(tmp_path):
    """A folder with clips/a.flac (1.5 s), clips/b.mp3 (2 s), clips/long.opus (6 s: 440 Hz, then 880 Hz)."""
    folder = tmp_path / "clips"
    folder.mkdir()
    soundfile.write(folder / "a.flac", tone(1.5), RATE)
    soundfile.write(folder / "b.mp3", tone(2.0), RATE)
    soundfile.write(
        folder / "long.opus", np.concatenate([tone(3.0), tone(3.0, 880)]), RATE, format="OGG", subtype="OPUS"
    )
    return tmp_path
