"""`report.html`: one file that holds everything, escaped; its pictures, its utterances and their sound."""

import copy
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import browser
import numpy as np
import pytest
import soundfile
import tiny_training
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_part.alignment_part import best_path
from modeling_part.evaluation import pictures
from modeling_part.evaluation.alignments import align_clip, choose_clips, write_alignments
from modeling_part.evaluation.reports import write_report
from modeling_part.evaluation.run_files import choose_examples, read_launches, read_stage
from modeling_part.evaluation.run_report import run_report, stage_report
from modeling_part.evaluation.scoring import annotate, score, write_predictions
from modeling_part.evaluation.utterances import Clips, choose_utterances, differences, frequent_substitutions
from modeling_part.recipes.files import CheckpointError
from modeling_part.training.launches import record_launch


EVIL = "<script>alert('x')</script> & <img src=x onerror=alert(1)>"


def prediction(number, task="asr", source="en", target="en", reference="one two", hypothesis="one two"):
    row = {"id": f"{number}", "corpus": "made", "task": task, "source_lang": source, "target_lang": target}
    return {**row, "reference": reference, "hypothesis": hypothesis, "source_text": None}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two stages: nine clips, transcripts that look like HTML, one with Arabic, and alignments."""
    folder = tmp_path_factory.mktemp("runs") / "odd <b>run"
    sound = folder.parent / "clip.wav"
    soundfile.write(sound, 0.1 * np.sin(np.arange(16_000) / 20), 16_000)
    rows = [prediction(number, hypothesis="one too") for number in range(8)]
    rows += [prediction("evil", reference=EVIL, hypothesis="</script><b>bold</b>")]
    rows += [prediction(number, "s2tt", "en", "ar", "واحد اثنان", "واحد") for number in range(4)]
    rows = annotate(rows)
    canonical = [
        {
            **{name: row[name] for name in ("id", "corpus", "task", "source_lang", "target_lang")},
            "text": row["reference"],
            "audio": {"path": str(sound if row["id"] != "3" else sound.with_name("none.wav")), "bytes": None},
            "start": 0.1 * index if index < 8 else None,
            "end": None,
        }
        for index, row in enumerate(rows)
    ]
    (folder / "data" / "test").mkdir(parents=True)
    dataset = Dataset.from_list(canonical)
    with (folder / "data" / "test" / "rows.arrow").open("wb") as file:
        import pyarrow

        with pyarrow.ipc.new_stream(file, dataset.features.arrow_schema) as writer:
            writer.write_table(pyarrow.Table.from_pylist(canonical, schema=dataset.features.arrow_schema))
    for name, parent, rate in (("adapter", None, 0.0), ("joint", "adapter", 1.0)):
        stage = folder / name
        stage.mkdir()
        record = {
            "parent": parent,
            "metrics": {},
            "base_models": {"audio_model": "models/<i>whisper</i>", "checkpoint": "runs/earlier/joint"},
            "trainable_parameters": {"adapter": 1234567, "encoder": 0},
            "hyperparameters": {"tasks": {"asr": 1.0}},
            "versions": {"torch": "2.13"},
            "data": {"rows": {"asr/en": 10, "s2tt/en-ar": 5}, "hours": {"asr/en": 0.5}},
        }
        (stage / "stage.json").write_text(json.dumps(record))
        history = [
            {"step": 10 * at, "loss": 1 / at, "asr_loss": 1 / at, "asr/en_loss": 1 / at, "asr_ctc_loss": 2 / at}
            | {"gate_open_share": rate, "learning_rate": 1e-3, "grad_norm/adapter": 2.0, "tokens_per_second": 100}
            for at in range(1, 4)
        ]
        (stage / "log_history.json").write_text(json.dumps([*history, {"step": 30, "train_runtime": 90.0}]))
        write_predictions(rows, stage / "predictions.jsonl")
        write_report(score(rows, bootstrap_samples=20), stage)
    alignment = {
        "id": "0",
        "language": "en",
        "text": EVIL,
        "seconds": 1.0,
        "tokens": ["$x$", "<b>"],
        "path": [-1, 0, 1],
    }
    alignment["probabilities"] = [[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.2, 0.0, 0.8]]
    (folder / "joint" / "alignments.json").write_text(json.dumps([alignment]))
    launch = {"command": "accelerate launch train_part.py x.yaml", "machine": "a machine", "started": "today"}
    (folder / "run.json").write_text(json.dumps([launch]))
    run_report(folder)
    return folder


@pytest.mark.parametrize("odd", [None, {}, "x", ["x"], [{"command": "x", "machine": None, "started": "today"}], [[]]])
def test_a_list_of_launches_that_is_none_is_named(tmp_path, odd):
    """By the report, and by the next start, which adds to it."""
    (tmp_path / "run.json").write_text(json.dumps(odd))
    with pytest.raises(
        CheckpointError, match=r"run\.json holds .* must be a list of launches with the texts command, "
    ):
        read_launches(tmp_path)
    arguments = SimpleNamespace(dry_run=False, hub_token=None, world_size=1)
    with pytest.raises(CheckpointError, match=r"move it away, and the next start writes a new one"):
        record_launch(tmp_path, arguments)
    assert json.loads((tmp_path / "run.json").read_text()) == odd
    (tmp_path / "run.json").unlink()
    record_launch(tmp_path, arguments)
    (launch,) = read_launches(tmp_path)
    assert set(launch) == {"command", "machine", "started"}


class Page(HTMLParser):
    """What tags a page has, its text, and the content of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


