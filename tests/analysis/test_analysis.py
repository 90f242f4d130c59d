# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Gradient similarity against brute force, probes where the answer is known, drift of weights that were moved by hand."""

import json
import shutil
from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.__main__ import main
from modeling_part.analysis.drift import weight_drift
from modeling_part.analysis.files import read_rows
from modeling_part.analysis.gradients import gradient_similarity
from modeling_part.analysis.probes import (
    Clip,
    centred_gram,
    gather_clips,
    language_accuracy,
    linear_cka,
    parallel_clips,
    probe_representations,
    represent,
    retrieval,
    similarity_between_languages,
)
from modeling_part.analysis.text_loss import text_loss
from modeling_part.audio_part import AudioError, load_audio
from modeling_part.recipes.files import CheckpointError


@pytest.fixture(scope="module")
def tiny_part(tiny_checkpoint):
    """A tiny model in float64, so that sums in any order agree, and its processor."""
    model = PARTForSpeechSeq2Seq.from_pretrained(tiny_checkpoint, dtype=torch.float64)
    return model, PARTProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def rows(tiny_corpus):
    return read_rows(tiny_corpus["train"])


def brute_force_gradient(model, processor, rows, chosen) -> torch.Tensor:
    """Gradient of the mean over the rows' tokens, every row in a forward of its own, by `autograd.grad`."""
    parameters = [parameter for name, parameter in model.named_parameters() if chosen in name]
    total, tokens = 0.0, 0
    for row in rows:
        inputs = processor(
            load_audio(row["audio"]),
            task=row["task"],
            source_lang=row["source_lang"],
            target_lang=row["target_lang"],
            text=row["text"],
            prompt=row.get("prompt"),
            context=row.get("context"),
        ).to("cpu", torch.float64)
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits[0, :-1]
        targets = inputs["labels"][0, 1:]
        kept = targets != -100
        total = total + torch.nn.functional.cross_entropy(logits[kept], targets[kept], reduction="sum")
        tokens += int(kept.sum())
    gradients = torch.autograd.grad(total / tokens, parameters)
    return torch.cat([gradient.flatten() for gradient in gradients])


