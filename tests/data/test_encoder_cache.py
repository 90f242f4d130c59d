"""Encoder outputs kept on disk: the same training without the encoder, and nothing stale is ever read."""

import logging
import os
import pickle

import pytest
import tiny
import tiny_training
import torch
import yaml
from accelerate import PartialState
from safetensors.torch import load_file

import train_part
from modeling_part import PARTForSpeechSeq2Seq
from modeling_part.audio_part import load_audio
from modeling_part.data import encoder_cache as encoder_outputs
from modeling_part.data.augmentation import build_augmentation
from modeling_part.data.collator import PARTCollator
from modeling_part.data.encoder_cache import EncoderOutputs, clip_key, write_encoder_outputs
from modeling_part.modeling_part import PARTModel
from modeling_part.recipes.user_errors import UserError


STAGES = [{"name": "adapter", "max_steps": 6}, {"name": "encoder", "max_steps": 1}]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny_parts):
    folder = tmp_path_factory.mktemp("shared")
    corpus = tiny.tiny_corpus(folder / "corpus", sentences={"train": 6, "dev": 2, "test": 1}, words=(1, 3))
    return tiny_parts, corpus


def run(folder, shared, **options):
    """Train both stages in `folder`; the run's folder."""
    folder.mkdir(exist_ok=True)
    stages = options.pop("stages", STAGES)
    recipe = tiny_training.write_recipe(folder, *shared, stages=stages, eval_data=None, test_data=None, **options)
    train_part.main([str(recipe)])
    return folder / "run"


@pytest.fixture
def encoded(monkeypatch):
    """Number of clips of each call of the encoder, and whether gradients were on."""
    calls = []
    encode = PARTModel.encode

    def note(self, input_features, *args, **kwargs):
        calls.append((len(input_features), torch.is_grad_enabled()))
        return encode(self, input_features, *args, **kwargs)

    monkeypatch.setattr(PARTModel, "encode", note)
    return calls


def test_trains_the_same_adapter_and_runs_the_encoder_once_per_clip(shared, tmp_path, encoded, caplog):
    plain = run(tmp_path / "plain", shared)
    encoded.clear()
    with caplog.at_level(logging.INFO):
        cached = run(tmp_path / "cached", shared, cache_encoder_outputs=True)
    before_training = [clips for clips, with_gradients in encoded if not with_gradients]
    in_training = [clips for clips, with_gradients in encoded if with_gradients]
    assert sum(before_training) == 12  # 6 sentences in two languages, each in several rows
    assert len(in_training) == 1  # the step of the stage that trains the encoder
    assert "Stage encoder trains the encoder: no encoder outputs are kept" in caplog.messages
    weights = [load_file(folder / "adapter" / "model.safetensors") for folder in (plain, cached)]
    short = run(tmp_path / "short", shared, stages=[{"name": "adapter", "max_steps": 1}])
    start = load_file(short / "adapter" / "model.safetensors")
    moved = [name for name in weights[0] if not torch.equal(weights[0][name], start[name])]
    assert any("adapter" in name for name in moved)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=1e-4)


def test_a_resumed_run_computes_nothing_again(shared, tmp_path, encoded):
    run(tmp_path, shared, cache_encoder_outputs=True)
    first = len(encoded)
    (tmp_path / "run" / "adapter" / "stage.json").unlink()
    (tmp_path / "run" / "encoder" / "stage.json").unlink()
    run(tmp_path, shared, cache_encoder_outputs=True)
    assert len(encoded) == first + 1  # the encoder stage's own step


