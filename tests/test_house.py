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
from tiny import REPOSITORY
from transformers.dynamic_module_utils import get_imports, get_relative_imports


PACKAGE = REPOSITORY / "modeling_part"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
# Files at the root that travel to the Hub, flat, beside a checkpoint, where this package is not installed.
HUB = {path.stem for path in PACKAGE.glob("*_part.py")}
# The rooms from left to right: a file imports only what stands to its left, or in its own room. `package` is what
# `import modeling_part` runs, `demo` the web page.
ROOMS = ("*_part", "package", "recipes", "data", "evaluation", "publishing", "training", "analysis", "quickstart")
ROOMS += ("demo", "commands", "__main__")

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


def own_imports(path: Path) -> set[Path]:
    """Files of the package that a file imports, wherever in it."""
    found = set()
    for node, name, _ in imports_of(path):
        level = len(name) - len(name.lstrip("."))
        if level:
            base, names = path.parents[level - 1], [*filter(None, name.lstrip(".").split("."))]
        elif name.split(".")[0] == "modeling_part":
            base, names = PACKAGE, name.split(".")[1:]
        else:
            continue
        target = base.joinpath(*names)
        members = [target / alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        for candidate in (target, *members):
            for file in (candidate.with_name(f"{candidate.name}.py"), candidate / "__init__.py"):
                if file.is_file():
                    found.add(file)
    return found


def room(path: Path) -> str:
    """The room of a file of the package: its folder, or by its name."""
    inside = path.relative_to(PACKAGE)
    if len(inside.parts) > 1:
        return inside.parts[0]
    if path.stem in HUB:
        return "*_part"
    if path.stem in ("__init__", "registration"):
        return "package"
    return "demo" if path.stem.startswith("demo") else path.stem


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
    def test_every_file_stands_in_a_room(self):
        assert {room(path) for path in FILES} == set(ROOMS)

    def test_imports_run_from_left_to_right(self):
        for path in FILES:
            allowed = ROOMS[: ROOMS.index(room(path)) + 1]
            strangers = {other for other in own_imports(path) if room(other) not in allowed}
            assert not strangers, f"{path} imports {sorted(map(str, strangers))}, which stand to its right"

    def test_no_file_imports_in_a_circle(self):
        TopologicalSorter({path: own_imports(path) - {path} for path in FILES}).prepare()

    def test_the_package_does_not_import_the_script(self):
        for path in FILES:
            names = {name for _, name, _ in imports_of(path)}
            assert not names & {"modeling_part", "train_part"}, path.name

    @pytest.mark.parametrize("module", sorted(HUB))
    def test_hub_files_run_on_torch_numpy_and_transformers(self, module):
        path = PACKAGE / f"{module}.py"
        # What transformers itself demands before it runs remote code; imports inside try/except are not counted.
        demanded = set(get_imports(path)) - set(sys.stdlib_module_names)
        assert demanded <= {"torch", "numpy", "transformers"}
        assert set(third_party_imports(path)) <= {
            "torch",
            "numpy",
            "transformers",
            "jinja2",
            "soundfile",
            "soxr",
            "av",
            "onnxruntime",
            "silero_vad",
        }

    @pytest.mark.parametrize("module", sorted(HUB))
    def test_hub_files_name_their_siblings_as_the_hub_finds_them(self, module):
        path = PACKAGE / f"{module}.py"
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
    @pytest.mark.parametrize(
        "path", [*FILES, REPOSITORY / "train_part.py"], ids=lambda path: str(path.relative_to(REPOSITORY))
    )
    def test_what_is_imported_is_required(self, path, requirements, distributions):
        always, in_extras = requirements
        for package, at_top in third_party_imports(path).items():
            names = {name.lower().replace("_", "-") for name in distributions.get(package, [package])}
            allowed = always if at_top else always | in_extras
            assert names & allowed, f"{path.name} imports {package}, which setup.cfg does not list"

    def test_pinned_set_satisfies_the_ranges(self):
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
        for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md", "train_part.py"):
            shutil.copy(REPOSITORY / name, source / name)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True, capture_output=True)
        (wheel,) = tmp_path.glob("*.whl")
        packed = set(zipfile.ZipFile(wheel).namelist())
        assert "train_part.py" in packed
        for folder, inside in ((PACKAGE, "modeling_part"), (REPOSITORY / "model_cards", "modeling_part/model_cards")):
            files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
            missing = {f"{inside}/{path.relative_to(folder).as_posix()}" for path in files} - packed
            assert not missing, f"not in the wheel: {sorted(missing)}; see package_data in setup.cfg"


class TestRepository:
    def test_top_level(self, tracked):
        assert {name.split("/")[0] for name in tracked} <= TOP_LEVEL

    def test_no_stray_files(self, tracked):
        strays = [name for name in tracked if Path(name).suffix not in FILE_TYPES and name not in UNTYPED_FILES]
        assert not strays

    def test_no_large_files(self, tracked):
        sizes = {name: (REPOSITORY / name).stat().st_size for name in tracked if (REPOSITORY / name).is_file()}
        assert {name: size for name, size in sizes.items() if size > 2_000_000} == {}