class TestGradients:
    @pytest.mark.parametrize("chosen", ["adapter", r"audio_tower\.layers\.1\."])
    def test_equals_brute_force(self, tiny_part, rows, chosen):
        model, processor = tiny_part
        model.requires_grad_(True)
        found = gradient_similarity(model, processor, rows, parameters=[chosen], batch_size=5)[chosen]
        assert found["groups"] == ["asr/en", "asr/fr", "s2tt/en-fr", "s2tt/fr-en"]
        members = {group: [row for row in rows if _group(row) == group] for group in found["groups"]}
        plain = chosen.replace("\\", "")
        expected = [brute_force_gradient(model, processor, members[group], plain) for group in found["groups"]]
        for (i, one), (j, other) in combinations(enumerate(expected), 2):
            cosine = torch.nn.functional.cosine_similarity(one, other, dim=0)
            assert found["cosine"][i][j] == pytest.approx(float(cosine), abs=1e-5)
        assert np.allclose(np.diag(found["cosine"]), 1.0)
        assert found["norm"] == pytest.approx([float(one.norm()) for one in expected], rel=1e-4)
        assert found["rows"] == [12] * 4
        assert found["means"]["asr-asr"] == pytest.approx(found["cosine"][0][1])
        assert found["means"]["asr-s2tt"] == pytest.approx(np.mean(np.array(found["cosine"])[:2, 2:]))

    def test_split_half_is_the_cosine_of_two_halves(self, tiny_part, rows):
        model, processor = tiny_part
        model.requires_grad_(True)
        group = sorted((row for row in rows if _group(row) == "asr/fr"), key=lambda row: row["duration"])[:6]
        found = gradient_similarity(model, processor, group)["adapter"]
        # Which rows a half holds is drawn; one of all ways to halve six rows must give the value.
        candidates = []
        for half in combinations(range(6), 3):
            halves = [[group[i] for i in half], [group[i] for i in range(6) if i not in half]]
            one, other = (brute_force_gradient(model, processor, members, "adapter") for members in halves)
            candidates.append(float(torch.nn.functional.cosine_similarity(one, other, dim=0)))
        assert min(abs(found["split_half"][0] - candidate) for candidate in candidates) < 1e-5

    def test_a_question_of_a_rows_own_is_asked(self, tiny_part, rows):
        model, processor = tiny_part
        model.requires_grad_(True)
        asked = [row for row in rows if _group(row) == "asr/fr"][:3]
        asked = [asked[0], {**asked[1], "prompt": "Which words are these?"}, {**asked[2], "context": "Ada\nLovelace"}]
        found = gradient_similarity(model, processor, asked, batch_size=3)["adapter"]
        assert found["norm"] == pytest.approx([float(brute_force_gradient(model, processor, asked, "adapter").norm())])

    def test_leaves_the_model_as_it_was(self, tiny_part, rows):
        model, processor = tiny_part
        model.requires_grad_(False)
        model.lm_head.requires_grad_(True)
        model.train()
        before = [parameter.requires_grad for parameter in model.parameters()]
        gradient_similarity(model, processor, rows[:6], rows_per_group=1)
        assert [parameter.requires_grad for parameter in model.parameters()] == before
        assert all(parameter.grad is None for parameter in model.parameters())
        assert model.training
        model.eval().requires_grad_(True)

    def test_one_row_has_no_halves(self, tiny_part, rows):
        found = gradient_similarity(*tiny_part, rows, rows_per_group=1)["adapter"]
        assert found["split_half"] == [None] * 4
        assert found["rows"] == [1] * 4

    def test_errors_name_what_is_wrong(self, tiny_part, rows):
        with pytest.raises(ValueError, match="'adaptor' matches no parameter"):
            gradient_similarity(*tiny_part, rows, parameters=["adaptor"])
        with pytest.raises(ValueError, match="no rows with audio"):
            gradient_similarity(*tiny_part, [row for row in rows if row["task"] == "mt"])


def _group(row: dict) -> str:
    source, target = row["source_lang"], row["target_lang"]
    return f"{row['task']}/{source}" if source == target else f"{row['task']}/{source}-{target}"


# ----------------------------------------------------------------------------------------------------------- probes


def toy_clips(contents: int, languages=("en", "fr")) -> list[Clip]:
    """Every content in every language; the transcript of content 3 in French is "fr 3"."""
    return [
        Clip(language, None, None, None, f"{language} {i}", {o: f"{o} {i}" for o in languages if o != language})
        for language in languages
        for i in range(contents)
    ]


class TestClips:
    def test_every_recording_once_with_all_that_is_known(self, rows):
        clips = gather_clips(rows)
        assert len(clips) == 24
        spoken = next(row for row in rows if row["task"] == "s2tt" and row["source_lang"] == "fr")
        (clip,) = [clip for clip in clips if clip.audio["path"] == spoken["audio"]["path"]]
        assert (clip.language, clip.transcript) == ("fr", spoken["source_text"])
        assert clip.translations == {"en": spoken["text"]}

    def test_the_first_of_every_language(self, rows):
        assert [clip.language for clip in gather_clips(rows, 2)] == ["en", "fr", "en", "fr"]

    def test_parallel_is_what_translations_say(self):
        clips = [*toy_clips(3), Clip("fr", None, None, None, "fr 1")]
        pairs = parallel_clips(clips)
        assert pairs["en", "fr"] == {0: [3], 1: [4, 6], 2: [5]}
        assert pairs["fr", "en"] == {3: [0], 4: [1], 5: [2]}


