# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Prediction, scores, reports, comparisons."""
