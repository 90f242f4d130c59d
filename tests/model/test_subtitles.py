"""Subtitles: what is written in each format, and that nothing said is lost."""

import json
import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from modeling_part.subtitles_part import CHARACTERS, FORMATS, LONGEST, cues


ANSWER = {
    "text": "Hello you & me. Is it <late>? Yes",
    "chunks": [
        {"text": "Hello", "timestamp": (0.5, 0.9)},
        {"text": " you", "timestamp": (0.9, 1.0)},
        {"text": " & me.", "timestamp": (1.0, 1.25)},
        {"text": " Is", "timestamp": (1.3, 1.5)},
        {"text": " it", "timestamp": (1.5, 1.6)},
        {"text": " <late>?", "timestamp": (1.6, 2.0)},
        {"text": " Yes", "timestamp": (3661.0, 3661.5)},
    ],
}


def test_formats_are_those_of_players():
    assert FORMATS["srt"](ANSWER) == (
        "1\n00:00:00,500 --> 00:00:01,250\nHello you & me.\n\n"
        "2\n00:00:01,300 --> 00:00:02,000\nIs it <late>?\n\n"
        "3\n01:01:01,000 --> 01:01:01,500\nYes\n"
    )
    vtt = FORMATS["vtt"](ANSWER)
    assert vtt.startswith("WEBVTT\n\n00:00:00.500 --> 00:00:01.250\nHello you &amp; me.\n\n")
    assert "Is it &lt;late&gt;?" in vtt
    assert FORMATS["tsv"](ANSWER).splitlines()[:2] == ["start\tend\ttext", "500\t1250\tHello you & me."]
    assert FORMATS["txt"](ANSWER) == f"{ANSWER['text']}\n"
    read = json.loads(FORMATS["json"](ANSWER))
    assert read["segments"][1] == {"start": 1.3, "end": 2.0, "text": "Is it <late>?"}
    assert len(read["chunks"]) == 7 and read["text"] == ANSWER["text"]


def test_words_without_times_are_shown_as_long_as_they_are_read():
    chunks = [
        {"text": "Hello.", "timestamp": (0.0, 1.0)},
        {"text": "x" * 60 + ".", "timestamp": (None, None)},
        {"text": "Yes.", "timestamp": (3.0, 3.5)},
        {"text": "y" * 24, "timestamp": (None, None)},
    ]
    found = cues({"text": "", "chunks": chunks})
    assert [(one.start, one.end) for one in found] == [
        (0.0, 1.0),
        (1.0, 3.0),
        (3.0, 3.5),
        (3.5, 3.5 + 24 * LONGEST / CHARACTERS),
    ]


def test_a_word_of_no_time_is_shown_all_the_same():
    chunks = [
        {"text": "Yes.", "timestamp": (1.06, 1.06)},
        {"text": " No.", "timestamp": (1.2, 1.2)},
        {"text": " One.", "timestamp": (9.0, 9.5)},
    ]
    shown = [(one.start, one.end) for one in cues({"text": "Yes. No. One.", "chunks": chunks})]
    assert shown == [(1.06, 1.2), (1.2, 1.2 + len(" No.") * LONGEST / CHARACTERS), (9.0, 9.5)]


WORDS = st.lists(
    st.tuples(
        st.sampled_from(["one", "two.", "tree,", "a" * 30, "end?"]),
        st.floats(0, 2),
        st.floats(0.01, 3),
        st.booleans(),
    ),
    max_size=30,
)


@given(WORDS)
def test_nothing_is_lost_and_subtitles_follow_each_other(words):
    chunks, now = [], 0.0
    for text, pause, length, is_known in words:
        now += pause
        times = (now, now + length) if is_known else (None, None)
        chunks.append({"text": f" {text}" if chunks else text, "timestamp": times})
        now += length if is_known else 0.0
    answer = {"text": "".join(chunk["text"] for chunk in chunks), "chunks": chunks}
    found = cues(answer)
    assert " ".join(cue.text for cue in found).split() == answer["text"].split()
    assert all(cue.start <= cue.end for cue in found)
    assert all(one.end <= other.start + 1e-9 for one, other in pairwise(found))
    assert all(len(cue.text) <= CHARACTERS + 1 for cue in found)
    assert all(cue.end - cue.start <= LONGEST + 3 for cue in found)
    assert len(re.findall(r"^\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}$", FORMATS["srt"](answer), re.M)) == len(
        found
    )


def test_silence_has_no_subtitles():
    silence = {"text": "", "chunks": [{"text": "", "timestamp": (0.0, 4.0)}]}
    assert cues(silence) == [] and FORMATS["srt"](silence) == "" and FORMATS["vtt"](silence) == "WEBVTT\n"
