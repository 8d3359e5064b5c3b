import json
import os
import pickle
from itertools import pairwise

import pytest
import torch

from iusp import models
from iusp.config.features import Features
from iusp.errors import InputError
from iusp.evaluation.cost import multiply_accumulates
from iusp.io.files import sha256
from iusp.models.maps import frames

ARCHITECTURES = list(models.ARCHITECTURES)
BUDGETS = {"residual": 320_000, "vggish": 90_000, "mobilenetv2": 300_000, "plain": 7000, "separable": 6000}
BUDGETS["cnn_lstm"] = 20_000
FEATURES = Features(
    sample_rate=16000,
    clip_seconds=10.0,
    window_length=1024,
    hop_length=640,
    mel_bands=64,
    low_hz=50.0,
    high_hz=8000.0,
    log_offset=1e-6,
    clips_per_shard=250,
)


def smallest(architecture, tags=31, bands=16):
    torch.manual_seed(0)
    return models.build(architecture, models.ARCHITECTURES[architecture].WIDTHS[0], tags, bands)


def spectrograms(count=3, length=40, bands=16, seed=0):
    return torch.randn(count, length, bands, generator=torch.Generator().manual_seed(seed)) * 3 - 5


def trained(architecture, **shape):
    """Return a network whose batch normalisations and input statistics are not those of a new one."""
    network = smallest(architecture, **shape)
    network.mean.copy_(torch.linspace(-8, -2, len(network.mean)))
    network.std.copy_(torch.linspace(1, 4, len(network.std)))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(spectrograms(8, bands=len(network.mean)))
    return network.eval()


def saved(folder, architecture="plain"):
    network = trained(architecture)
    config = {
        "architecture": architecture,
        "width": models.ARCHITECTURES[architecture].WIDTHS[0],
        "tags": [f"tag {number}" for number in range(31)],
        "features": {"mel_bands": 16},
        "anything": {"more": [1, 2.5, None]},
    }
    folder.mkdir(exist_ok=True)
    return network, models.save(folder, network, config)


def refused(folder):
    with pytest.raises(InputError) as caught:
        models.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert len(message) < 1000
    return message


# Channels, frames and bands of each layer of the smallest network, for 251 frames of 64 bands.
HALVED = ((126, 32), (63, 16), (32, 8), (32, 4))
LAYERS = {
    "residual": [(8 * factor, *size) for factor, size in zip((1, 2, 4, 8), HALVED, strict=True)],
    "vggish": [(4 * factor, *size) for factor, size in zip((1, 2, 4, 8), (*HALVED[:3], (16, 4)), strict=True)],
    "mobilenetv2": [
        *[(8, 126, 32)] * 2,
        (8, 63, 16),
        (8, 32, 8),
        *[(8, 32, 4)] * 3,
        (16, 32, 4),
        (64, 32, 4),
    ],
    "plain": [(4 * factor, *size) for factor, size in zip((1, 1, 2, 3), HALVED, strict=True)],
    "separable": [(4 * factor, *size) for factor, size in zip((1, 2, 4, 8), HALVED, strict=True)],
    "cnn_lstm": [(1, 32, 16), (4, 32, 1)],
}


@pytest.mark.parametrize("tags", [8, 31])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shapes(architecture, tags):
    network = smallest(architecture, tags, bands=64).eval()
    with torch.inference_mode():
        logits, maps = network(spectrograms(2, 251, 64))
    assert logits.shape == (2, tags)
    assert [tuple(layer.shape) for layer in maps] == [(2, *shape) for shape in LAYERS[architecture]]
    assert {layer.dtype for layer in maps} == {torch.float32}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_come_from_the_last_layer_at_mean_and_maximum_over_time(architecture):
    network = trained(architecture)
    with torch.inference_mode():
        logits, maps = network(spectrograms())
        energy = maps[-1].double().mean(dim=3)
        expected = (energy.mean(dim=2) + energy.max(dim=2).values) @ network.head.weight.double().T
    torch.testing.assert_close(logits.double(), expected + network.head.bias.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_follow_each_other(architecture):
    # What reaches the logits has gone through every layer: none is a side branch.
    network = trained(architecture)
    _, maps = network(spectrograms())
    for earlier, later in pairwise(maps):
        (gradient,) = torch.autograd.grad(later.square().sum(), earlier, retain_graph=True)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("architecture", "width", "count"),
    [
        ("residual", 16, 305_992),
        ("vggish", 8, 71_296),
        ("mobilenetv2", 35, 295_128),
        ("plain", 8, 5568),
        ("separable", 8, 4136),
        ("cnn_lstm", 7, 17_046),
    ],
)
def test_frozen_widths_and_parameter_counts(architecture, width, count):
    assert models.width_for(architecture, BUDGETS[architecture], 8, 64) == width
    assert models.parameter_count(models.build(architecture, width, 8, 64)) == count


