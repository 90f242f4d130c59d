"""The house rules that a machine can check: who imports whom, what an import costs, what the repository holds."""

import ast
import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports


REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "modeling_part"
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}

# The Hub copies these flat beside a checkpoint, so that they run where this package is not installed.
HUB = {"configuration_part", "encoder_part", "adapter_part", "loading_part", "processing_part", "modeling_part"}
HUB |= {"pipeline_part"}
# A module imports its own family, the Hub files and the definition of a row; train_part.py, the notebooks and
# __init__.py bring families together.
FAMILIES = {
    "hub": HUB,
    "training": {"arguments", "stages", "trainer", "memory"},
    "row": {"canonical"},
    "data": {
        "asterisk",
        "generic_corpora",
        "public_corpora",
        "corpora",
        "sampling",
        "streaming",
        "augmentation",
        "collator",
        "encoder_outputs",
    },
    "evaluation": {
        "normalization",
        "metrics",
        "scoring",
        "reports",
        "comparison",
        "evaluation",
        "experiments",
        "monitoring",
    },
    "analysis": {"analysis", "probes"},
    "publishing": {"checkpoints", "cards", "publishing"},
    "pretrained parts": {"pretrained"},
    "demo": {"demo"},
}
FAMILY_OF = {module: family for family, modules in FAMILIES.items() for module in modules}

TOP_LEVEL = {"setup.cfg", "README.md", "modeling_part", "train_part.py", "model_cards", "tests", "notebooks"}
TOP_LEVEL |= {"pyproject.toml", "LICENSE", "Makefile", ".ci", ".gitignore", ".pre-commit-config.yaml"}
FILE_TYPES = {".py", ".md", ".cfg", ".toml", ".yaml", ".json", ".jsonl", ".txt", ".ipynb", ".png", ".jinja"}
UNTYPED_FILES = {"LICENSE", "Makefile", ".gitignore", ".ci/run"}


def imports_of(path: Path) -> list[tuple[ast.stmt, str, bool]]:
    """Every import of a file as (statement, absolute or relative module name, is at the top level of the file)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name, node in tree.body) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node, "." * node.level + (node.module or ""), node in tree.body))
    return found


def own_imports(path: Path) -> set[str]:
    """Names of the package's modules that a file imports."""
    names = set()
    for node, name, _ in imports_of(path):
        if name == ".":
            names |= {alias.name for alias in node.names}
        elif name.startswith("."):
            names.add(name[1:].split(".")[0])
        elif name.startswith("modeling_part."):
            names.add(name.split(".")[1])
    return names & set(MODULES)


def third_party_imports(path: Path) -> dict[str, bool]:
    """Packages that a file imports from outside, and whether it does so unguarded at its top level."""
    found: dict[str, bool] = {}
    for _, name, at_top in imports_of(path):
        package = name.split(".")[0]
        if (
            package
            and package not in sys.stdlib_module_names
            and package not in ("modeling_part", "tiny", "__future__")
        ):
            found[package] = found.get(package, False) or at_top
    return found


@pytest.fixture(scope="module")
def requirements() -> tuple[set[str], set[str]]:
    """Distribution names in install_requires, and in any extra."""
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")

    def names(text: str) -> set[str]:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines}

    extras = parser["options.extras_require"]
    return names(parser["options"]["install_requires"]), set().union(*(names(extras[extra]) for extra in extras))


@pytest.fixture(scope="module")
def distributions() -> dict[str, list[str]]:
    """Distributions that provide each installed top-level package."""
    return importlib.metadata.packages_distributions()


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    result = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip("not a git checkout")
    return result.stdout.splitlines()


