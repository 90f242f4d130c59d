# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""From corpora to batches: canonical rows, readers, mixing, sampling, collating."""
