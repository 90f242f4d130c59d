# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The tokens of many texts at once, in numpy: whatever stands in several texts is tokenised once.

Where a tokenizer never puts the end of one word and the beginning of the next into one token, that is the words: a
language repeats its words, and what is left for the tokenizer is its vocabulary. Otherwise it is the texts.
"""

import json
import re
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow
import pyarrow.compute
from transformers import PreTrainedTokenizerBase


AT_A_TIME = 512  # pieces given to the tokenizer: what it makes of them still fits into the processor's cache
_CUT = "\x00"  # stands before each word but the first; no row may hold it
# White space that is no single space between two words, controls, and what is written for no width: such texts stay whole.
_NOT_PLAIN = r"^ | $|  |[\x{00}-\x{1F}\x{7F}-\x{A0}\x{AD}\x{1680}\x{180E}\x{2000}-\x{200F}\x{2028}-\x{202F}\x{205F}-\x{206F}\x{3000}\x{FEFF}]"
# The patterns of Qwen2 to Qwen3, Qwen3.5, Llama 3 (also of SmolLM3, Granite 4 and others) and GPT-4o's kind. What they
# match holds a space at its beginning alone, if it is not white space altogether.
_LETTERS = (r"\p{L}", r"[\p{L}\p{M}]")
_SPLITTING = frozenset(
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{letters}+|\p{{N}}{digits}| ?[^\s{inner}\p{{N}}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
    for letters, inner in zip(_LETTERS, (r"\p{L}", r"\p{L}\p{M}"), strict=True)
    for digits in ("", "{1,3}")
)


@dataclass(frozen=True)
class TextTokens:
    """Tokens of texts.

    Attributes:
        lengths: `(texts,)` int64, tokens of each text.
        repeats: `(texts,)` int64, neighbours in each that are the same token.
        pieces: `(texts + 1,)` int64, where the pieces of each text begin and end in `codes`.
        codes: which of the different pieces each is, text after text.
        ids: tokens of the different pieces, one after the other.
        bounds: `(different pieces + 1,)` int64, where those of each begin and end in `ids`.
    """

    lengths: np.ndarray
    repeats: np.ndarray
    pieces: np.ndarray
    codes: np.ndarray
    ids: np.ndarray
    bounds: np.ndarray

    def occurrences(self, chosen: np.ndarray, vocabulary_size: int) -> np.ndarray:
        """`(vocabulary_size,)` int64, how often each token occurs in the texts that `(texts,)` bool chooses."""
        of_chosen = self.codes[np.repeat(chosen, np.diff(self.pieces))]
        times = np.bincount(of_chosen, minlength=len(self.bounds) - 1)
        counted = np.bincount(self.ids, weights=np.repeat(times, np.diff(self.bounds)), minlength=vocabulary_size)
        return counted[:vocabulary_size].astype(np.int64)


def text_tokens(texts: pyarrow.Array, tokenizer: PreTrainedTokenizerBase) -> TextTokens:
    """The tokens of `(texts,)` strings, without special ones; a text that is null has none.

    Threads may call it at the same time, if the tokenizer neither truncates nor pads.
    """
    texts = pyarrow.compute.fill_null(texts, "").cast(pyarrow.large_string())
    if splits_at_spaces(tokenizer):
        whole = pyarrow.compute.match_substring_regex(texts, _NOT_PLAIN)
        cut = pyarrow.compute.replace_substring(texts, " ", f"{_CUT} ")
        lists = pyarrow.compute.split_pattern(pyarrow.compute.if_else(whole, texts, cut), _CUT)
        pieces, words = lists.offsets.to_numpy().astype(np.int64), lists.flatten()
        pieces = pieces - pieces[0]
    else:
        pieces, words = np.arange(len(texts) + 1, dtype=np.int64), texts
    table = words.dictionary_encode()
    codes = table.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    ids, bounds = _encoded(table.dictionary, tokenizer)
    return _put_together(pieces, codes, ids, bounds)


def _put_together(pieces: np.ndarray, codes: np.ndarray, ids: np.ndarray, bounds: np.ndarray) -> TextTokens:
    sizes = np.diff(bounds)
    alike = np.zeros(len(ids), dtype=bool)  # a token that is the same as the one before it in its piece
    alike[1:] = ids[1:] == ids[:-1]
    alike[bounds[:-1][sizes > 0]] = False
    inner = _sums(alike, bounds)
    lengths = _sums(sizes[codes], pieces)
    repeats = _sums(inner[codes], pieces)
    # Between the pieces of a text; those without tokens stand in nobody's way.
    text = np.repeat(np.arange(len(pieces) - 1), np.diff(pieces))
    there = sizes[codes] > 0
    text, left = text[there], codes[there]
    meets = (ids[bounds[left[1:]]] == ids[bounds[left[:-1] + 1] - 1]) & (text[1:] == text[:-1])
    repeats += np.bincount(text[1:][meets], minlength=len(repeats))
    return TextTokens(lengths, repeats, pieces, codes, ids, bounds)


def _sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Of the values between each two neighbouring bounds, the sum."""
    totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return totals[bounds[1:]] - totals[bounds[:-1]]


def _encoded(texts: pyarrow.Array, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of all texts one after the other, and where those of each begin and end."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    ids, sizes = [np.zeros(0, dtype=np.int64)], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(texts), AT_A_TIME):
        some = texts.slice(start, AT_A_TIME).to_pylist()
        if backend is None:
            found = tokenizer(some, add_special_tokens=False)["input_ids"]
        else:
            found = [one.ids for one in backend.encode_batch_fast(some, add_special_tokens=False)]
        sizes.append(np.fromiter(map(len, found), dtype=np.int64, count=len(found)))
        ids.append(np.fromiter(chain.from_iterable(found), dtype=np.int64, count=int(sizes[-1].sum())))
    return np.concatenate(ids), np.cumsum(np.concatenate(sizes))


def splits_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens of a text are those of its words, each with the space before it; False where it is not known.

    That is so where the text is split into what becomes tokens by a pattern that is known to do so (GPT-2's, Qwen's and
    Llama 3's), and nothing before it looks beyond a space.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    settings = json.loads(backend.to_str())
    if settings["model"].get("dropout") or not all(map(_is_plain_token, settings["added_tokens"])):
        return False
    if any(one["type"] != "NFC" for one in _members(settings["normalizer"], "normalizers")):
        return False
    steps = _members(settings["pre_tokenizer"], "pretokenizers")
    return all(map(_is_local, steps)) and any(map(_splits_words, steps))


def _members(step: dict | None, name: str) -> list[dict]:
    """A step of a tokenizer, or those of a sequence."""
    if step is None:
        return []
    return step[name] if step["type"] == "Sequence" else [step]


def _is_plain_token(token: dict) -> bool:
    """Whether an added token is found in a text whatever stands beyond the spaces around it."""
    return not (
        token["lstrip"] or token["rstrip"] or token["single_word"] or re.search(r"\s\S|\S\s", token["content"])
    )


def _splits_words(step: dict) -> bool:
    if step["type"] == "ByteLevel":
        return step["use_regex"]
    return step["type"] == "Split"


def _is_local(step: dict) -> bool:
    if step["type"] == "Split":
        is_known = step["pattern"].get("Regex") in _SPLITTING
        return is_known and step["behavior"] == "Isolated" and not step["invert"]
    return step["type"] == "Digits" or (step["type"] == "ByteLevel" and not step["add_prefix_space"])