class TestPage:
    def test_nothing_is_fetched(self, page):
        addresses = [value for _, one in page.tags for name, value in one.items() if name in ("src", "href")]
        assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
        assert not page.named("link")

    def test_what_looks_like_markup_is_text(self, page):
        text = "".join(page.text)
        assert EVIL in text and "</script><b>bold</b>" in text and "models/<i>whisper</i>" in text
        assert "odd <b>run" in text
        assert not any("onerror" in one for _, one in page.tags)
        assert len(page.named("script")) == 2 and not page.named("i")

    def test_says_what_was_trained_on_what_how_long_where_and_how(self, page):
        text = " ".join("".join(page.text).split())
        for part in (
            "English (en)",
            "Started from",
            "runs/earlier/joint",
            "transcription 10 rows (0.50 h); speech translation 5 rows",
            "3 min in 2 stages",
            "accelerate launch train_part.py x.yaml",
            "a machine; from today",
            "adapter (1,234,567)",
            "torch 2.13",
        ):
            assert part in text, part

    def test_utterances_have_their_sound_and_say_when_not(self, page):
        (script,) = [part for part in page.text if part.startswith('["data:audio')]
        clips = json.loads(script)
        players = [int(one["data-clip"]) for one in page.named("audio")]
        assert set(players) == set(range(len(clips)))
        # Nine clips of asr, one of which is not there; the four translations name the whole file, as does the ninth.
        assert len(clips) == 8
        assert "audio file not found" in "".join(page.text)

    def test_counts_frequent_errors(self, page):
        text = " ".join(" ".join(page.text).split())
        assert re.search(r" en (two|2) too 8 ", text)

    def test_a_stage_has_its_own(self, run, tmp_path):
        (tmp_path / "run").mkdir()
        shutil.copytree(run / "data", tmp_path / "run" / "data")
        shutil.copytree(run / "joint", tmp_path / "run" / "joint")
        before = (run / "joint" / "report.json").read_bytes()
        path = stage_report(tmp_path / "run" / "joint")
        assert path == tmp_path / "run" / "joint" / "report.html"
        assert (tmp_path / "run" / "joint" / "report.json").read_bytes() == before
        assert {
            one["data-stage"] for one in Page(path.read_text(encoding="utf-8")).named("tr") if "data-stage" in one
        } == {"joint"}
        predicted = tmp_path / "predicted"  # what --do_predict leaves: no stage.json, no data
        predicted.mkdir()
        for name in ("predictions.jsonl", "report.json"):
            shutil.copy(run / "joint" / name, predicted)
        text = stage_report(predicted).read_text(encoding="utf-8")
        assert "the run&#39;s folder has no such row of test data" in text and not Page(text).named("audio")

    def test_what_was_corrected_by_hand_is_counted_anew(self, tmp_path):
        """The page shows which labels may be wrong; of a corrected one it showed the errors of the old text."""
        (row,) = annotate([prediction(1, reference="the cut", hypothesis="the cat")])
        write_predictions([{**row, "reference": "the cat"}], tmp_path / "predictions.jsonl")
        page = Page(stage_report(tmp_path).read_text(encoding="utf-8"))
        assert [one["data-errors"] for one in page.named("tr") if "data-errors" in one] == ["0.0"]
        assert len(page.named("del")) == len(page.named("ins")) == 1  # of the sentence that explains them

    def test_an_unevaluated_run_says_so(self, tmp_path, capsys):
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "stage.json").write_text('{"parent": null}')
        run_report(tmp_path)
        for file in ("report.md", "report.html"):
            assert "Nothing was evaluated yet" in (tmp_path / file).read_text(encoding="utf-8")
        assert "| figure |" not in (tmp_path / "report.md").read_text(encoding="utf-8")
        assert capsys.readouterr().out.startswith("Nothing was evaluated yet")


