# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""`python -m modeling_part.publishing ...` is `part publish ...`."""

import runpy
import sys


sys.argv.insert(1, "publish")
runpy.run_module("modeling_part", run_name="__main__")
