# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What goes to the Hub, and how."""