class TestImports:
    def test_every_module_has_its_place(self):
        assert set(FAMILY_OF) == set(MODULES), "place new modules in FAMILIES, remove those that are gone"

    @pytest.mark.parametrize("module", MODULES)
    def test_modules_import_their_family_and_the_hub_files(self, module):
        strangers = {
            other
            for other in own_imports(MODULES[module])
            if FAMILY_OF[other] not in ("hub", "row", FAMILY_OF[module])
        }
        assert not strangers, f"{module}.py imports {sorted(strangers)}: let train_part.py bring them together"

    def test_no_module_imports_in_a_circle(self):
        TopologicalSorter({module: own_imports(path) for module, path in MODULES.items()}).prepare()

    def test_arguments_and_stages_import_nothing_of_ours(self):
        assert own_imports(MODULES["arguments"]) == own_imports(MODULES["stages"]) == set()

    def test_data_flows_one_way(self):
        order = ["collator", "sampling", "corpora"]
        for index, later in enumerate(order):
            for earlier in order[index + 1 :]:
                assert later not in own_imports(MODULES[earlier]), f"{earlier}.py imports {later}.py"

    def test_no_module_imports_the_package_or_the_script(self):
        for path in MODULES.values():
            names = {name for _, name, _ in imports_of(path)}
            assert not names & {"modeling_part", "train_part"}, path.name

    @pytest.mark.parametrize("module", sorted(HUB))
    def test_hub_files_run_on_torch_numpy_and_transformers(self, module):
        path = MODULES[module]
        # What transformers itself demands before it runs remote code; imports inside try/except are not counted.
        demanded = set(get_imports(path)) - set(sys.stdlib_module_names)
        assert demanded <= {"torch", "numpy", "transformers"}
        assert set(third_party_imports(path)) <= {"torch", "numpy", "transformers", "soundfile", "soxr"}

    @pytest.mark.parametrize("module", sorted(HUB))
    def test_hub_files_name_their_siblings_as_the_hub_finds_them(self, module):
        path = MODULES[module]
        relative = {name for _, name, _ in imports_of(path) if name.startswith(".")}
        assert "." not in relative, "`from . import sibling` is not followed when code is copied to the Hub"
        # transformers reads the text: a line in a docstring that looks like a relative import counts as one.
        assert set(get_relative_imports(path)) == {name[1:] for name in relative} <= HUB
        absolute = {name for _, name, _ in imports_of(path) if name.split(".")[0] == "modeling_part"}
        assert not absolute

    def test_importing_the_package_is_light(self):
        heavy = ["datasets", "evaluate", "peft", "matplotlib"]
        code = f"import sys, modeling_part; print([name for name in {heavy} if name in sys.modules])"
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == "[]"


class TestPackage:
    @pytest.mark.parametrize("path", [*MODULES.values(), REPOSITORY / "train_part.py"], ids=lambda path: path.name)
    def test_what_is_imported_is_required(self, path, requirements, distributions):
        always, in_extras = requirements
        for package, at_top in third_party_imports(path).items():
            names = {name.lower().replace("_", "-") for name in distributions.get(package, [package])}
            allowed = always if at_top else always | in_extras
            assert names & allowed, f"{path.name} imports {package}, which setup.cfg does not list"

    def test_pinned_set_satisfies_the_ranges(self, requirements):
        from packaging.requirements import Requirement

        text = (REPOSITORY / ".ci" / "constraints.txt").read_text(encoding="utf-8")
        pins = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
        versions = {pin.name.lower().replace("_", "-"): next(iter(pin.specifier)).version for pin in pins}
        parser = configparser.ConfigParser()
        parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
        for line in parser["options"]["install_requires"].split("\n"):
            if line.strip():
                requirement = Requirement(line)
                version = versions[requirement.name.lower().replace("_", "-")]
                assert requirement.specifier.contains(version), f"{requirement} but pinned to {version}"

    def test_wheel_carries_recipes_configs_and_templates(self, tmp_path):
        source = tmp_path / "source"
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in ("modeling_part", "model_cards"):
            shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
        for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
            shutil.copy(REPOSITORY / name, source / name)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True, capture_output=True)
        (wheel,) = tmp_path.glob("*.whl")
        packed = set(zipfile.ZipFile(wheel).namelist())
        for folder, inside in ((PACKAGE, "modeling_part"), (REPOSITORY / "model_cards", "modeling_part/model_cards")):
            files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
            missing = {f"{inside}/{path.relative_to(folder).as_posix()}" for path in files} - packed
            assert not missing, f"not in the wheel: {sorted(missing)}; see package_data in setup.cfg"


class TestRepository:
    def test_top_level(self, tracked):
        assert {name.split("/")[0] for name in tracked} <= TOP_LEVEL

    def test_the_package_is_flat(self, tracked):
        folders = {name.split("/")[1] for name in tracked if name.startswith("modeling_part/") and name.count("/") > 1}
        assert folders <= {"recipes", "accelerate_configs"}

    def test_no_stray_files(self, tracked):
        strays = [name for name in tracked if Path(name).suffix not in FILE_TYPES and name not in UNTYPED_FILES]
        assert not strays

    def test_no_large_files(self, tracked):
        sizes = {name: (REPOSITORY / name).stat().st_size for name in tracked if (REPOSITORY / name).is_file()}
        assert {name: size for name, size in sizes.items() if size > 2_000_000} == {}
