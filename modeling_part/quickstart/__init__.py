# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Speech and pretrained parts for the quickstart, from package registries."""
