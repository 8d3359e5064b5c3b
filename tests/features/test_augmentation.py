import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iusp.config.augmentation import Augmentation
from iusp.features.augmentation import augment, draw_view
from iusp.features.packed import LabelledClips

FULL = Augmentation(
    roll=True, gain_db=6.0, mixup=0.5, time_masks=2, time_mask_frames=5, band_masks=2, band_mask_bands=3
)
NOTHING = Augmentation(
    roll=False, gain_db=0.0, mixup=0.0, time_masks=0, time_mask_frames=0, band_masks=0, band_mask_bands=0
)
SHAPE = (40, 20, 9)
FILL = torch.linspace(-100, -92, 9)


def clips(seed=0, shape=SHAPE, tags=4):
    rng = np.random.default_rng(seed)
    return LabelledClips(
        filenames=[f"{number}.wav" for number in range(shape[0])],
        log_mel=rng.normal(-5, 3, shape).astype(np.float16),
        targets=torch.from_numpy(rng.integers(0, 2, (shape[0], tags)).astype(np.float32)),
        mask=torch.from_numpy(rng.random((shape[0], tags)) < 0.8),
        tags=[f"tag {number}" for number in range(tags)],
    )


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def naive(view, data, row):
    """Change one clip, step by step, in float64."""
    log_mel = data.log_mel[row].astype(np.float64)
    targets, mask = data.targets[row].double().numpy(), data.mask[row].numpy()
    share, partner = float(view.share[row]), view.partner[row]
    if share < 1:
        other = data.log_mel[partner].astype(np.float64)
        log_mel = np.log(share * np.exp(log_mel) + (1 - share) * np.exp(other))
        targets = share * targets + (1 - share) * data.targets[partner].double().numpy()
        mask = mask & data.mask[partner].numpy()
    log_mel = np.roll(log_mel, view.shift[row], axis=0) + view.gain[row]
    for first, length in view.time_masks[row]:
        log_mel[first : first + length] = FILL.numpy()
    for first, width in view.band_masks[row]:
        log_mel[:, first : first + width] = FILL.numpy()[first : first + width]
    return log_mel, targets, mask


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 1000), purpose=st.sampled_from(["training", "knowledge"]))
def test_a_view_can_be_drawn_again_and_no_other_is_like_it(seed, number, purpose):
    view = draw_view(FULL, seed, purpose, number, SHAPE)
    state = np.random.get_state()[1].copy()
    np.random.seed(seed)
    torch.manual_seed(seed)
    assert same(view, draw_view(FULL, seed, purpose, number, SHAPE))
    np.random.set_state(("MT19937", state, 624, 0, 0.0))
    other = "knowledge" if purpose == "training" else "training"
    for different in (
        draw_view(FULL, seed, other, number, SHAPE),
        draw_view(FULL, seed, purpose, number + 1, SHAPE),
        draw_view(FULL, (seed + 1) % 2**32, purpose, number, SHAPE),
    ):
        for name in ("partner", "share", "shift", "gain"):
            assert not np.array_equal(vars(different)[name], vars(view)[name])


