"""Only where it is asked for by name (`make conformance`), since it downloads transformers' source distribution."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_ignore_collect(collection_path, config):
    asked = any("conformance" in str(argument) for argument in config.args)
    return None if asked or "conformance" not in collection_path.parts else True


def pytest_configure(config):
    for name in ("accelerate_tests", "torch_compile_test", *(f"flash_attn_{n}test" for n in ("", "3_", "4_"))):
        config.addinivalue_line("markers", f"{name}: of transformers' tests")