def test_frames_keep_their_time():
    maps = spectrograms(2, 3 * 5, 4).reshape(2, 3, 5, 4)
    for clip in range(2):
        for time in range(5):
            assert torch.equal(frames(maps)[clip, time], maps[clip, :, time].flatten())


@pytest.mark.parametrize("bands", [8, 13, 40])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_number_of_bands_and_frames(architecture, bands):
    network = smallest(architecture, 8, bands).eval()
    with torch.inference_mode():
        for length in (1, 9, 26):
            logits, maps = network(spectrograms(2, length, bands))
            assert torch.isfinite(logits).all()
            assert all(layer.shape[0] == 2 and min(layer.shape) >= 1 for layer in maps)


@pytest.mark.parametrize("tags", [8, 31])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_budgets_are_kept_and_used(architecture, tags):
    budget = BUDGETS[architecture]
    width = models.width_for(architecture, budget, tags, 64)
    widths = models.ARCHITECTURES[architecture].WIDTHS
    count = models.parameter_count(models.build(architecture, width, tags, 64))
    wider = models.parameter_count(models.build(architecture, width + widths.step, tags, 64))
    assert count <= budget < wider
    # A budget is a limit, not a limit but one.
    assert models.width_for(architecture, wider, tags, 64) > width
    assert models.width_for(architecture, wider - 1, tags, 64) == width


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_wider_network_is_not_smaller(architecture):
    # The search for a width stops at the first that is too large.
    with torch.device("meta"):
        counts = [
            models.parameter_count(models.build(architecture, width, 31, 64))
            for width in list(models.ARCHITECTURES[architecture].WIDTHS)[:20]
        ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_budget_too_small_is_refused_by_numbers(architecture):
    least = models.parameter_count(smallest(architecture, 31, 64))
    with pytest.raises(InputError, match=f"the smallest {architecture} .* has {least} parameters"):
        models.width_for(architecture, least - 1, 31, 64)
    widths = models.ARCHITECTURES[architecture].WIDTHS
    if architecture != "mobilenetv2":  # whose channels are rounded to multiples of 8
        assert models.width_for(architecture, least, 31, 64) == widths[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_network_comes_back_to_the_bit(tmp_path, architecture):
    network, config = saved(tmp_path, architecture)
    loaded, description = models.load(tmp_path)
    assert description == config
    assert not loaded.training
    state = network.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert {"mean", "std"} <= set(state)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])
    with torch.inference_mode():
        (logits, maps), (expected, layers) = loaded(spectrograms()), network(spectrograms())
    assert torch.equal(logits, expected)
    assert all(map(torch.equal, maps, layers))


def test_saving_twice_gives_the_same_bytes(tmp_path):
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    for name in ("weights.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "weights.safetensors"]


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, 0.5, -1])
def test_truncated_weights_are_refused(tmp_path, left):
    saved(tmp_path)
    whole = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(whole[: int(left * len(whole)) if left == 0.5 else left])
    assert "weights.safetensors" in refused(tmp_path)


