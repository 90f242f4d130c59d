# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Training a stage: setup, freezing, the task gate, the trainer, checkpoints."""