class TestLanguageProbe:
    def test_separable_languages(self):
        generator = np.random.default_rng(0)
        languages = ["en"] * 30 + ["fr"] * 20 + ["ru"] * 10
        vectors = generator.standard_normal((60, 20))
        vectors[:, :3] += 20 * np.eye(3)[[0] * 30 + [1] * 20 + [2] * 10]
        assert language_accuracy(vectors, languages) == 1.0

    def test_chance_without_language(self):
        generator = np.random.default_rng(1)
        accuracies = [
            language_accuracy(generator.standard_normal((120, 10)), ["en", "fr", "ru"] * 40, seed) for seed in range(8)
        ]
        assert abs(np.mean(accuracies) - 1 / 3) < 0.05

    def test_a_constant_layer_is_at_most_chance(self):
        assert language_accuracy(np.ones((40, 5)), ["en", "fr"] * 20) == pytest.approx(0.5)

    def test_a_rare_language_counts_as_much(self):
        vectors = np.zeros((55, 2))
        assert language_accuracy(vectors, ["en"] * 50 + ["fr"] * 5) == pytest.approx(0.5)

    def test_dual_equals_primal_ridge(self):
        """One fold against the normal equations with the bias as a further feature."""
        generator = np.random.default_rng(2)
        vectors, languages = generator.standard_normal((50, 4)), np.array(["en", "fr"] * 25)
        vectors[:, 0] += (languages == "fr") * 1.0
        fold = np.empty(50, int)
        order = np.random.default_rng(7)
        for language in ("en", "fr"):
            members = order.permutation(np.flatnonzero(languages == language))
            fold[members] = np.arange(25) % 5
        recalls = []
        predicted = np.empty(50, dtype="<U2")
        for number in range(5):
            train = vectors[fold != number]
            mean, deviation = train.mean(0), train.std(0)
            features = np.c_[(train - mean) / deviation, np.ones(40)]
            targets = np.c_[languages[fold != number] == "en", languages[fold != number] == "fr"].astype(float)
            weights = np.linalg.solve(features.T @ features + 40 * np.eye(5), features.T @ targets)
            scores = np.c_[(vectors[fold == number] - mean) / deviation, np.ones(10)] @ weights
            predicted[fold == number] = np.array(["en", "fr"])[scores.argmax(-1)]
        recalls = [(predicted[languages == name] == name).mean() for name in ("en", "fr")]
        assert language_accuracy(vectors, languages, seed=7) == pytest.approx(np.mean(recalls))


class TestRetrieval:
    def test_content_under_a_language_offset(self):
        clips = toy_clips(10, ("en", "fr", "ru"))
        languages = [clip.language for clip in clips]
        contents = np.random.default_rng(0).standard_normal((10, 16))
        offsets = {"en": 50.0, "fr": -50.0, "ru": 0.0}
        vectors = np.concatenate([contents + offsets[language] for language in ("en", "fr", "ru")])
        found = retrieval(vectors, languages, parallel_clips(clips))
        assert found["recall"] == 1.0
        assert found["chance"] == pytest.approx(0.1)
        assert found["directions"]["fr-ru"] == {"recall": 1.0, "chance": pytest.approx(0.1), "queries": 10}

    def test_chance_without_content(self):
        clips = toy_clips(40)
        generator = np.random.default_rng(0)
        pairs = parallel_clips(clips)
        languages = [clip.language for clip in clips]
        recalls = [retrieval(generator.standard_normal((80, 8)), languages, pairs)["recall"] for _ in range(20)]
        assert np.mean(recalls) == pytest.approx(1 / 40, abs=0.015)

    def test_no_parallel_clips(self):
        assert retrieval(np.eye(4), ["en", "en", "fr", "fr"], {})["recall"] is None


def hsic(one: np.ndarray, other: np.ndarray) -> float:
    """Gretton et al. 2005, equation 9, with linear kernels: tr(K H L H) / (n - 1)^2."""
    n = len(one)
    centring = np.eye(n) - np.ones((n, n)) / n
    return np.trace(one @ one.T @ centring @ other @ other.T @ centring) / (n - 1) ** 2


