# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The tokens of many texts at once, in numpy: whatever stands in several texts is tokenised once.

Where a tokenizer never puts the end of one word and the beginning of the next into one token, that is the words: a
language repeats its words, and what is left for the tokenizer is its vocabulary. Otherwise it is the texts.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import pyarrow
import pyarrow.compute
from transformers import PreTrainedTokenizerBase


AT_A_TIME = 512  # pieces given to the tokenizer: what it makes of them still fits into the processor's cache
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
        which: `(texts,)` int32, which of the different texts each is.
        pieces: `(different texts + 1,)` int64, where the pieces of each of them begin and end in `codes`.
        codes: int32, which of the different pieces each is, text after text.
        ids: tokens of the different pieces, one after the other.
        bounds: `(different pieces + 1,)` int64, where those of each begin and end in `ids`.
    """

    lengths: np.ndarray
    repeats: np.ndarray
    which: np.ndarray
    pieces: np.ndarray
    codes: np.ndarray
    ids: np.ndarray
    bounds: np.ndarray

    def occurrences(self, chosen: np.ndarray, vocabulary_size: int) -> np.ndarray:
        """`(vocabulary_size,)` int64, how often each token occurs in the texts that `(texts,)` bool chooses."""
        sizes = np.diff(self.pieces)
        of_pieces = np.repeat(np.bincount(self.which[chosen], minlength=len(sizes)), sizes)
        times = np.bincount(self.codes, weights=of_pieces, minlength=len(self.bounds) - 1)
        counted = np.bincount(self.ids, weights=np.repeat(times, np.diff(self.bounds)), minlength=vocabulary_size)
        return counted[:vocabulary_size].astype(np.int64)


def text_tokens(
    batches: Sequence[pyarrow.Array],
    tokenizer: PreTrainedTokenizerBase,
    each: Callable[[Callable, Iterable], Iterable] = map,
) -> list[TextTokens]:
    """The tokens of batches of `(texts,)` strings, without special ones; a text that is null has none.

    Args:
        batches: the texts. What stands in several batches is tokenised once, too.
        tokenizer: the model's. In threads it may neither truncate nor pad.
        each: calls a function with each of several things, as `map` does or, with several threads, a pool's.
    """
    cut = list(each(partial(_cut, by_words=splits_at_spaces(tokenizer)), batches))
    pieces = pyarrow.chunked_array([one[-1] for one in cut]).unify_dictionaries().chunks
    different = pieces[0].dictionary
    parts = (different.slice(start, AT_A_TIME) for start in range(0, len(different), AT_A_TIME))
    found = list(each(partial(_encoded, tokenizer=tokenizer), parts))
    ids = np.concatenate([np.zeros(0, dtype=np.int64), *(ids for ids, _ in found)])
    bounds = np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *(sizes for _, sizes in found)]))
    codes = [one.indices.to_numpy(zero_copy_only=False) for one in pieces]
    parts = [(which, of_texts, some) for (which, of_texts, _), some in zip(cut, codes, strict=True)]
    return list(each(partial(_put_together, ids=ids, bounds=bounds), parts))


def _cut(texts: pyarrow.Array, by_words: bool) -> tuple[np.ndarray, np.ndarray, pyarrow.DictionaryArray]:
    """`which` and `pieces` of [`TextTokens`], and the pieces of the different texts."""
    table = pyarrow.compute.fill_null(texts.cast(pyarrow.large_string()), "").dictionary_encode()
    which, different = table.indices.to_numpy(zero_copy_only=False), table.dictionary
    if by_words:
        pieces, words = _words(different)
    else:
        pieces, words = np.arange(len(different) + 1, dtype=np.int64), different
    return which, pieces, words.dictionary_encode()


def _words(texts: pyarrow.LargeStringArray) -> tuple[np.ndarray, pyarrow.LargeStringArray]:
    """Words, each with the space before it: where those of each text begin and end, and all of them in the texts' bytes."""
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    begins = data == ord(" ")
    whole = pyarrow.compute.match_substring_regex(texts, _NOT_PLAIN).to_numpy(zero_copy_only=False)
    begins &= np.repeat(~whole, np.diff(offsets))
    begins[offsets[:-1][np.diff(offsets) > 0]] = True
    starts = np.append(np.flatnonzero(begins), len(data))
    buffers = [None, pyarrow.py_buffer(starts), pyarrow.py_buffer(data)]
    words = pyarrow.Array.from_buffers(pyarrow.large_string(), len(starts) - 1, buffers)
    return np.searchsorted(starts, offsets), words


def _put_together(parts: tuple[np.ndarray, np.ndarray, np.ndarray], ids: np.ndarray, bounds: np.ndarray) -> TextTokens:
    which, pieces, codes = parts
    sizes = np.diff(bounds)
    if not sizes.all():  # pieces without tokens stand between no others
        there = sizes[codes] > 0
        pieces, codes = np.concatenate([[0], np.cumsum(there)])[pieces], codes[there]
    filled = bounds[:-1][sizes > 0]
    alike = np.zeros(len(ids), dtype=bool)  # a token that is the same as the one before it in its piece
    alike[1:] = ids[1:] == ids[:-1]
    alike[filled] = False
    firsts, lasts = np.zeros((2, len(sizes)), dtype=np.int64)
    firsts[sizes > 0], lasts[sizes > 0] = ids[filled], ids[bounds[1:][sizes > 0] - 1]
    meets = np.zeros(len(codes), dtype=bool)  # a piece that begins as the one before it in its text ends
    meets[1:] = firsts[codes[1:]] == lasts[codes[:-1]]
    meets[pieces[:-1][np.diff(pieces) > 0]] = False
    lengths = _sums(sizes[codes], pieces)
    repeats = _sums(_sums(alike, bounds)[codes] + meets, pieces)
    return TextTokens(lengths[which], repeats[which], which, pieces, codes, ids, bounds)


def _sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Of the values between each two neighbouring bounds, the sum."""
    totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return totals[bounds[1:]] - totals[bounds[:-1]]


def _encoded(texts: pyarrow.Array, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of all texts one after the other, and how many each has."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        found = tokenizer(texts.to_pylist(), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    else:
        found = [one.ids for one in backend.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)]
    sizes = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
    return np.fromiter(chain.from_iterable(found), dtype=np.int64, count=int(sizes.sum())), sizes


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
