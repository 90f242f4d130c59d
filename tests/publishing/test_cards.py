"""Model cards: metadata that the Hub reads, and a body that states no figure of its own."""

import json
import re

import jinja2
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import places
from markdown_it import MarkdownIt
from test_publishing import REPO, stage_info
from tiny import REPOSITORY

from modeling_part.evaluation.scoring import score
from modeling_part.publishing.cards import base_license, group_languages, render_card, write_card
from modeling_part.recipes.files import CheckpointError
from modeling_part.recipes.stage_record import write_stage_json
from modeling_part.requirements_part import OLDEST_TRANSFORMERS


CARDS = REPOSITORY / "model_cards"


@pytest.fixture(scope="module")
def report() -> dict:
    """A report of two corpora, counted by the evaluation itself."""

    def row(number, corpus, task, source, target, reference, hypothesis):
        names = ("id", "corpus", "task", "source_lang", "target_lang", "reference", "hypothesis")
        return dict(zip(names, (str(number), corpus, task, source, target, reference, hypothesis), strict=True))

    rows = [
        row(0, "fleurs", "asr", "en", "en", "a cat sits here", "a cat sat here"),
        row(1, "fleurs", "asr", "en", "en", "the red sun", "the red sun"),
        row(2, "fleurs", "asr", "zh-CN", "zh-CN", "红色的太阳", "红色太阳"),
        row(3, "covost2", "s2tt", "zh-CN", "en", "the sun is red and warm", "the sun is red and cold"),
        row(4, "covost2", "s2tt", "zh-CN", "en", "a cat sits by the sea", "a cat sat by the sea"),
    ]
    unnamed = [{**rows[0], "hypothesis": "a cat"}, {**rows[1], "hypothesis": "der rote sonne"}, rows[2]]
    return score(rows, unnamed=unnamed, bootstrap_samples=50)


def numbers(text: str) -> set[str]:
    """All numbers in a text; separators between thousands are left out."""
    return set(re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)))


def input_numbers(value) -> set[str]:
    """The numbers in nested inputs, as a card may round them."""
    if isinstance(value, dict):
        return set().union(*(input_numbers(item) for pair in value.items() for item in pair), set())
    if isinstance(value, (list, tuple)):
        return set().union(*(input_numbers(item) for item in value), set())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        forms = (f"{value}", f"{value:.1f}", f"{100 * value:.1f}", f"{100 * value:g}", f"{value:.4g}")
        return set().union(*(numbers(form) for form in forms))
    return numbers(str(value))


def template_numbers() -> set[str]:
    """Numbers that the template itself says, outside its expressions, and in the names of licences."""
    tokens = jinja2.Environment().lex((CARDS / "model_card.md").read_text())
    static = " ".join(text for _, kind, text in tokens if kind == "data")
    return numbers(static + (CARDS / "base_licenses.json").read_text())


@pytest.mark.parametrize("with_report", [True, False])
def test_every_figure_of_a_card_is_in_its_inputs(report, with_report):
    report = report if with_report else None
    body = ModelCard(render_card(stage_info(), report, repo_id=REPO)).text
    known = input_numbers(stage_info()) | input_numbers(report) | template_numbers() | numbers(REPO)
    assert f"transformers {OLDEST_TRANSFORMERS} or newer" in body
    known |= numbers(OLDEST_TRANSFORMERS)
    assert numbers(body) - known == set()


def test_a_card_shows_the_measured_figures_and_their_intervals(report):
    body = ModelCard(render_card(stage_info(), report, repo_id=REPO)).text
    english = report["groups"]["asr/en"]
    low, high = english["error_rate_interval"]
    assert english["error_rate"] == pytest.approx(1 / 7)
    assert f"| asr | en | WER 14.3 [{100 * low:.1f}, {100 * high:.1f}] | – | – | 2 |" in body
    assert "| asr | zh-CN | CER 20.0" in body
    assert f"{report['groups']['s2tt/zh-CN-en']['bleu']:.1f} [" in body
    assert "- adapter: 7,654,321 parameters" in body and "Frozen in this stage: language_model." in body
    assert "| asr | en | 1,234 | 2.346 |" in body and "| mt | en-fr | 90 | – |" in body
    assert "- openai/whisper-large-v3: apache-2.0" in body


