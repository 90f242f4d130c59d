# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""A recipe as a file: where it is found, what it is based on, and what then is said by the two together.

A recipe may name another one as its `base` and state only its difference::

    base: part
    output_dir: runs/no_task_gate
    stages: {joint: {gate: always}}

Each of its keys replaces the base's, whole. Only `stages` can also be a change: a list is a whole plan, a mapping changes
the plan that stands so far (the paper's, where there is none) stage by stage, and `null` leaves a stage out.
"""

from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path

import yaml

from .places import Places, located, places_in
from .stages import change_plan
from .trainer_settings import unknown_name


SHIPPED = Path(str(files("modeling_part"))) / "recipes"


def find_recipe(name: str, folder: Path | None = None) -> Path:
    """The file of a recipe.

    Args:
        name: a path, or the name of a recipe that the package ships (`quickstart` or `quickstart.yaml`).
        folder: where a path starts; the working folder if none.

    Raises:
        FileNotFoundError: there is neither such a file nor a shipped recipe of that name.
    """
    beside = Path(name) if folder is None else folder / name
    for candidate in (beside, SHIPPED / name, SHIPPED / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
    raise FileNotFoundError(f"There is no recipe {name!r}: not a file, and the shipped recipes are {known}.")


def read_recipe(
    path: Path, known: Collection[str], chain: tuple[Path, ...] = (), places: Places | None = None
) -> dict:
    """The settings of a recipe file, those of its bases included; without a base `stages` may still be a change.

    Args:
        path: the file.
        known: the keys that a recipe may have, besides `base`.
        chain: the recipes that are based on this one, the first one first.
        places: gets the place of each key, those of a base first.

    Raises:
        ValueError: a key is unknown or given twice, or a recipe is in the end its own base; the message names the file.
        FileNotFoundError: there is no such base; the message names the recipes that led to it.
    """
    chain = (*chain, path)
    settings, own = _read_yaml(path)
    base = settings.pop("base", None)
    for key in settings:
        if key not in known:
            raise ValueError(
                f"{own.get((str(key),), path)}: Unknown key {key!r}.{unknown_name(str(key), [*known, 'base'])}"
            )
    places = {} if places is None else places
    if base is None:
        places |= own
        return settings
    try:
        parent = find_recipe(str(base), path.parent)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_arrows(chain)}: {error}") from None
    if parent.resolve() in [one.resolve() for one in chain]:
        raise ValueError(f"{_arrows((*chain, parent))}: A recipe is its own base; take one `base` out.")
    whole = replace_settings({}, read_recipe(parent, known, chain, places))
    places |= own
    with located(places):
        return replace_settings(whole, settings)


def replace_settings(settings: Mapping, later: Mapping) -> dict:
    """Settings with the keys of a later recipe in place of their own; a mapping of `stages` changes the plan."""
    merged = {**settings, **later}
    if isinstance(later.get("stages"), dict):
        merged["stages"] = change_plan(settings.get("stages"), later["stages"])
    return merged


def read_value(text: str) -> object:
    """What a text of the command line stands for, as in a recipe: `100`, `lora`, `[asr]`, `{asr: 1.0}`."""
    try:
        return yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{text!r} is not YAML: {' '.join(str(error).split())}") from error


def _read_yaml(path: Path) -> tuple[dict, Places]:
    """A YAML file that holds one mapping, and where its keys stand.

    Raises:
        ValueError: it is not YAML, holds something else, or gives a key twice; the message names file and line.
    """
    with open(path, encoding="utf-8") as file:
        try:
            loader = _UniqueKeys(file)
            node = loader.get_single_node()
            content = None if node is None else loader.construct_document(node)
            places = places_in(path, node) if isinstance(content, dict) else {}
        except _DoubleKeyError:
            raise
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates that do not exist are ValueErrors
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict | None):
        raise ValueError(f"{path} holds a {type(content).__name__}; a recipe is a mapping of keys to values.")
    return content or {}, places


class _DoubleKeyError(ValueError):
    """A mapping gives a key twice."""


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings give every key once (plain YAML takes the last of two without a word), and where `no` is text.

    It is Norwegian, as a key too. Where a truth value is due the text is understood as one.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if first not in "nN" or not tag.endswith(":bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line, written = key.start_mark.line + 1, (key.tag, key.value)  # true and 'true' are two keys
            if isinstance(key, yaml.ScalarNode) and written in first:
                raise _DoubleKeyError(
                    f"{self.name}, line {line}: Key {key.value!r} is there already in line {first[written]}."
                )
            if isinstance(key, yaml.ScalarNode):
                first[written] = line
        return super().construct_mapping(node, deep)


def _arrows(chain: tuple[Path, ...]) -> str:
    return " -> ".join(map(str, chain))
