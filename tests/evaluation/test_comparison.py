"""Systems side by side: the same utterances, paired samples, and what must not be compared."""

import json

import numpy as np
import pytest

from modeling_part.evaluation.comparison import compare, compare_predictions
from modeling_part.evaluation.reports import write_report
from modeling_part.evaluation.scoring import annotate, score, write_predictions


def system(seed: int, share: float, count: int = 80) -> list[dict]:
    """Transcripts and translations whose words are wrong with probability `share`."""
    generator = np.random.default_rng(seed)
    rows = []
    for task, target in (("asr", "en"), ("s2tt", "fr")):
        for number in range(count):
            words = [f"w{(number * 7 + position) % 50}" for position in range(8)]
            heard = ["wrong" if generator.random() < share else word for word in words]
            row = {"id": f"{number}", "corpus": "made", "task": task, "source_lang": "en", "target_lang": target}
            rows.append({**row, "reference": " ".join(words), "hypothesis": " ".join(heard)})
    return annotate(rows)


def write_system(folder, rows, **settings):
    write_predictions(rows, folder / "predictions.jsonl")
    write_report(score(rows, bootstrap_samples=20, **settings), folder)
    return folder / "report.json"


def test_far_systems_differ_and_equal_ones_do_not():
    systems = {"first": system(0, 0.3), "better": system(1, 0.1), "same": system(0, 0.3), "alike": system(2, 0.3)}
    results = compare_predictions(systems, samples=500)
    assert [(result["group"], result["measure"]) for result in results] == [
        ("asr/en", "error_rate"),
        ("s2tt/en-fr", "bleu"),
        ("s2tt/en-fr", "error_rate"),
        ("asr, average", "error_rate"),
        ("s2tt, average", "bleu"),
        ("s2tt, average", "error_rate"),
    ]
    for result in results:
        first, better, same, alike = (result["systems"][name] for name in systems)
        assert set(first) == {"value", "interval"}
        assert better["difference"] == pytest.approx(better["value"] - first["value"])
        assert (better["difference"] > 0) == (result["measure"] == "bleu")
        assert better["p_value"] < 0.01
        low, high = better["difference_interval"]
        assert low <= better["difference"] <= high and not low <= 0 <= high
        assert same["difference"] == 0 and same["p_value"] == 1 and same["difference_interval"] == [0, 0]
        assert alike["p_value"] > 0.05
    report = score(systems["better"], bootstrap_samples=20)
    assert results[0]["systems"]["better"]["value"] == report["groups"]["asr/en"]["error_rate"]
    assert results[1]["systems"]["better"]["value"] == report["groups"]["s2tt/en-fr"]["bleu"]


def test_pairing_makes_a_small_consistent_gain_visible():
    """Each utterance one error better: unpaired intervals overlap, the paired difference is certain."""
    rows = {"first": [], "better": []}
    generator = np.random.default_rng(0)
    for number in range(60):
        words = [f"w{position}" for position in range(12)]
        errors = generator.integers(1, 12)
        for name, wrong in (("first", errors), ("better", errors - (number % 2))):
            row = {"id": str(number), "corpus": "made", "task": "asr", "source_lang": "en", "target_lang": "en"}
            rows[name].append(
                {**row, "reference": " ".join(words), "hypothesis": " ".join(["x"] * wrong + words[wrong:])}
            )
    result = compare_predictions({name: annotate(members) for name, members in rows.items()}, samples=500)[0][
        "systems"
    ]
    assert result["better"]["interval"][1] > result["first"]["value"]
    assert result["better"]["p_value"] < 0.01