class TestCKA:
    @given(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 12), width=st.integers(1, 8), other=st.integers(1, 8))
    @settings(max_examples=50, deadline=None)
    def test_is_the_normalised_hsic(self, seed, n, width, other):
        generator = np.random.default_rng(seed)
        x, y = generator.standard_normal((n, width)) + 3.0, generator.standard_normal((n, other))
        expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
        assert linear_cka(centred_gram(x), centred_gram(y)) == pytest.approx(expected, abs=1e-9)

    def test_unchanged_by_rotation_scale_and_offset(self):
        generator = np.random.default_rng(0)
        x = generator.standard_normal((20, 6))
        rotation, _ = np.linalg.qr(generator.standard_normal((6, 6)))
        assert linear_cka(centred_gram(x), centred_gram(3.0 * x @ rotation + 5.0)) == pytest.approx(1.0)

    def test_a_constant_side_is_zero(self):
        other = np.random.default_rng(0).standard_normal((5, 2))
        assert linear_cka(centred_gram(np.ones((5, 2))), centred_gram(other)) == 0.0

    def test_parallel_languages_against_shuffled_ones(self):
        clips = toy_clips(60)
        contents = np.random.default_rng(0).standard_normal((60, 4))
        found = similarity_between_languages(np.concatenate([contents, -2.0 * contents]), parallel_clips(clips))
        assert found["cka"] == pytest.approx(1.0)
        assert found["shuffled"] < 0.2
        assert found["languages"]["en-fr"]["pairs"] == 60
        pairs = parallel_clips(clips)
        one_way = {("fr", "en"): pairs["fr", "en"]}  # as corpora of translation into English have it
        vectors = np.concatenate([contents, -2.0 * contents])
        assert similarity_between_languages(vectors, one_way)["languages"]["en-fr"]["cka"] == pytest.approx(1.0)
        assert similarity_between_languages(np.eye(8), parallel_clips(toy_clips(4)))["cka"] is None


class TestRepresentations:
    def test_are_means_of_what_the_model_computes(self, tiny_part, rows):
        model, processor = tiny_part
        clips = gather_clips(rows)[:3]
        layers = represent(model, processor, clips)
        assert list(layers) == ["encoder 00", "encoder 01", "encoder out", "adapter 00", "adapter 01", "adapter out"]
        for index, clip in enumerate(clips):
            features = processor.pad_features([processor.extract_features(load_audio(clip.audio))])
            features["input_features"] = features["input_features"].double()
            with torch.no_grad():
                output = model.get_audio_features(**features, output_hidden_states=True)
            np.testing.assert_allclose(layers["encoder out"][index], output.last_hidden_state[0].mean(0), rtol=1e-6)
            np.testing.assert_allclose(layers["adapter out"][index], output.pooler_output.mean(0), rtol=1e-6)

    def test_a_recording_that_was_replaced_is_refused(self, tiny_part, rows):
        other = {**rows[0], "duration": 60.0}
        with pytest.raises(AudioError, match=r"its `duration` is 60\.00 s"):
            represent(*tiny_part, gather_clips([other]))

    def test_probes_of_a_model(self, tiny_part, rows):
        found = probe_representations(*tiny_part, rows, clips_per_language=8)
        assert found["clips"] == {"en": 8, "fr": 8}
        assert found["chance"] == 0.5
        assert found["parallel"] == {"en-fr": 8, "fr-en": 8}
        for layer in found["layers"].values():
            assert 0.0 <= layer["language_accuracy"] <= 1.0
            assert 0.0 < layer["retrieval_chance"] < 0.5
            assert layer["cka"] > layer["cka_shuffled"]  # the tones of a word move with it in both languages

    def test_needs_two_languages(self, tiny_part, rows):
        with pytest.raises(ValueError, match=r"two languages with two clips each; the data has .*12"):
            probe_representations(*tiny_part, [row for row in rows if row["source_lang"] == "en"])