@pytest.fixture(scope="module")
def driver(run):
    driver = browser.open_browser()
    driver.get((run / "report.html").as_uri())
    yield driver
    driver.quit()


@browser.in_browser
class TestInBrowser:
    def shown(self, driver) -> int:
        script = "return [...document.querySelectorAll('#utterances tbody tr')].filter(row => !row.hidden).length"
        return driver.execute_script(script)

    def test_filters_sort_and_plays(self, driver):
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        everything = self.shown(driver)
        search = driver.find_element("id", "search")
        search.send_keys("ALERT")
        assert self.shown(driver) == 1 < everything
        search.clear()
        search.send_keys(" ")
        script = """
            const [choice] = document.querySelectorAll('select[data-field=task]');
            choice.value = 's2tt'; choice.dispatchEvent(new Event('change'));
        """
        driver.execute_script(script)
        assert self.shown(driver) == 4
        button = driver.find_element("css selector", "button[data-sort=errors]")
        values = "return [...document.querySelectorAll('#utterances tbody tr')].map(row => Number(row.dataset.errors))"
        button.click()
        assert driver.execute_script(values) == sorted(driver.execute_script(values), reverse=True)
        button.click()
        assert driver.execute_script(values) == sorted(driver.execute_script(values))
        duration = """
            const done = arguments[0], player = document.querySelector('audio');
            player.addEventListener('loadedmetadata', () => done(player.duration)); player.load();
            player.preload = 'metadata';
        """
        assert 0.1 < driver.execute_async_script(duration) < 1.2

    @pytest.mark.parametrize("width", [1280, 390])
    def test_fits_the_width(self, driver, width):
        browser.set_width(driver, width)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width