def test_purposes_do_not_meet_at_other_numbers():
    training = [draw_view(FULL, 0, "training", number, SHAPE) for number in range(20)]
    knowledge = [draw_view(FULL, 0, "knowledge", number, SHAPE) for number in range(20)]
    assert not any(same(a, b) for a in training for b in knowledge)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "config",
    [
        FULL,
        FULL.model_copy(update={"mixup": 1.0, "time_masks": 0}),
        NOTHING.model_copy(update={"roll": True}),
        NOTHING.model_copy(update={"gain_db": 12.0}),
        NOTHING.model_copy(update={"time_masks": 3, "time_mask_frames": 50}),
        NOTHING.model_copy(update={"band_masks": 1, "band_mask_bands": 9}),
    ],
)
def test_a_batch_is_its_clips_changed_one_by_one(config, seed):
    data, view = clips(seed), draw_view(config, seed, "training", 0, SHAPE)
    rows = np.random.default_rng(seed).permutation(SHAPE[0])[:17]
    log_mel, targets, mask = augment(view, data, rows, FILL)
    assert log_mel.dtype == targets.dtype == torch.float32
    assert mask.dtype == torch.bool
    for position, row in enumerate(rows):
        expected = naive(view, data, row)
        np.testing.assert_allclose(log_mel[position], expected[0], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(targets[position], expected[1], atol=1e-6)
        np.testing.assert_array_equal(mask[position], expected[2])


def test_the_changes_above_do_change():
    view = draw_view(FULL, 0, "training", 0, SHAPE)
    assert 0 < (view.share < 1).sum() < SHAPE[0]
    assert view.shift.any()
    assert view.gain.any()
    assert view.time_masks[..., 1].any()
    assert view.band_masks[..., 1].any()
    data = clips()
    log_mel, targets, mask = augment(view, data, np.arange(SHAPE[0]), FILL)
    assert not torch.equal(log_mel, torch.from_numpy(data.log_mel.astype(np.float32)))
    assert ((targets > 0) & (targets < 1)).any()
    assert (mask != data.mask).any()


def test_nothing_to_do_is_nothing_done():
    data, view = clips(), draw_view(NOTHING, 0, "training", 0, SHAPE)
    rows = np.array([3, 1, 39, 3])
    log_mel, targets, mask = augment(view, data, rows, FILL)
    assert torch.equal(log_mel, torch.from_numpy(data.log_mel[rows].astype(np.float32)))
    assert torch.equal(targets, data.targets[rows])
    assert torch.equal(mask, data.mask[rows])


def test_the_clips_themselves_are_left_alone():
    data = clips()
    kept = data.log_mel.copy(), data.targets.clone(), data.mask.clone()
    augment(draw_view(FULL, 0, "training", 0, SHAPE), data, np.arange(SHAPE[0]), FILL)
    assert np.array_equal(data.log_mel, kept[0])
    assert torch.equal(data.targets, kept[1])
    assert torch.equal(data.mask, kept[2])


def test_a_clip_changes_the_same_way_in_every_batch():
    data, view = clips(), draw_view(FULL, 0, "training", 0, SHAPE)
    whole = augment(view, data, np.arange(SHAPE[0]), FILL)
    for row in range(SHAPE[0]):
        for part, expected in zip(augment(view, data, np.array([row]), FILL), whole, strict=True):
            torch.testing.assert_close(part[0], expected[row], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("longest", [0, 1, 5, 19, 20, 100])
def test_masks_keep_their_limits(longest):
    config = FULL.model_copy(update={"time_masks": 4, "time_mask_frames": longest})
    masks = draw_view(config, 0, "training", 0, (3000, 20, 9)).time_masks
    first, length = masks[..., 0], masks[..., 1]
    assert masks.shape == (3000, 4, 2)
    assert first.min() >= 0
    assert (first + length).max() <= 20
    # Every length is drawn, up to the longest that fits.
    assert sorted(set(length.ravel())) == list(range(min(longest, 20) + 1))
    if longest == 5:
        covered = np.zeros(20)
        for start, size in masks.reshape(-1, 2):
            covered[start : start + size] += 1
        assert covered[5:15].std() < 0.1 * covered[5:15].mean()


def test_the_draws_have_the_distributions_that_are_promised():
    clip_count, frames = 20_000, 20
    view = draw_view(FULL.model_copy(update={"mixup": 0.3}), 0, "training", 0, (clip_count, frames, 9))
    mixed = view.share < 1
    # Four standard deviations of a binomial.
    assert abs(mixed.mean() - 0.3) < 4 * (0.3 * 0.7 / clip_count) ** 0.5
    assert view.share.min() >= 0.5
    assert view.share.max() == 1
    assert view.share[mixed].mean() == pytest.approx(0.75, abs=0.01)
    assert view.share[mixed].std() == pytest.approx(0.5 / 12**0.5, abs=0.01)
    decibels = view.gain / np.log(10) * 10
    assert np.abs(decibels).max() <= 6.0001
    assert decibels.std() == pytest.approx(12 / 12**0.5, rel=0.03)
    assert np.bincount(view.shift, minlength=frames).min() > 0.8 * clip_count / frames
    assert view.shift.max() == frames - 1
    assert view.partner.min() >= 0
    assert view.partner.max() < clip_count
    # Who is mixed in, and how, does not hang together.
    assert abs(np.corrcoef(view.share[mixed], view.gain[mixed])[0, 1]) < 0.06
    assert abs(np.corrcoef(np.arange(clip_count), view.partner)[0, 1]) < 0.04


def test_gain_is_in_decibels_of_power():
    data = clips()
    view = draw_view(NOTHING.model_copy(update={"gain_db": 10.0}), 3, "training", 0, SHAPE)
    log_mel, _, _ = augment(view, data, np.arange(SHAPE[0]), FILL)
    ratio = (log_mel - torch.from_numpy(data.log_mel.astype(np.float32))).exp()
    assert 0.1 - 1e-3 <= ratio.min() < 0.3
    assert 4 < ratio.max() <= 10 + 1e-2