# ------------------------------------------------------------------------------------------------ drift and command


@pytest.fixture
def moved(tiny_checkpoint, tmp_path):
    """A copy of the checkpoint in which the adapter is 10 % larger and one encoder tensor is replaced."""
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.startswith("model.adapter."):
            weights[name] = weights[name] * 1.1
    name = "model.audio_tower.layers.1.fc1.weight"
    weights[name] = weights[name] + 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "stage.json").write_text(json.dumps({"trainable_parameters": {"adapter": 5, "language_model": 0}}))
    history = [{"gate_open_share": 0.25}, {"gate_open_share": 0.75}, {"eval_loss": 1.0}]
    (folder / "log_history.json").write_text(json.dumps(history))
    return folder


class TestDrift:
    @pytest.mark.parametrize("content", ["{", "[]", '{"trainable_parameters": null}'])
    def test_a_damaged_record_is_named(self, moved, tiny_checkpoint, content):
        (moved / "stage.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"stage\.json (is not JSON|has no `trainable_parameters`)"):
            weight_drift(moved, tiny_checkpoint)

    def test_says_what_moved_and_by_how_much(self, moved, tiny_checkpoint):
        found = weight_drift(moved, tiny_checkpoint)
        assert found["parts"]["adapter"]["drift"] == pytest.approx(0.1, rel=1e-5)
        assert found["parts"]["encoder"]["changed"] == 1
        assert found["parts"]["language_model"] == {
            "drift": 0.0,
            "changed": 0,
            "tensors": found["parts"]["language_model"]["tensors"],
        }
        before = load_file(tiny_checkpoint / "model.safetensors")
        layer = [t.double() for name, t in before.items() if name.startswith("model.audio_tower.layers.1.")]
        changed = before["model.audio_tower.layers.1.fc1.weight"]
        expected = 0.5 * changed.numel() ** 0.5 / torch.cat([t.flatten() for t in layer]).norm()
        assert found["layers"]["encoder/01"] == pytest.approx(float(expected), rel=1e-5)
        assert found["layers"]["encoder/00"] == 0.0
        assert found["gate_open_share"] == 0.5

    def test_names_parts_that_should_not_have_moved(self, moved, tiny_checkpoint):
        assert weight_drift(moved, tiny_checkpoint)["unexpected"] == ["encoder"]

    def test_the_same_checkpoint(self, tiny_checkpoint):
        found = weight_drift(tiny_checkpoint, tiny_checkpoint)
        assert all(part["changed"] == 0 and part["drift"] == 0.0 for part in found["parts"].values())
        assert found["gate_open_share"] is None

    def test_refuses_what_cannot_be_compared(self, moved, tiny_checkpoint, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
            weight_drift(tmp_path, tiny_checkpoint)
        weights = load_file(moved / "model.safetensors")
        del weights["model.adapter.conv.bias"]
        save_file(weights, moved / "model.safetensors")
        with pytest.raises(ValueError, match=r"model\.adapter\.conv\.bias"):
            weight_drift(moved, tiny_checkpoint)


class TestTextLoss:
    def test_is_the_loss_of_each_next_token(self, tiny_part):
        """Against transformers' own loss, text by text, which is weighted by tokens."""
        model, processor = tiny_part
        texts = ["one two three", "one", "quatre cinq"]
        nats = tokens = 0
        for text in texts:
            ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
            if ids.shape[1] > 1:
                hidden = model.model.language_model(input_ids=ids).last_hidden_state
                logits = model.lm_head(hidden)[0, :-1].log_softmax(-1)
                nats -= float(logits.gather(1, ids[0, 1:, None]).sum())
                tokens += ids.shape[1] - 1
        loss, counted = text_loss(model, processor.tokenizer, texts)
        assert (loss, counted) == (pytest.approx(nats / tokens, rel=1e-6), tokens)

    def test_nothing_to_score(self, tiny_part):
        with pytest.raises(ValueError, match="No text has two tokens"):
            text_loss(tiny_part[0], tiny_part[1].tokenizer, [""])


class TestCommand:
    def test_text_loss(self, moved, tiny_checkpoint, tmp_path, capsys):
        """Encoder and adapter moved, the language model did not: plain text is worth what it was."""
        texts = tmp_path / "texts.txt"
        texts.write_text("one two three\n\nquatre cinq six\n")
        common = ["--texts", str(texts), "--output", str(tmp_path / "analysis"), "--device", "cpu"]
        main(["analyze", "text-loss", str(moved), "--since", str(tiny_checkpoint), *common])
        (found,) = json.loads((tmp_path / "analysis" / "encoder_text_loss.json").read_text()).values()
        assert found["loss"] == found["loss_since"] > 0
        assert f"{found['tokens']} tokens" in capsys.readouterr().out

    def test_gradients_and_probes(self, tiny_checkpoint, tiny_corpus, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(
            matplotlib.rcParams, "backend", "module://of_a_notebook_that_is_not_here"
        )  # as MPLBACKEND does
        data, common = str(tiny_corpus["dev"]), [str(tiny_checkpoint), "--output", str(tmp_path), "--device", "cpu"]
        sets = ["--parameters", "adapter", r"audio_tower\.layers\.0\.", "--rows_per_group", "2"]
        main(["analyze", "gradients", *common, *sets, "--data", data])
        stem = tiny_checkpoint.name
        written = json.loads((tmp_path / f"{stem}_gradients.json").read_text())
        assert list(written["parameters"]) == ["adapter", r"audio_tower\.layers\.0\."]
        assert written["settings"]["rows_per_group"] == 2
        main(["analyze", "probes", *common, "--data", data, "--clips_per_language", "4"])
        assert json.loads((tmp_path / f"{stem}_probes.json").read_text())["clips"] == {"en": 4, "fr": 4}
        pictures = {path.name for path in tmp_path.glob("*.png")}
        assert pictures == {
            f"{stem}_gradients_adapter.png",
            f"{stem}_gradients_audio_tower_layers_0.png",
            f"{stem}_probes.png",
        }
        assert "asr-s2tt" in capsys.readouterr().out

    def test_drift(self, moved, tiny_checkpoint, tmp_path, capsys):
        main(["analyze", "drift", str(moved), "--since", str(tiny_checkpoint), "--output", str(tmp_path / "analysis")])
        written = json.loads((tmp_path / "analysis" / "encoder_drift.json").read_text())
        assert written["since"] == tiny_checkpoint.name
        assert "Changed though nothing of them trained in this stage: encoder" in capsys.readouterr().out

    def test_reads_the_data_of_a_run(self, tiny_corpus, rows, tmp_path):
        from modeling_part.data.corpora import read_corpora

        read_corpora([{"reader": "manifest", "path": str(tiny_corpus["train"])}], cache_dir=tmp_path)
        assert [row["id"] for row in read_rows(tmp_path)] == [row["id"] for row in rows]
        assert read_rows(tmp_path)[0]["audio"]["path"] == rows[0]["audio"]["path"]

    def test_no_such_data(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="neither a JSONL manifest nor a folder"):
            read_rows(tmp_path / "nothing.jsonl")

    def test_rows_must_say_what_they_are(self, tmp_path):
        path = tmp_path / "bare.jsonl"
        path.write_text('{"audio": "a.wav", "text": "Bonjour."}\n', encoding="utf-8")
        with pytest.raises(ValueError, match=r"bare\.jsonl: row 1 \(None\) has no task, source_lang, target_lang"):
            read_rows(path)
