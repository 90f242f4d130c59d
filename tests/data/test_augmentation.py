"""Augmentation: what changes, what must not, and that the same row is always changed the same way."""

import random
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import RATE, tone

from modeling_part.data.augmentation import (
    Augmentation,
    SpecAugment,
    WaveformAugment,
    build_augmentation,
    change_speed,
    mask_features,
    row_generator,
)


def loudest_frequency(audio: np.ndarray) -> float:
    return np.abs(np.fft.rfft(audio * np.hanning(len(audio)))).argmax() * RATE / len(audio)


def test_row_generator_depends_on_every_key_and_on_nothing_else():
    numbers = [row_generator(*keys).random() for keys in ((0, 1, "a"), (0, 1, "b"), (0, 2, "a"), (1, 1, "a"))]
    assert len(set(numbers)) == 4
    np.random.seed(5)
    assert row_generator(0, 1, "a").random() == numbers[0]
    assert row_generator(0, "1", "a").random() != numbers[0]
    # written down once: a changed value would silently change every augmented run
    assert numbers[0] == pytest.approx(0.6048012875126382, abs=1e-12)


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_speed_changes_length_and_pitch_together(speed):
    audio = tone(2.0)
    faster = change_speed(audio, RATE, speed)
    assert faster.dtype == np.float32
    assert len(faster) == pytest.approx(len(audio) / speed, abs=2)
    assert loudest_frequency(faster) == pytest.approx(440 * speed, abs=1.0)


def test_every_speed_is_drawn_and_none_that_would_be_too_long():
    augmentation = Augmentation(speeds=(0.9, 1.0, 1.1), max_seconds=1.05)
    for seconds, expected in ((0.5, {0.9, 1.0, 1.1}), (1.0, {1.0, 1.1})):
        audio = tone(seconds, 300)
        lengths = [
            len(augmentation.augment_waveform(audio, RATE, row_generator(0, i))) for i in range(60)
        ]  # fmt: skip
        assert {round(len(audio) / length, 2) for length in lengths} == expected


