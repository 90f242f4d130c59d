# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What a user decides: arguments, the plan of stages, and the record of a finished stage."""