def test_a_card_begins_with_the_averages_languages_and_how_to_use_it(report):
    body = ModelCard(render_card(stage_info(), report, repo_id=REPO)).text
    bleu = report["macro"]["s2tt"]["bleu"]
    rate = 100 * report["macro"]["asr"]["error_rate"]
    assert (
        f"**Speech recognition: CER/WER {rate:.1f} % (mean of 2 languages); Speech translation: BLEU {bleu:.1f}**"
        in body
    )
    assert "Trained on: English (en), French (fr), Chinese (zh-CN)." in body
    assert 'pipe("clip.wav", source_lang="en")["text"]' in body
    assert "loss.png" not in body and "| said |" not in body


def test_samples_and_the_curve_come_where_they_are_given(report):
    row = {"task": "asr", "source_lang": "en", "target_lang": "en", "reference": "a|b <i>", "hypothesis": "**c**"}
    body = ModelCard(render_card(stage_info(), report, repo_id=REPO, samples=[row], has_curve=True)).text
    assert r"| asr | en | a\|b \<i> | \*\*c\*\* |" in body
    assert "](loss.png)" in body


def test_the_card_of_a_folder_says_how_the_folder_is_used_and_leaves_edits_alone(tmp_path, report):
    folder = tmp_path / "joint"
    folder.mkdir()
    write_stage_json(folder, stage_info())
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "log_history.json").write_text('[{"step": 1, "asr_loss": 2.0}, {"step": 2, "asr_loss": 1.0}]')
    path = write_card(folder)
    text = path.read_text()
    assert f'pipeline("speech-to-text", model="{folder}")' in text and "trust_remote_code" not in text
    assert "](loss.png)" in text and (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    ModelCard(text)
    assert write_card(folder) == path  # made anew
    path.write_text("my own words")
    assert write_card(folder) is None and path.read_text() == "my own words"
    path.write_bytes("d\u00e9j\u00e0 vu".encode("latin-1"))
    assert write_card(folder) is None


def test_a_card_and_its_picture_are_not_written_through_links(tmp_path):
    folder = tmp_path / "joint"
    folder.mkdir()
    write_stage_json(folder, stage_info())
    (folder / "log_history.json").write_text('[{"step": 1, "asr_loss": 2.0}, {"step": 2, "asr_loss": 1.0}]')
    mine = tmp_path / "mine.png"
    mine.write_text("mine")
    (folder / "loss.png").symlink_to(mine)
    write_card(folder)
    assert mine.read_text() == "mine" and (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "notes.md")
    assert write_card(folder) is None and not (tmp_path / "notes.md").exists()


def test_a_card_shows_transcripts_that_were_asked_for_without_the_language(report):
    card = render_card(stage_info(), report, repo_id=REPO)
    _, _, section = card.partition("### Transcription, the language not named")
    group = report["unnamed"]["groups"]["asr/en"]
    assert f"| asr | en | WER {100 * group['error_rate']:.1f} [" in section.partition("\n\n#")[0]
    del (once := dict(report))["unnamed"]
    assert "language not named" not in render_card(stage_info(), once, repo_id=REPO)


def test_a_card_without_report_says_so():
    card = ModelCard(render_card(stage_info(), repo_id=REPO))
    assert "No evaluation came with this checkpoint." in card.text
    assert card.data.eval_results is None and card.data.metrics is None


def test_a_folder_that_is_not_here_any_more_is_no_base_model():
    info = stage_info(base_models={"audio_model": "./whisper-base", "language_model": "../b"})
    assert ModelCard(render_card(info, repo_id=REPO)).data.base_model is None


def test_metadata_is_what_the_hub_reads(report):
    info = stage_info(datasets=["google/fleurs"], base_models={"audio_model": "whisper-base", "language_model": "a/b"})
    card = ModelCard(render_card(info, report, repo_id=REPO, license="apache-2.0"))
    data = card.data
    assert {name: getattr(data, name) for name in ("library_name", "pipeline_tag", "license")} == {
        "library_name": "transformers",
        "pipeline_tag": "automatic-speech-recognition",
        "license": "apache-2.0",
    }
    assert data.language == ["en", "fr", "zh"]
    assert data.base_model == ["a/b"]  # a local folder is no base model on the Hub
    assert data.datasets == ["google/fleurs"]
    assert data.metrics == ["bleu", "cer", "chrf", "wer"]
    results = {
        (result.dataset_type, result.dataset_config, result.metric_type): result for result in data.eval_results
    }
    assert set(results) == {
        ("fleurs", "en", "wer"),
        ("fleurs", "zh-CN", "cer"),
        ("covost2", "zh-CN-en", "bleu"),
        ("covost2", "zh-CN-en", "chrf"),
    }
    assert results["fleurs", "en", "wer"].metric_value == 14.3
    assert results["covost2", "zh-CN-en", "bleu"].task_type == "translation"


@pytest.mark.parametrize(
    ("group", "languages"),
    [
        ("asr/rm-sursilv", ["rm-sursilv"]),
        ("asr/ca-valencia", ["ca-valencia"]),
        ("asr/zh-yue", ["zh-yue"]),
        ("asr/nan-TW", ["nan-TW"]),
        ("s2tt/rm-sursilv-ca-valencia", ["rm-sursilv", "ca-valencia"]),
        ("s2tt/sr-Latn-RS-es-419", ["sr-Latn-RS", "es-419"]),
        ("mt/en-zh-Hans", ["en", "zh-Hans"]),
        ("mt/ast-hsb", ["ast", "hsb"]),
        ("s2tt/en-fr-de", []),
        ("asr", []),
    ],
)
def test_languages_of_a_group(group, languages):
    assert group_languages(group) == languages


tags = st.tuples(
    st.sampled_from(["en", "no", "rm", "nan", "hsb", "zh", "ca"]),
    st.sampled_from(["", "-Latn", "-Hant"]),
    st.sampled_from(["", "-TW", "-419"]),
    st.sampled_from(["", "-valencia", "-sursilv", "-1996"]),
).map("".join)


@settings(deadline=None)
@given(tags, tags)
def test_every_language_of_a_card_is_one_that_was_trained(source, target):
    info = stage_info(
        data={"fingerprint": "x", "rows": {f"asr/{source}": 1, f"s2tt/{source}-{target}": 2}, "hours": {}}
    )
    card = render_card(info, repo_id=REPO)
    assert yaml.safe_load(card.split("---")[1])["language"] == sorted({tag.split("-")[0] for tag in (source, target)})
    assert f'source_lang="{source}"' in card


ODD = [
    "<img src=x onerror=alert(1)>",
    "a\n# heading",
    "a\n---\nb: c",
    "[x](http://evil.example)",
    "`",
    "a|b",
    "no",
    "{{ 7*7 }}",
    "'\": - #",
    "**b**",
]


@pytest.mark.parametrize("text", ODD)
def test_names_are_shown_as_they_are_and_break_nothing(text, report):
    report = {**report, "corpora": {text: {key: report[key] for key in ("groups", "macro")}, "made": report}}
    info = stage_info(
        parent=text,
        base_models={"audio_model": text, "language_model": "a/b"},
        hyperparameters={text: text},
        trainable_parameters={text: 1, f"{text}2": 0},
        versions={text: text},
        data={"fingerprint": text, "rows": {f"asr/{text}": 1}, "hours": {}},
        datasets=[text],
    )
    card = ModelCard(render_card(info, report, repo_id=REPO))
    assert card.data.datasets == [text]
    assert {result.dataset_type for result in card.data.eval_results} == {text, "made"}
    clean = ModelCard(render_card(stage_info(), {**report, "corpora": {"x": report, "made": report}}, repo_id=REPO))
    headings = [line for line in clean.text.splitlines() if line.startswith("#")]
    assert [line for line in card.text.splitlines() if line.startswith("#") and line != headings[-1]][:4] == headings[
        :4
    ]
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(card.text)
    assert "<img" not in html and 'evil.example"' not in html and "<strong>b</strong>" not in html and "49" not in html


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_models": {"audio_model": None}}, r"'audio_model' of 'base_models' is None, but must be str"),
        ({"trainable_parameters": {"adapter": "many"}}, r"'adapter' of 'trainable_parameters' is 'many'"),
        ({"versions": {"torch": 2.1}}, r"'torch' of 'versions' is 2\.1"),
        ({"data": {"fingerprint": "x", "rows": {"asr/en": None}, "hours": {}}}, r"'asr/en' of 'rows' is None"),
        ({"data": {"fingerprint": "x", "rows": {}, "hours": {"asr/en": "1 h"}}}, r"'asr/en' of 'hours' is '1 h'"),
        ({"datasets": [None]}, r"None of 'datasets' is no name"),
        ({"data": None}, "'data' is a NoneType"),
    ],
)
def test_a_record_with_odd_parts_is_refused_by_name(change, message):
    with pytest.raises(CheckpointError, match=message):
        render_card(stage_info(**change), repo_id=REPO)