@pytest.fixture
def small(shared, tmp_path):
    """A model, its processor, and three clips in files, of which one is in two rows."""
    parts, _ = shared
    torch.manual_seed(0)
    model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(
        str(parts.audio_model), str(parts.language_model), adapter_hidden_size=32, adapter_num_attention_heads=2
    )
    rows = []
    for number in range(3):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(tiny_training.wav_bytes(tiny.word_sound("en", number)))
        rows.append(
            {
                "id": str(number), "corpus": "c", "task": "asr", "source_lang": "en", "target_lang": "en", "text": "one",
                "source_text": None, "duration": 0.25, "start": None, "end": None,
                "audio": {"path": str(path), "bytes": None},
            }
        )  # fmt: skip
    rows.append({**rows[0], "id": "again", "task": "s2tt", "target_lang": "fr"})
    return model, processor, rows


def write(small, folder):
    model, processor, rows = small
    return write_encoder_outputs(model, processor, rows, range(len(rows)), folder, max_audio_seconds=0.55)


def test_frames_are_those_of_the_encoder(small, tmp_path):
    model, processor, rows = small
    outputs = pickle.loads(pickle.dumps(write(small, tmp_path / "outputs")))  # as a loader's worker gets it
    assert len(outputs) == 3
    for row in rows:
        features = processor.extract_features(load_audio(row["audio"], processor.sampling_rate))
        with torch.no_grad():
            expected = model.model.encode(torch.from_numpy(features)[None]).last_hidden_state[0]
        frames, steps, fault = outputs.frames_or_silence(row)
        assert fault is None
        assert steps == features.shape[processor.feature_time_axis]
        torch.testing.assert_close(frames, expected, atol=1e-5, rtol=1e-4)


def test_a_batch_of_frames_gives_the_loss_of_the_batch_of_features(small, tmp_path):
    model, processor, rows = small
    plain = PARTCollator(processor)(rows[:3])
    cached = PARTCollator(processor, encoder_outputs=write(small, tmp_path / "outputs"))(rows[:3])
    assert "input_features" not in cached
    assert plain.pop("batch_info") == cached.pop("batch_info")
    assert torch.equal(plain["input_ids"], cached["input_ids"]) and torch.equal(plain["labels"], cached["labels"])
    with torch.no_grad():
        torch.testing.assert_close(model(**cached).loss, model(**plain).loss, atol=1e-5, rtol=1e-5)


def test_another_sound_under_the_same_name_is_not_served(small, tmp_path):
    outputs = write(small, tmp_path / "outputs")
    row = small[2][1]
    assert clip_key(row) in outputs
    with open(row["audio"]["path"], "wb") as file:
        file.write(tiny_training.wav_bytes(tiny.word_sound("fr", 4)))
    os.utime(row["audio"]["path"], (1, 1))
    assert clip_key(row) not in outputs
    with pytest.raises(KeyError, match="'1' has no encoder outputs"):
        outputs.frames_or_silence(row)
    assert clip_key({**row, "start": 0.1, "end": 0.3}) not in outputs  # a cut of a file is a clip of its own
    assert clip_key(row) in write(small, tmp_path / "outputs")


def test_another_encoder_gets_a_folder_of_its_own(shared, tmp_path, encoded):
    parts, corpus = shared
    run(tmp_path, shared, cache_encoder_outputs=True, stages=STAGES[:1])
    trained = run(tmp_path / "other", shared, stages=[{"name": "encoder", "max_steps": 2}]) / "encoder"
    encoded.clear()
    recipe = tiny_training.write_recipe(
        tmp_path, parts, corpus, stages=STAGES[:1], eval_data=None, test_data=None, cache_encoder_outputs=True
    )
    train_part.main([str(recipe), "--checkpoint", str(trained), "--force"])
    assert sum(clips for clips, _ in encoded) == 12
    assert len(list((tmp_path / "run" / "data" / "encoder_outputs").iterdir())) == 2


def test_half_written_files_are_not_read(small, tmp_path):
    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / "0123456789abcdef.partial").write_bytes(b"half")
    assert len(EncoderOutputs(folder)) == 0
    assert len(write(small, folder)) == 3


