# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Where each corpus is to be had, under which licence, and how large it is: for errors and for the recipes' page.

As far as their own pages and the trainers that use them say; looked up in November 2026. What a Hub dataset takes on disk
is asked of the Hub itself before anything is downloaded (`--dry_run true`).
"""

from dataclasses import dataclass

from ..recipes.program import part_command


@dataclass(frozen=True)
class Corpus:
    """One public corpus.

    Attributes:
        name: as its authors write it.
        reader: of `READERS`.
        where: in words that fit after "it is to be had".
        licence: of its data.
        size: hours or sentences.
        hub_id: of the dataset on the Hub that the reader takes as `path`; None without one.
    """

    name: str
    reader: str
    where: str
    licence: str
    size: str
    hub_id: str | None = None


WHERE_TO_GET = (
    Corpus(
        "Common Voice",
        "common_voice",
        "from Mozilla Data Collective alone (https://mozilladatacollective.com, since October 2025; the Hub's official "
        "copies are empty): one archive for each language, by hand or with `data_collective: [SLUG]` in the recipe",
        "CC0-1.0",
        "per release and language on its page",
    ),
    Corpus(
        "Common Voice 17 in parquet",
        "dataset",
        "on the Hub as fixie-ai/common_voice_17_0: a config for each locale, such as de or sv-SE; no Chinese, Korean",
        "CC0-1.0",
        "clips for training: en 1,101,170, de 589,100, fr 558,054, es 336,846, it 169,771, ru 26,377, ja 10,039",
        "fixie-ai/common_voice_17_0",
    ),
    Corpus(
        "FLEURS",
        "fleurs",
        "on the Hub as google/fleurs, where the reader fetches the languages that are asked for",
        "CC BY 4.0",
        "102 languages, about 10 h of training and 2 to 4 GB each",
        "google/fleurs",
    ),
    Corpus(
        "CoVoST 2",
        "covost2",
        "in two parts, of which one cannot be had any more: the translations are at "
        "https://github.com/facebookresearch/covost, but their clips are those of Common Voice 4 (December 2019), which "
        "is no longer offered. With clips it is on the Hub as fixie-ai/covost2, for the reader `dataset`",
        "CC BY-NC 4.0 (card of facebook/covost2)",
        "21 languages into English, English into 15",
    ),
    Corpus(
        "CoVoST 2 with its clips, in parquet",
        "dataset",
        "on the Hub as fixie-ai/covost2: a config for each direction, such as de_en, en_sv-SE or en_zh-CN",
        "CC BY-NC 4.0 (card of facebook/covost2)",
        "clips for training: from en 289,430 into each, fr 207,374, de 127,834, ca 95,854, es 79,015, fa 53,949, it 31,698, "
        "zh 7,085",
        "fixie-ai/covost2",
    ),
    Corpus(
        "Multilingual LibriSpeech",
        "dataset",
        "on the Hub as facebook/multilingual_librispeech: a config for each of seven languages, such as german",
        "CC BY 4.0",
        "dutch: 374,287 clips, 24 GB; portuguese: 2.5 GB",
        "facebook/multilingual_librispeech",
    ),
    Corpus(
        "VoxPopuli",
        "dataset",
        "on the Hub as facebook/voxpopuli; its script is no longer run, so give the parquet branch: `revision: "
        "refs/convert/parquet, data_files: en/partial-train/*.parquet`",
        "CC0-1.0",
        "16 languages; of the larger ones the parquet branch holds the first 4 GB",
        "facebook/voxpopuli",
    ),
    Corpus(
        "OPUS-100",
        "dataset",
        "on the Hub as Helsinki-NLP/opus-100: pairs of sentences, a config for each pair with English, such as en-sv",
        "unknown (of many sources)",
        "up to 1,000,000 pairs for each; en-sv: 85 MB",
        "Helsinki-NLP/opus-100",
    ),
    Corpus(
        "WenetSpeech",
        "wenetspeech",
        "after a form that its authors answer with a password (https://github.com/wenet-e2e/WenetSpeech)",
        "CC BY 4.0, for non-commercial purposes",
        "10,005 h of Mandarin, 500 GB",
    ),
    Corpus(
        "WenetSpeech in parquet",
        "dataset",
        "on the Hub as fixie-ai/wenetspeech, a copy with the config `L_fixed`, as ultravox names it (not read by us)",
        "CC BY 4.0, for non-commercial purposes",
        "14,621,415 clips for training",
        "fixie-ai/wenetspeech",
    ),
    Corpus(
        "Tux Paint's stamps",
        "tuxpaint",
        "with `apt-get download tuxpaint-stamps-default` on Debian or Ubuntu",
        "in the package's `copyright` file",
        "ten languages and more",
    ),
    Corpus(
        "Asterisk core sounds",
        "asterisk",
        "with `part quickstart speech data/asterisk`",
        "CC BY-SA 3.0, CC BY 3.0",
        "five languages",
    ),
)


def how_to_get(reader: str) -> str:
    """A sentence for errors: where the corpus of a reader is to be had; empty for readers of many corpora."""
    found = [corpus for corpus in WHERE_TO_GET if corpus.reader == reader]
    if len(found) != 1:
        return ""
    return f"{found[0].name} is to be had {found[0].where}".replace("`part ", f"`{part_command()} ")


def hub_id_of(reader: str) -> str | None:
    """The Hub id that a reader takes for its corpus; None for readers of many corpora, or of none there."""
    ids = [corpus.hub_id for corpus in WHERE_TO_GET if corpus.reader == reader]
    return ids[0] if len(ids) == 1 else None


def as_table() -> str:
    """The Markdown table of the recipes' page."""
    lines = ["| corpus | reader | to be had | licence | size |", "|---|---|---|---|---|"]
    lines += [f"| {one.name} | `{one.reader}` | {one.where} | {one.licence} | {one.size} |" for one in WHERE_TO_GET]
    return "\n".join(lines)
