# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""One file per corpus: its published layout -> canonical rows."""