def test_parts_that_may_be_empty_are_gaps():
    info = stage_info(
        data={"fingerprint": "x", "rows": {"asr/en": 5}, "hours": {"asr/en": None}}, trainable_parameters={}
    )
    assert "| asr | en | 5 | – |" in render_card(info, repo_id=REPO)


@pytest.mark.parametrize(
    ("repo_id", "license"), [("a/b\n# c", None), ("", None), ("a/b", "my licence"), ("a/b", "x\ny")]
)
def test_names_that_are_none_are_refused(repo_id, license):
    with pytest.raises(ValueError, match=r"License|epo"):
        render_card(stage_info(), repo_id=repo_id, license=license)


def test_a_card_names_the_normalisers(report):
    text = render_card(stage_info(), report, repo_id=REPO)
    assert "- english (en): Whisper's" in text and "- basic (zh-CN): Whisper's" in text


def test_texts_cannot_break_the_tables_of_a_card():
    info = stage_info(hyperparameters={"a|b": "x | y\nz"})
    assert r"| a\|b | x \| y z |" in render_card(info, repo_id=REPO)


@pytest.mark.parametrize(
    ("model", "license"),
    [
        ("openai/whisper-large-v3-turbo", "mit"),
        ("Qwen/Qwen2.5-3B-Instruct", "qwen-research"),
        ("Qwen/Qwen2.5-7B", "apache-2.0"),
        ("somebody/model", "unknown: check"),
        ("somebody/whisper-base", "unknown: check"),
        ("whisper-base", "apache-2.0 (known by its name)"),
        ("my/models/whisper-base", "apache-2.0 (known by its name)"),
        ("my_model", "unknown: check"),
    ],
)
def test_licences_of_base_models(model, license):
    assert base_license(model) == license