def test_an_average_over_languages_counts_all_and_is_surer_than_each():
    """Utterances are drawn for each language on its own, so that chance in one does not add to that in another."""
    systems = {}
    for name, seed, share in (("first", 0, 0.3), ("other", 1, 0.3)):
        rows = [row for row in system(seed, share, count=100) if row["task"] == "asr"]
        systems[name] = annotate(
            [{**row, "source_lang": code, "target_lang": code} for code in ("en", "sv") for row in rows]
        )
    *languages, average = compare_predictions(systems, samples=1000)
    assert [one["utterances"] for one in (*languages, average)] == [100, 100, 200]
    of_each = [np.ptp(one["systems"]["other"]["difference_interval"]) for one in languages]
    spread = np.ptp(average["systems"]["other"]["difference_interval"])
    assert spread == pytest.approx(np.mean(of_each) / 2**0.5, rel=0.15)


def test_one_utterance_tells_nothing():
    """The bootstrap draws the same one again and again, and would be certain."""
    rows = {name: system(seed, 0.5, count=1) for seed, name in enumerate(("first", "other"))}
    results = compare_predictions(rows, samples=100)
    assert any(result["systems"]["other"]["difference"] for result in results)
    assert {result["systems"]["other"]["p_value"] for result in results if result["utterances"] == 1} == {1}


def test_groups_without_reference_words_are_left_out():
    row = {"id": "1", "corpus": "made", "task": "asr", "source_lang": "en", "target_lang": "en", "hypothesis": "a"}
    rows = annotate([{**row, "reference": "..."}])
    assert compare_predictions({"first": rows, "second": rows}, samples=10) == []


def test_only_common_rows_are_compared_and_it_is_said(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = system(0, 0.2, count=10)
    paths = [write_system(tmp_path / "a", rows), write_system(tmp_path / "b", rows[3:][::-1])]
    results = compare(paths, samples=50)
    assert compare([path.parent for path in paths], samples=50) == results
    assert results[0]["utterances"] == 7
    assert results[0]["systems"].popitem()[1]["difference"] == 0
    assert "Only the 17 rows that all systems have" in capsys.readouterr().out


def test_what_must_not_be_compared(tmp_path):
    for name in "abcd":
        (tmp_path / name).mkdir()
    rows = system(0, 0.2, count=5)
    first = write_system(tmp_path / "a", rows)
    with pytest.raises(ValueError, match="at least two different"):
        compare([first])
    with pytest.raises(ValueError, match="at least two different"):
        compare([first, first])
    with pytest.raises(FileNotFoundError, match=r"b/report\.json does not exist"):
        compare([first, tmp_path / "b" / "report.json"])
    other = write_system(tmp_path / "b", [{**row, "reference": row["reference"] + " more"} for row in rows])
    with pytest.raises(ValueError, match="different references"):
        compare([first, other])
    other = write_system(tmp_path / "c", [{**row, "corpus": "else"} for row in rows])
    with pytest.raises(ValueError, match="no row in common"):
        compare([first, other])
    other = write_system(tmp_path / "d", rows, bleu_tokenizer="char")
    with pytest.raises(ValueError, match="counted differently"):
        compare([first, other])
    (tmp_path / "a" / "predictions.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"predictions\.jsonl does not exist"):
        compare([first, other])
    assert json.loads(first.read_text())["settings"]["bleu_tokenizer"] is None


def test_files_that_are_not_what_they_must_be_are_named(tmp_path):
    rows = system(0, 0.2, count=5)
    for name in "ab":
        (tmp_path / name).mkdir()
    first, second = (write_system(tmp_path / name, rows) for name in "ab")
    predictions = tmp_path / "b" / "predictions.jsonl"
    whole = predictions.read_text()
    predictions.write_text(whole + whole.splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"2 predictions share corpus, id, task and languages"):
        compare([first, second])
    predictions.write_text(whole.replace('"task": "asr"', '"task": "st"', 1))
    with pytest.raises(ValueError, match=r"task 'st' is none of"):
        compare([first, second])
    predictions.write_text(whole)
    for content, message in (
        ("null", "is missing, but must be an object"),
        ('{"groups": {}, "macro": {}, "settings": {}}', "'confidence' of 'settings' is missing"),
    ):
        second.write_text(content)
        with pytest.raises(ValueError, match=rf"{second}.*{message}.*part score"):
            compare([first, second])