@settings(deadline=None, max_examples=60)
@given(
    bins=st.integers(1, 128),
    frames=st.integers(1, 400),
    time_axis=st.sampled_from([-1, 1, 0, -2]),
    use_torch=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_masks_are_whole_bins_or_whole_frames_no_wider_than_allowed(bins, frames, time_axis, use_torch, seed):
    features = np.random.default_rng(seed).normal(size=(bins, frames)).astype(np.float32)
    policy = SpecAugment(mel_masks=1, max_mel_share=0.3, time_masks=1, max_time_share=0.25, max_time_frames=40)
    given_features = features if time_axis % 2 else np.ascontiguousarray(features.T)
    given_features = torch.from_numpy(given_features.copy()) if use_torch else given_features.copy()
    before = given_features.clone() if use_torch else given_features.copy()

    result = mask_features(given_features, policy, row_generator(seed), time_axis)

    assert type(result) is type(given_features) and result.shape == given_features.shape
    assert (given_features == before).all(), "the input was written to"
    changed = np.asarray(result != before)
    changed = changed if time_axis % 2 else changed.T
    bins_masked, frames_masked = changed.all(axis=1), changed.all(axis=0)
    if bins > 1 and frames > 1 and not changed.all():
        # what changed is exactly a block of bins and a block of frames
        assert (changed == (bins_masked[:, None] | frames_masked[None, :])).all()
        for mask, widest in ((bins_masked, int(0.3 * bins)), (frames_masked, min(int(0.25 * frames), 40))):
            assert mask.sum() <= widest
            assert np.count_nonzero(np.diff(np.concatenate([[0], mask, [0]]).astype(int))) in (0, 2), "not one stretch"
        assert np.asarray(result).reshape(-1)[np.asarray(result != before).reshape(-1)] == pytest.approx(
            float(features.mean()), abs=1e-4
        )


@pytest.mark.parametrize("stacked", [1, 2, 7])
def test_stacked_frames_lose_the_same_frequencies_and_no_more_time(stacked):
    """7 frames of 80 bins beside each other are 560 columns, of 60 ms each, as SAN-M's features are."""
    features = np.random.default_rng(0).normal(size=(200, stacked * 80)).astype(np.float32)
    policy = {"mel_masks": 1, "max_mel_share": 0.34, "max_time_share": 1.0, "max_time_frames": 100}
    rate = 100 / 6 if stacked == 7 else 100 / stacked
    for seed in range(20):
        result = mask_features(features, SpecAugment(**policy, time_masks=0), row_generator(seed), 0, stacked, rate)
        bands = (result != features).all(axis=0).reshape(stacked, 80)
        assert (bands == bands[0]).all() and bands[0].sum() <= 27
        policy_of_time = SpecAugment(**policy | {"mel_masks": 0}, time_masks=1)
        masked = (mask_features(features, policy_of_time, row_generator(seed), 0, stacked, rate) != features).all(
            axis=1
        )
        assert masked.sum() <= round(rate), "a second"
    assert bands[0].any()


def test_masks_of_every_width_are_as_likely_and_lie_anywhere():
    features = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    policy = SpecAugment(mel_masks=0, time_masks=1, max_time_share=0.5)
    drawn = Counter()
    for seed in range(1500):
        masked = (mask_features(features, policy, row_generator(seed)) != features).all(axis=0)
        drawn[tuple(np.flatnonzero(masked).tolist())] += 1
    shares = {(): 1 / 3, **{(at,): 1 / 12 for at in range(4)}, **{(at, at + 1): 1 / 9 for at in range(3)}}
    assert drawn.keys() == shares.keys()
    assert all(abs(drawn[places] / 1500 - share) < 0.04 for places, share in shares.items()), drawn


def test_padding_to_a_window_is_neither_masked_nor_counted():
    """A second of sound in a window of 30: at most two fifths of it are lost in two masks over time, and often some."""
    features = np.full((80, 3000), -1.0, dtype=np.float32)
    features[:, :100] = np.random.default_rng(0).normal(size=(80, 100))
    touched = 0
    for seed in range(50):
        result = mask_features(features, SpecAugment(mel_masks=0), row_generator(seed), length=100)
        masked = (result != features).all(axis=0)
        assert masked.sum() <= 40 and not masked[100:].any()
        np.testing.assert_allclose(result[:, masked], features[:, :100].mean(), atol=1e-6)
        touched += masked.any()
    assert touched > 40


def test_numpy_and_torch_are_masked_alike():
    features = np.random.default_rng(0).normal(size=(80, 300)).astype(np.float32)
    augmentation = Augmentation(spec_augment=SpecAugment())
    from_numpy = augmentation.augment_features(features, row_generator(3, "a"))
    from_torch = augmentation.augment_features(torch.from_numpy(features.T.copy()), row_generator(3, "a"), time_axis=0)
    assert (from_numpy != features).any()
    np.testing.assert_allclose(from_torch.numpy().T, from_numpy, atol=1e-6)


def test_settings_of_a_recipe():
    assert build_augmentation(None) is None
    built = build_augmentation({"speeds": [0.9, 1.0], "spec_augment": {"time_masks": 1}})
    assert built == Augmentation(speeds=(0.9, 1.0), spec_augment=SpecAugment(time_masks=1))


def test_off_by_default():
    audio, features = tone(0.2), np.ones((80, 20), dtype=np.float32)
    assert Augmentation().augment_waveform(audio, RATE, row_generator(0)) is audio
    assert Augmentation().augment_features(features, row_generator(0)) is features


@pytest.mark.parametrize("wrong", [lambda: Augmentation(speeds=(0.9, 11.0)), lambda: SpecAugment(max_time_share=20)])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match=r"11\.0|20"):
        wrong()