class TestUtterances:
    def test_differences_are_those_that_count(self):
        (row,) = annotate([prediction(1, reference="A cat sits here.", hypothesis="a cat sat here right")])
        assert differences(row) == [
            ("equal", "a cat", "a cat"),
            ("substitute", "sits", "sat"),
            ("equal", "here", "here"),
            ("insert", "", "right"),
        ]
        (row,) = annotate([prediction(1, source="zh", target="zh", reference="红色的太阳", hypothesis="红色太阳")])
        assert differences(row) == [("equal", "红色", "红色"), ("delete", "的", ""), ("equal", "太阳", "太阳")]

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.tuples(*[st.text("abc ", max_size=8)] * 2), min_size=1, max_size=5))
    def test_differences_hold_both_texts_and_all_errors(self, pairs):
        rows = annotate([prediction(at, reference=one, hypothesis=other) for at, (one, other) in enumerate(pairs)])
        for row in rows:
            found = differences(row)
            assert " ".join(filter(None, (said for _, said, _ in found))) == row["normalized_reference"]
            assert " ".join(filter(None, (written for _, _, written in found))) == row["normalized_hypothesis"]
        errors = sum(row[kind] for row in rows for kind in ("substitutions", "deletions", "insertions"))
        assert sum(count for *_, count in frequent_substitutions(rows, most=10_000)) == errors

    def test_the_worst_of_every_language_come_first(self):
        rows = [prediction(number, hypothesis="wrong wrong") for number in range(10)]
        rows += [prediction(number, source="fr", target="fr", hypothesis="one") for number in range(3)]
        rows += [prediction(number, source="de", target="de") for number in range(20)]
        chosen = choose_utterances(annotate(rows), worst=4, sample=5)
        assert [row["target_lang"] for row, kind in chosen if kind == "worst"] == ["en", "fr", "en", "fr"]
        again = choose_utterances(annotate(reversed(rows)), worst=4, sample=5)
        assert chosen == again and 1 <= sum(kind == "random" for _, kind in chosen) <= 5

    def test_sound_stops_where_the_report_is_full(self):
        sound = tiny_training.wav_bytes(0.1 * np.sin(np.arange(32_000) / 9).astype(np.float32))
        rows = [prediction(number) | {"audio": {"path": None, "bytes": sound}} for number in range(4)]
        clips = Clips(Dataset.from_list([{**row, "start": None, "end": None} for row in rows]), most_bytes=9_000)
        numbers = [clips.number(row) for row in rows]
        kept = [number for number in numbers if number is not None]
        assert 0 < len(kept) < 4 and kept == list(range(len(kept)))
        assert clips.missing == {"the report is full": 4 - len(kept)}
        assert sum(map(len, clips.uris)) < 9_000 * 4 / 3 + 200

    def test_examples_are_of_different_languages(self):
        languages = ("en", "es", "fr", "it", "ru")
        rows = [prediction(0, source=one, target=one) for one in languages]
        rows += [prediction(0, "s2tt", *pair) for pair in itertools.permutations(languages, 2)]
        chosen = choose_examples(rows)
        assert len(chosen) == 6 and sum(row["task"] == "asr" for row in chosen) == 3
        assert len({row["target_lang"] for row in chosen if row["task"] == "s2tt"}) == 3
        assert len({row["source_lang"] for row in chosen if row["task"] == "s2tt"}) == 3


class TestAlignments:
    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_the_path_is_the_best_of_all(self, data):
        length, classes = data.draw(st.integers(1, 5)), 3
        targets = data.draw(st.lists(st.integers(1, classes - 1), min_size=1, max_size=3))
        seed = data.draw(st.integers(0, 1000))
        log_probs = torch.randn(length, classes, generator=torch.Generator().manual_seed(seed)).log_softmax(-1).numpy()
        scores = {}
        for labels in itertools.product(range(classes), repeat=length):  # every path, by its definition
            written = [one for one, _ in itertools.groupby(labels) if one != 0]
            if written == targets:
                scores[labels] = sum(log_probs[at, one] for at, one in enumerate(labels))
        if not scores:
            with pytest.raises(ValueError, match="do not fit"):
                best_path(log_probs, targets)
            return
        path = best_path(log_probs, targets)
        labels = tuple(0 if at < 0 else targets[at] for at in path)
        assert scores[labels] == pytest.approx(max(scores.values()), abs=1e-5)
        tokens = [at for at, _ in itertools.groupby(path) if at >= 0]
        assert tokens == list(range(len(targets)))

    def test_clips_of_a_model_with_a_head(self, tmp_path):
        model, processor = tiny_training.tiny_model()
        dataset = tiny_training.tiny_dataset(count=2, words=(1, 1))
        assert (
            write_alignments(model, processor, dataset, tmp_path) == [] and not (tmp_path / "alignments.json").exists()
        )
        model.add_alignment_head(torch.ones(model.config.text_config.vocab_size))
        row = dataset[choose_clips(dataset)[0]]
        row["text"] = "a"
        found = align_clip(model, processor, row)
        probabilities = np.array(found["probabilities"])
        assert probabilities.shape == (len(found["path"]), 1 + len(found["tokens"]))
        assert (probabilities >= 0).all() and (probabilities <= 1).all()
        assert {*found["path"]} <= {-1, *range(len(found["tokens"]))}
        assert found["language"] == "en" and found["tokens"] == ["a"]
        # What looks like a special token is text, as CTC has learned it.
        row["text"] = "<s>"
        processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<s>"]})
        assert align_clip(model, processor, row)["tokens"] == ["<", "s", ">"]

    def test_one_clip_of_each_language_and_none_that_is_long(self):
        rows = [
            {"task": "asr", "source_lang": "en", "duration": 60.0},
            {"task": "s2tt", "source_lang": "en", "duration": 1.0},
        ]
        rows += [{"task": "asr", "source_lang": code, "duration": 2.0} for code in ("en", "fr", "en", "de")]
        assert choose_clips(rows) == [5, 2, 3]