def test_the_example_card_is_rendered_from_its_inputs():
    inputs = {name: json.loads((CARDS / f"example_{name}.json").read_text()) for name in ("stage", "report")}
    card = render_card(inputs["stage"], inputs["report"], repo_id="USER/part-example")
    assert card == (CARDS / "example.md").read_text()


@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from(["report", "stage"]))
def test_inputs_that_were_changed_make_a_card_or_are_refused_by_name(report, data, which):
    inputs = {"report": json.loads(json.dumps(report)), "stage": json.loads(json.dumps(stage_info()))}
    place = data.draw(st.sampled_from(places(inputs[which])))
    parent = inputs[which]
    for key in place[:-1]:
        parent = parent[key]
    odd = (
        st.none()
        | st.booleans()
        | st.integers(-5, 5)
        | st.floats()
        | st.sampled_from(["", *ODD, [], {}, [1], {"a": 1}])
    )
    if isinstance(parent, dict) and data.draw(st.booleans()):
        del parent[place[-1]]
    else:
        parent[place[-1]] = data.draw(odd)
    try:
        card = render_card(inputs["stage"], inputs["report"], repo_id=REPO)
    except CheckpointError as error:
        assert any(f"{key!r}" in str(error) or f"'{key}" in str(error) for key in place) or "cannot be a tag" in str(
            error
        )
    else:
        html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(ModelCard(card).text)
        assert "<img" not in html and "<strong>b</strong>" not in html
