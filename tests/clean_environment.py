"""What the user's environment says must not decide what the tests see: import this before torch.

One thread per test process: tiny matrices gain nothing from more, the processes of pytest-xdist would fight for the
cores, and sums over several threads differ in the last bit. Tests that talk to a Hub start and name it themselves.
"""

import os
import site
from pathlib import Path


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


def installed_packages(folder: Path) -> Path:
    """A folder with links to every installed package but this one."""
    folder.mkdir()
    for packages in site.getsitepackages():
        for path in Path(packages).iterdir():
            ours = path.name.startswith(("modeling_part", "train_part", "__editable__"))
            if not ours and path.suffix != ".pth" and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    return folder