def test_noise_gain_and_codec_each_do_what_they_say_and_leave_global_randomness_alone():
    pytest.importorskip("audiomentations")
    pytest.importorskip("fast_mp3_augment")
    audio = tone(1.0)
    off = {"noise_probability": 0.0, "gain_probability": 0.0, "codec_probability": 0.0}

    noisy = Augmentation(waveform=WaveformAugment(**off | {"noise_probability": 1.0}, min_snr_db=10, max_snr_db=10))
    noise = noisy.augment_waveform(audio, RATE, row_generator(0)) - audio
    assert 10 * np.log10(np.mean(audio**2) / np.mean(noise**2)) == pytest.approx(10, abs=0.3)

    louder = Augmentation(waveform=WaveformAugment(**off | {"gain_probability": 1.0}, max_gain_db=6))
    ratios = [
        np.median(louder.augment_waveform(audio, RATE, row_generator(i))[1:200] / audio[1:200]) for i in range(20)
    ]
    assert len(set(ratios)) == 20
    assert max(abs(20 * np.log10(ratio)) for ratio in ratios) <= 6.001

    coded = Augmentation(waveform=WaveformAugment(**off | {"codec_probability": 1.0}))
    decoded = coded.augment_waveform(audio, RATE, row_generator(0))
    assert decoded.shape == audio.shape and decoded.dtype == np.float32
    assert 0 < np.abs(decoded - audio).max()
    assert np.corrcoef(decoded, audio)[0, 1] > 0.98, "the codec shifted the audio"

    everything = Augmentation(
        speeds=(0.9, 1.1), waveform=WaveformAugment(noise_probability=1.0, gain_probability=1.0, codec_probability=0.5)
    )
    random.seed(1)
    np.random.seed(1)
    expected_next = (random.random(), np.random.random())
    random.seed(1)
    np.random.seed(1)
    first = everything.augment_waveform(audio, RATE, row_generator(7, "x"))
    assert (random.random(), np.random.random()) == expected_next
    np.testing.assert_array_equal(first, everything.augment_waveform(audio, RATE, row_generator(7, "x")))


def test_a_missing_extra_is_named_when_the_settings_are_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "audiomentations", None)
    with pytest.raises(ImportError, match=r"audiomentations.*pip install \.\[augment\]"):
        Augmentation(waveform=WaveformAugment(max_gain_db=3.21))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed": [0.9]}, r"`augmentation`: Unknown field 'speed'\. Did you mean 'speeds'\?"),
        ({"speeds": 0.9}, r"`augmentation`: `speeds` is 0\.9; it must be a list"),
        ({"speeds": [0.1]}, r"`speeds` is \[0\.1\]; it must be at least 0\.5"),
        ({"speeds": ["fast"]}, "`speeds` is .*it must be a number"),
        ({"max_seconds": float("nan"), "speeds": [1.1]}, "`augmentation`: `max_seconds` is nan"),
        ({"spec_augment": True}, r"`augmentation\.spec_augment` is True; it must be a mapping"),
        ({"spec_augment": {"mel_mask": 2}}, "Did you mean 'mel_masks'"),
        (
            {"spec_augment": {"mel_masks": -1}},
            r"`augmentation\.spec_augment`: `mel_masks` is -1; it must be at least 0",
        ),
        (
            {"spec_augment": {"time_masks": 1.5}},
            "`time_masks` is 1.5; it must be a (whole number|valid integer|integer)",
        ),
        ({"spec_augment": {"max_time_share": 2}}, "`max_time_share` is 2; it must be at most 1"),
        ({"waveform": {"noise_probability": 2}}, r"`augmentation\.waveform`: `noise_probability` is 2"),
        ({"waveform": {"min_snr_db": 50}}, "`min_snr_db` is above `max_snr_db`"),
        (["speeds"], "must be a mapping"),
    ],
)
def test_settings_that_are_none_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        build_augmentation(settings)
