# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The paper's analyses, and probes of what the representations hold."""