class TestPictures:
    @pytest.fixture
    def stages(self, run) -> list[dict]:
        return [read_stage(run / name) for name in ("adapter", "joint")]

    def test_curves_go_on_through_the_stages(self, stages):
        first, second = pictures.curve(stages, "loss")
        assert first == [(10, 1.0), (20, 0.5), (30, 1 / 3)] and second[0] == (40, 1.0)
        figure = pictures.plot_losses(stages)
        assert [axes.get_title(loc="left") for axes in figure.axes] == [
            "Loss of the answers, nats per token",
            "Loss of the alignment (CTC), nats per transcript token",
        ]
        assert [line.get_label() for line in figure.axes[0].lines][:1] == ["transcription, training"]

    def test_every_kind_of_curve_is_drawn_once(self, stages):
        titles = [figure.axes[0].get_title(loc="left") for figure in pictures.plot_curves(stages)]
        assert titles == [
            "Transcription: training loss by language, nats per token",
            "Learning rate",
            "Share of the batches with the gate open, %",
            "Speed, tokens per second",
            "Norm of the gradients by part, before clipping",
        ]

    def test_scores_have_their_intervals(self, stages):
        figure = pictures.plot_scores(stages)
        group = stages[0]["report"]["groups"]["asr/en"]
        axes = figure.axes[0]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == ["average", "en"] and len(figure.axes) == 2
        segments = [container.lines[2][0].get_segments()[0][:, 0] for container in axes.containers]
        assert any(
            np.allclose(segment, [100 * bound for bound in group["error_rate_interval"]]) for segment in segments
        )

    def test_scores_of_many_languages_say_how_many_are_left_out(self, stages):
        for languages, title in ((40, "95 % intervals"), (45, "95 % intervals, first 40 of 45")):
            report = copy.deepcopy(stages[0]["report"])
            group = next(one for name, one in report["groups"].items() if name.startswith("asr/"))
            names = [f"{chr(97 + at // 26)}{chr(97 + at % 26)}" for at in range(languages)]
            report["groups"] = {f"asr/{name}": group for name in names}
            axes = pictures.plot_scores([{**stages[0], "report": report}]).axes[0]
            assert axes.get_title(loc="left").endswith(title)
            assert [label.get_text() for label in axes.get_yticklabels()] == ["average", *names[:40]]

    def test_many_languages_stay_readable(self):
        entry = {"step": 1, **{f"asr/{chr(97 + at // 26)}{chr(97 + at % 26)}_loss": float(at) for at in range(60)}}
        stage = {"name": "a", "steps": 2, "log_history": [entry, {**entry, "step": 2}]}
        (figure,) = pictures.plot_curves([stage])
        (legend,) = figure.legends
        assert len(legend.get_texts()) == pictures.MOST_LINES and legend.get_title().get_text() == "highest 10 of 60"


def test_a_log_without_losses_by_task_shows_the_whole_loss():
    log = [{"step": 1, "loss": 1.0}, {"step": 2, "eval_loss": 2.0}]
    figure = pictures.plot_losses([{"name": "a", "steps": 2, "log_history": log}])
    assert figure.axes[0].get_title(loc="left") == "Loss, nats per token"
    assert pictures.plot_losses([{"name": "a", "steps": 0, "log_history": []}]) is None
