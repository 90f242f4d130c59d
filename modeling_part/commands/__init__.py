# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The verbs of the command `part`, a file for each group: what it runs, then its options."""
