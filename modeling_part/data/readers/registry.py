# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Every reader by the name that recipes use."""

from .asterisk import read_asterisk
from .common_voice import read_common_voice
from .covost2 import read_covost2
from .dataset import read_dataset
from .fleurs import read_fleurs
from .manifest import read_manifest
from .text_pairs import read_text_pairs
from .tuxpaint import read_tuxpaint
from .wenetspeech import read_wenetspeech


READERS = {
    "manifest": read_manifest,
    "asterisk": read_asterisk,
    "common_voice": read_common_voice,
    "fleurs": read_fleurs,
    "covost2": read_covost2,
    "wenetspeech": read_wenetspeech,
    "tuxpaint": read_tuxpaint,
    "dataset": read_dataset,
    "text_pairs": read_text_pairs,
}