@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda data: b"x" * 100, lambda data: b""])
def test_damaged_files_are_computed_again(small, tmp_path, change, caplog):
    write(small, tmp_path / "outputs")
    (file,) = (tmp_path / "outputs").glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(change(whole))
    assert len(EncoderOutputs(tmp_path / "outputs")) == 0
    assert f"{file} is damaged" in caplog.text
    assert len(write(small, tmp_path / "outputs")) == 3


def test_a_flipped_bit_is_noticed(small, tmp_path):
    outputs = write(small, tmp_path / "outputs")
    (file,) = (tmp_path / "outputs").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged \(row "):
        for row in small[2]:
            EncoderOutputs(outputs.folder).frames_or_silence(row)


def test_a_clip_whose_file_is_gone_is_a_broken_row(small, tmp_path):
    model, processor, rows = small
    (tmp_path / "2.wav").unlink()
    settings = {"max_audio_seconds": 0.55, "max_bad_fraction": 0.5}
    outputs = write_encoder_outputs(model, processor, rows, range(4), tmp_path / "outputs", **settings)
    (fault,) = outputs.broken.values()
    assert "Row '2'" in fault and "no audio file" in fault
    assert outputs.frames_or_silence(rows[2])[2] == fault


def test_a_full_disk_is_reported_before_the_work(small, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match=r"The encoder outputs of 3 clips take .* GiB"):
        write(small, tmp_path / "outputs")


def test_the_disk_must_hold_what_the_encoder_gives_not_what_its_weights_are(small, tmp_path, monkeypatch):
    """On CUDA a tower in bfloat16 gives float32 under autocast, from its last layer norm."""
    model, _, rows = small
    encode = PARTModel.encode

    def encode_in_float32(self, *args, **kwargs):
        outputs = encode(self, *args, **kwargs)
        outputs.last_hidden_state = outputs.last_hidden_state.float()
        return outputs

    monkeypatch.setattr(PARTModel, "encode", encode_in_float32)
    model.model.audio_tower.to(torch.bfloat16)
    frames = [write(small, tmp_path / "outputs").frames_or_silence(row)[0] for row in rows[:3]]
    assert {one.dtype for one in frames} == {torch.float32}
    size = sum(one.nbytes for one in frames)
    for free, folder in ((size, "fits"), (size - 1, "full")):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: type("Usage", (), {"free": free})())
        if folder == "fits":
            write(small, tmp_path / folder)
        else:
            with pytest.raises(OSError, match="The encoder outputs of 3 clips take"):
                write(small, tmp_path / folder)
            assert not list((tmp_path / folder).iterdir()), "nothing is written"


def test_out_of_memory_says_that_the_encoder_outputs_were_computed(shared, tmp_path, monkeypatch):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PARTModel, "encode", exhausted)
    with pytest.raises(UserError, match=r"Out of memory while the encoder outputs are computed. Lower `max_audio_"):
        run(tmp_path, shared, cache_encoder_outputs=True, stages=STAGES[:1])


def test_ranks_share_one_list(small, tmp_path, monkeypatch):
    """A rank that looked late would leave out what another has written, and share out another list."""
    looked, meetings = [], []
    find = encoder_outputs._missing_clips
    monkeypatch.setattr(encoder_outputs, "_missing_clips", lambda *args: looked.append(len(meetings)) or find(*args))
    monkeypatch.setattr(encoder_outputs, "_write_file", lambda *args: looked.append(len(meetings)))
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda self: meetings.append("met"))
    write(small, tmp_path / "outputs")
    assert looked == [0, 1]  # all look, all meet, then they write


def test_refused_with_augmentation(shared, tmp_path):
    recipe = tiny_training.write_recipe(tmp_path, *shared, stages=STAGES, cache_encoder_outputs=True)
    content = yaml.safe_load(recipe.read_text()) | {"augmentation": {"speeds": [0.9, 1.0]}}
    recipe.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="leave one of them out"):
        train_part.main([str(recipe)])
    with pytest.raises(ValueError, match="leave one of them out"):
        PARTCollator(object(), augmentation=build_augmentation({"speeds": [0.9]}), encoder_outputs=object())
