"""What the user's environment says must not decide what the tests see: import this before torch.

One thread per test process: tiny matrices gain nothing from more, the processes of pytest-xdist would fight for the
cores, and sums over several threads differ in the last bit. Tests that talk to a Hub start and name it themselves.
"""

import os


os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "0",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
}
USERS = ("HF_TOKEN", "HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "HF_DATASETS_OFFLINE")
USERS += ("TRANSFORMERS_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "ACCELERATE_USE_CPU", "COLUMNS")
for name in USERS:
    os.environ.pop(name, None)
    os.environ.pop(name.lower(), None)
