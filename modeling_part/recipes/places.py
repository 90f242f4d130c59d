# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Where in which file a setting stands, for the errors about it."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml


# The names of keys from the outside in, such as ("stages", "joint", "max_steps") -> "mine.yaml, line 7"
Places = dict[tuple[str, ...], str]


def places_in(path: Path, content: yaml.Node | None) -> Places:
    """The lines of a recipe's keys; of a list's members by their `name`, or their number from 0.

    Args:
        path: the file.
        content: what it holds; None for an empty one.
    """
    found: Places = {}

    def walk(node: yaml.Node, names: tuple[str, ...]) -> None:
        if names:
            found[names] = f"{path}, line {node.start_mark.line + 1}"
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = (*names, str(key.value))
                walk(value, name)
                found[name] = f"{path}, line {key.start_mark.line + 1}"
        elif isinstance(node, yaml.SequenceNode):
            for number, member in enumerate(node.value):
                pairs = member.value if isinstance(member, yaml.MappingNode) else ()
                named = [value.value for key, value in pairs if key.value == "name"]
                name = member.value if isinstance(member, yaml.ScalarNode) else named[0] if named else str(number)
                walk(member, (*names, str(name)))
                if names[0] != "stages":
                    found[(*names, str(number))] = f"{path}, line {member.start_mark.line + 1}"

    if content is not None:
        walk(content, ())
    return found


@contextmanager
def located(places: Mapping[tuple[str, ...], str], *names: str) -> Iterator[None]:
    """Say in a ValueError where the setting stands that it is about.

    Args:
        places: of the recipe.
        names: of the setting; without them the error's message tells which one it is.
    """
    try:
        yield
    except ValueError as error:
        place = places.get(names) if names else place_of(str(error), places)
        if place is not None and len(error.args) == 1 and ", line " not in str(error):
            error.args = (f"{place}: {error}",)
        raise


def place_of(message: str, places: Mapping[tuple[str, ...], str]) -> str | None:
    """The place of the first setting that a message quotes, as deep inside as it quotes further names."""
    kind = re.search(r"Unknown (\w+)", message)  # of a value of the field `gate`, of a member of `tasks`
    words = [*([kind[1], f"{kind[1]}s"] if kind else []), *re.findall(r"[`'](\w+)\b", message)]
    stage = re.search(r"\bStage '(\w+)'", message)
    for outer in ([("stages", stage[1])] if stage else []) + [()]:
        for number, word in enumerate(words):
            key = (*outer, word)
            if key in places:
                inner = [(*key, one) for one in words[number + 1 :] if (*key, one) in places]
                return places[inner[0] if inner else key]
    return places.get(("stages", stage[1])) if stage else None
