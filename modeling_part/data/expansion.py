# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""One entry of a recipe for many languages or directions: `{language}`, `{source}` and `{target}` in its texts.

    {reader: dataset, path: fixie-ai/covost2, config: "{source}_{target}", languages: [en], target_languages: [de, sv],
     own_names: {sv: sv-SE}, columns: {source_text: sentence, text: translation}, tasks: [s2tt]}

stands for two entries, with the configs `en_de` and `en_sv-SE`. A pattern may stand in every text of an entry: the path, the
config, a column.
"""

import re
from collections.abc import Mapping, Sequence

from ..prompts_part import code_of
from .corpus_spec import CorpusSpec, names_of
from .rows import CorpusError


OF_DIRECTIONS = ("source", "target", "first", "second")  # first and second: source and target in order of the alphabet
PLACEHOLDERS = ("language", *OF_DIRECTIONS)
_PATTERN = re.compile(r"\{([^{}]*)\}")


def corpus_specs(entries: Sequence[Mapping]) -> list[CorpusSpec]:
    """The corpora of a recipe's list, checked; an entry with patterns gives one for each language or direction.

    Raises:
        CorpusError: an entry is not as it must be.
    """
    return [CorpusSpec.from_dict(one) for entry in entries for one in expanded(entry)]


def is_streamed(entry: Mapping) -> bool:
    """Whether the rows of an entry are read while training."""
    return any(spec.streaming for spec in corpus_specs([entry]))


def expanded(entry: Mapping) -> list[Mapping]:
    """The entries that an entry with patterns stands for; itself without any.

    Beside the patterns it has `languages`, for directions also `target_languages`, and maybe `own_names`: a language's code
    -> the corpus's own name of it, where that is another. A language is not translated into itself.

    Raises:
        CorpusError: a pattern is not known, or the languages to put in its place are missing.
    """
    if not isinstance(entry, Mapping):
        return [entry]
    where = f"{entry.get('reader')} at {entry.get('path')}"
    used = {name for key, value in entry.items() if key != "reader" for name in _patterns(value)}
    if unknown := sorted(used - set(PLACEHOLDERS)):
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise CorpusError(f"{where}: '{{{unknown[0]}}}' is no pattern; there are {known}")
    own_names = entry.get("own_names") or {}
    if not isinstance(own_names, Mapping) or not all(isinstance(name, str) for name in own_names.values()):
        raise CorpusError(f"{where}: 'own_names' must map codes of languages to names, not {own_names!r}")
    own_names = {code_of(code): own_names[key] for key in own_names for code in names_of("own_names", [key], where)}
    rest = {key: value for key, value in entry.items() if key != "own_names"}
    if not used:
        if own_names:
            raise CorpusError(f"{where}: 'own_names' needs a pattern such as '{{language}}' in the path or config")
        return [rest]
    sources = _languages(entry, "languages", where, used)
    if used <= {"language"}:
        pairs = [(source, None) for source in sources]
    else:
        targets = _languages(entry, "target_languages", where, used)
        pairs = [(source, target) for source in sources for target in targets if source != target]
        if not pairs:
            raise CorpusError(f"{where}: 'languages' and 'target_languages' make no direction of two languages")
    found = []
    for source, target in pairs:
        names = [own_names.get(code, code) for code in (source, target) if code]
        values = {"language": names[0], "source": names[0], "target": names[-1]}
        values |= {"first": min(names), "second": max(names)}
        filled = {key: value if key == "reader" else _filled(value, values) for key, value in rest.items()}
        found.append(filled | {"languages": [source]} | ({"target_languages": [target]} if target else {}))
    return found


def _languages(entry: Mapping, key: str, where: str, used: set[str]) -> list[str]:
    """The codes that an entry lists under a key, which its patterns need."""
    given = None if entry.get(key) is None else names_of(key, entry[key], where)
    if not given:
        patterns = ", ".join(f"{{{name}}}" for name in sorted(used))
        raise CorpusError(f"{where}: {patterns} needs {key!r}, the languages to put in its place")
    return [code_of(code) for code in given]


def _patterns(value: object) -> list[str]:
    if isinstance(value, str):
        return _PATTERN.findall(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [name for one in inner for name in _patterns(one)]


def _filled(value: object, names: Mapping[str, str]) -> object:
    if isinstance(value, str):
        return _PATTERN.sub(lambda match: names[match[1]], value)
    if isinstance(value, (list, tuple)):
        return [_filled(one, names) for one in value]
    return {key: _filled(one, names) for key, one in value.items()} if isinstance(value, Mapping) else value