def test_damaged_and_missing_files_are_refused(tmp_path):
    saved(tmp_path)
    weights, config = tmp_path / "weights.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(b"\xff" * 8 + whole[8:])
    refused(tmp_path)
    weights.unlink()
    assert "weights.safetensors" in refused(tmp_path)
    weights.write_bytes(whole)
    models.load(tmp_path)
    text = config.read_text()
    config.write_text(text[: len(text) // 2])
    assert "config.json" in refused(tmp_path)
    config.unlink()
    assert "config.json" in refused(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 8},
        {"architecture": "separable"},
        {"architecture": "cnn_lstm", "width": 1},
        {"tags": ["one"]},
        {"architecture": "no such"},
        {"architecture": ["plain"]},
        {"width": "4"},
        {"width": -4},
        {"features": {}},
        {"features": None},
        {"tags": 31},
        {"sha256": None},
    ],
)
def test_the_config_of_another_network_is_refused(tmp_path, change):
    _, config = saved(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    refused(tmp_path)


def test_a_bit_that_flips_is_noticed(tmp_path):
    saved(tmp_path)
    weights = tmp_path / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "weights.safetensors" in (message := refused(tmp_path))
    assert "run its step again" in message


@pytest.mark.parametrize("document", [[], None, 3, "plain", {}])
def test_a_config_that_is_none_is_refused(tmp_path, document):
    saved(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(document))
    refused(tmp_path)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["pickle", "torch", "old torch"])
def test_pickles_are_refused_unopened(tmp_path, form):
    folder, trap, file = tmp_path / "model", tmp_path / "executed", tmp_path / "pickled"
    network, config = saved(folder)
    contents = {**network.state_dict(), "trap": Payload(trap)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(contents))
        pickle.loads(file.read_bytes())
    else:
        torch.save(contents, file, _use_new_zipfile_serialization=form == "torch")
        torch.load(file, weights_only=False)
    assert trap.exists()  # the payload does work
    trap.rmdir()
    # The checksum tells no good writer from a bad one.
    (folder / "config.json").write_text(json.dumps(config | {"sha256": sha256(file)}))
    file.replace(folder / "weights.safetensors")
    refused(folder)
    assert not trap.exists()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_clips_of_a_batch_do_not_see_each_other(architecture):
    network = trained(architecture)
    clips = spectrograms(4)
    with torch.inference_mode():
        logits, maps = network(clips)
        for number in range(4):
            alone, layers = network(clips[number : number + 1])
            torch.testing.assert_close(alone[0], logits[number], rtol=1e-3, atol=1e-4)
            for layer, expected in zip(layers, maps, strict=True):
                torch.testing.assert_close(layer[0], expected[number], rtol=1e-3, atol=1e-4)
        assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_input_is_standardised_by_the_buffers(architecture):
    network = trained(architecture)
    mean, std, clips = network.mean.clone(), network.std.clone(), spectrograms()
    with torch.inference_mode():
        expected = network(clips)[0]
        network.mean.zero_()
        network.std.fill_(1)
        torch.testing.assert_close(network((clips - mean) / std)[0], expected)
        assert (network(clips)[0] - expected).abs().max() > 1e-3
    assert {name for name, _ in network.named_parameters()}.isdisjoint({"mean", "std"})


def halved(size):
    return -(-size // 2)


@pytest.mark.parametrize(("width", "tags", "bands", "seconds"), [(4, 8, 64, 10.0), (12, 31, 40, 3.0)])
def test_multiply_accumulates_of_plain(width, tags, bands, seconds):
    features = FEATURES.model_copy(update={"mel_bands": bands, "clip_seconds": seconds})
    time, band = 1 + int(seconds * 16000) // 640, bands
    total = 0
    channels = [1, width, width, 2 * width, 3 * width]
    for layer in range(4):
        time, band = halved(time) if layer < 3 else time, halved(band)
        total += time * band * channels[layer + 1] * 9 * channels[layer]
    total += 3 * width * tags
    assert multiply_accumulates("plain", width, tags, features) == total


def test_multiply_accumulates_of_separable():
    width, time, band, total = 8, 251, 64, 0
    time, band = halved(time), halved(band)
    total += time * band * width * 9
    for layer in range(3):
        time, band = halved(time) if layer < 2 else time, halved(band)
        total += time * band * width * (9 + 2 * width)
        width *= 2
    assert multiply_accumulates("separable", 8, 31, FEATURES) == total + width * 31


@pytest.mark.parametrize(("width", "tags"), [(2, 31), (5, 8)])
def test_multiply_accumulates_of_an_lstm(width, tags):
    frames, inputs, units = 251 // 8 + 1, width * (64 // 4), 4 * width
    convolution = frames * (64 // 4) * width * 16 * 8
    gates = frames * 4 * units * (inputs + units)
    assert multiply_accumulates("cnn_lstm", width, tags, FEATURES) == convolution + gates + units * tags
