# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What a processor is saved with, so that one whose files were changed by hand does not ask in another way in silence.

A model must be asked, and its audio heard, the way it was trained. `processor_config.json` therefore holds, as
`saved_with`, the prompt that asks for a transcript, and a checksum of each setting.
"""

import json
import zlib
from collections.abc import Mapping


RECORD = "saved_with"
# What names code and places, which publishing takes out, and does not change what the model is asked.
UNRECORDED = (RECORD, "auto_map", "processor_class", "chat_template", "transformers_version", "_name_or_path")
UNRECORDED += ("name_or_path", "is_local", "local_files_only", "_commit_hash")
# Arguments of `from_pretrained` that are there to change the prompt.
OF_THE_PROMPT = {"chat_template", "system_prompt", "instructions", "audio_token", "tokenizer"}


def saved_with(settings: Mapping, tokenizer, prompt: list[int]) -> dict:
    """The record of a processor.

    Args:
        settings: what `processor_config.json` holds.
        tokenizer: of the language model.
        prompt: ids of the prompt that asks for a transcript, with one placeholder.

    Returns:
        `{"prompt": text, "tokens": ids as a text, "settings": {dotted name: checksum}}`.
    """
    return {
        "prompt": tokenizer.decode(prompt),
        "tokens": " ".join(map(str, prompt)),
        "settings": _checksums(settings),
    }


def check_saved(record: object, now: Mapping, name: str, given: Mapping) -> None:
    """Compare a processor's record with what its files give now.

    Args:
        record: `saved_with` in `processor_config.json`.
        now: [`saved_with`] of the settings as they stand in the file, and of the processor as it was loaded.
        name: of the checkpoint, for messages.
        given: arguments of `from_pretrained`, whose change is meant.

    Raises:
        ValueError: a setting or the prompt is another one; the message names it.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("settings"), Mapping):
        raise ValueError(f"`{RECORD}` in processor_config.json of {name!r} is damaged. Fetch the checkpoint again.")
    fix = (
        "Fetch the file again; to change it on purpose, load with the value as an argument, as in "
        "`PARTProcessor.from_pretrained(..., system_prompt=...)`, and `save_pretrained` what you have."
    )
    if edited := _differing(record["settings"], now["settings"]):
        raise ValueError(
            f"processor_config.json of {name!r} was changed after it was saved: {', '.join(edited[:5])}. The "
            f"model was trained with the settings that it was saved with. {fix}"
        )
    same = all(record.get(key) == now[key] for key in ("prompt", "tokens"))
    if not same and not OF_THE_PROMPT & set(given):
        raise ValueError(
            f"The chat template or the tokenizer of {name!r} was changed after it was saved: the model was trained to answer "
            f"{record.get('prompt')!r}, and would be asked {now['prompt']!r}. {fix}"
        )


def edited_settings(settings: Mapping) -> list[str]:
    """Dotted names of what `processor_config.json` holds otherwise than it was saved; none where nothing was recorded."""
    return _differing((settings.get(RECORD) or {}).get("settings") or {}, _checksums(settings))


def by_dotted_names(settings: Mapping, prefix: str = "") -> dict:
    """Settings without mappings inside: `{"a": {"b": 1}}` is `{"a.b": 1}`. A mapping without keys stays as it is."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= by_dotted_names(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differing(marks: Mapping, now: Mapping) -> list[str]:
    return sorted(name for name, mark in marks.items() if now.get(name) != mark)


def _checksums(settings: Mapping) -> dict[str, str]:
    recorded = {
        name: value for name, value in by_dotted_names(settings).items() if not set(name.split(".")) & set(UNRECORDED)
    }
    return {name: f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}" for name, value in recorded.items()}
