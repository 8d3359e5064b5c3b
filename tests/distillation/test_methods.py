"""The losses of the papers around IUSP: each against a twin of its docstring's equation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from iusp.distillation.attention import attention_loss
from iusp.distillation.consistency import consistency_loss
from iusp.distillation.fitnet import fitnet_loss
from iusp.distillation.inter import inter_loss
from iusp.distillation.kd import kd_loss
from iusp.distillation.multilevel import multilevel_loss
from iusp.distillation.non_target import EMPHASIS, non_target_loss
from iusp.distillation.similarity import centred_gram
from iusp.distillation.skill import cluster_layers, skill_loss
from iusp.distillation.vic import vic_loss
from iusp.models.maps import attention_map, gram
from iusp.models.maps import band_means as hints
from tests.support.equations import averaged, naive_kd, rand, randn, similarities, squared_distance, wave

# Twins, one number at a time, in float64.


def transposed(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def naive_attention(student, teacher):
    """Take maps (B, C, T, F) of both."""
    times, bands = (min(student.shape[axis], teacher.shape[axis]) for axis in (2, 3))
    total = 0.0
    for own, others in zip(student, teacher, strict=True):
        unit = []
        for maps in (own, others):
            energy = [[sum(a**2 for a in maps[:, t, f]) for f in range(maps.shape[2])] for t in range(maps.shape[1])]
            pooled = averaged(transposed(averaged(energy, times)), bands)
            length = sum(a**2 for row in pooled for a in row) ** 0.5
            unit.append([[a / length for a in row] for row in pooled])
        total = total + squared_distance(*unit)
    return total / (len(student) * times * bands)


def naive_fitnet(student, teacher):
    count = min(len(student[0]), len(teacher[0]))
    total = sum(squared_distance(averaged(t, count), averaged(s, count)) for s, t in zip(student, teacher, strict=True))
    return total / (2 * len(student) * count * len(student[0][0]))


def naive_vic(student, teacher):
    clips, dimensions = student.shape
    means = [sum(column) / clips for column in student.T]

    def covariance(d, e):
        return sum((row[d] - means[d]) * (row[e] - means[e]) for row in student) / (clips - 1)

    total = squared_distance(student, teacher) / (clips * dimensions)
    for d in range(dimensions):
        total = total + (1 - (covariance(d, d) + 1e-4) ** 0.5).clamp_min(0) / dimensions
        for e in range(dimensions):
            if e != d:
                total = total + covariance(d, e) ** 2 / (25 * dimensions)
    return total


def cross_entropy(z, y):
    p = 1 / (1 + (-z).exp())
    return -y * p.log() - (1 - y) * (1 - p).log()


def naive_inter(student, targets, mask, teacher, temperature):
    """Take the heads' logits (B, H, K)."""
    heads = student.unbind(1)
    total = 0.0
    for logits in heads:
        places = [(n, k) for n in range(len(mask)) for k in range(len(mask[0])) if mask[n, k]]
        total = total + sum(cross_entropy(logits[place], targets[place]) for place in places) / len(places)
        total = total + naive_kd(logits, teacher, temperature)
    return total / len(heads)


def naive_skill(student, teacher):
    """Take frames: (B, T', D) for each cluster, (B, n, T'', E) for the cluster's n layers."""
    total = 0.0
    for frames, layers in zip(student, teacher, strict=True):
        count = min(frames.shape[1], layers.shape[2])
        for own, others in zip(frames, layers, strict=True):
            targets = [similarities(averaged(layer, count)) for layer in others]
            mean = [
                [sum(values) / len(values) for values in zip(*rows, strict=True)] for rows in zip(*targets, strict=True)
            ]
            total = total + squared_distance(mean, similarities(averaged(own, count))) / (len(frames) * count**2)
    return total / len(student)


def naive_non_target(student, teacher, targets, temperature):
    total, weights = 0.0, 0.0
    for z, z_t, y in zip(student.flatten(), teacher.flatten(), targets.flatten(), strict=True):
        weight = 4 if y < 0.5 else 1
        total = total + weight * cross_entropy(z / temperature, 1 / (1 + (-z_t / temperature).exp()))
        weights += weight
    return temperature**2 * total / weights


def naive_multilevel(student, teacher, temperature):
    def products(rows, size):
        return [[sum(x * y for x, y in zip(a, b, strict=True)) / size for b in rows] for a in rows]

    clips, tags = student.shape
    own, others = (1 / (1 + (-logits / temperature).exp()) for logits in (student, teacher))
    total = naive_kd(student, teacher, temperature)
    total = total + squared_distance(products(own.T, clips), products(others.T, clips)) / tags**2
    return total + squared_distance(products(own, tags), products(others, tags)) / clips**2


def naive_consistency(logits, coarse, fine):
    total = 0.0
    for row in logits:
        p = 1 / (1 + (-row).exp())
        for column, columns in zip(coarse, fine, strict=True):
            total = total + (p[column] - max(p[f] for f in columns)) ** 2
    return total / (len(logits) * len(coarse))


@dataclass(frozen=True)
class Case:
    """A loss of (student, *teacher, *labels), clips first in each, and its value for this input."""

    loss: Callable[..., Tensor]
    twin: Callable[[Tensor], Tensor]
    student: Tensor
    teacher: tuple[Tensor, ...] = ()
    labels: tuple[Tensor, ...] = ()
    value: float = 0.0

    def of(self, student):
        return self.loss(student, *self.teacher, *self.labels)


FRAMES, MAPS = wave(3, 6, 4).abs(), wave(3, 2, 4, 5).abs()
OTHER_MAPS = {size: wave(3, 3, *size, phase=1.0).abs() for size in ((4, 5), (3, 8))}
LAYERS = wave(3, 2, 4, 5, phase=1.0).abs(), wave(3, 1, 7, 3, phase=2.0).abs()
LOGITS, SOFT = 3 * wave(4, 5), 3 * wave(4, 5, phase=1.0)
HEADS = 3 * wave(4, 2, 5, phase=2.0)
TARGETS = torch.tensor([[0.0, 1, 0, 0, 1], [1, 0, 0.3, 0, 0], [0, 0, 0, 0, 0], [0, 0.6, 1, 0, 0]])
KNOWN = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
COARSE, FINE = (0, 3), ((1, 2), (4,))

CASES = {
    "attention": Case(
        attention_loss,
        lambda s: naive_attention(s, OTHER_MAPS[4, 5]),
        MAPS,
        (attention_map(OTHER_MAPS[4, 5]),),
        value=0.0020971,
    ),
    "attention-pooled": Case(
        attention_loss,
        lambda s: naive_attention(s, OTHER_MAPS[3, 8]),
        MAPS,
        (attention_map(OTHER_MAPS[3, 8]),),
        value=0.0006327,
    ),
    "fitnet": Case(fitnet_loss, lambda s: naive_fitnet(s, FRAMES + 1), FRAMES.cos(), (FRAMES + 1,), value=0.4879899),
    "fitnet-finer": Case(
        fitnet_loss, lambda s: naive_fitnet(s, FRAMES[:, 1:5]), FRAMES.cos(), (FRAMES[:, 1:5],), value=0.1113671
    ),
    "fitnet-coarser": Case(
        fitnet_loss, lambda s: naive_fitnet(s, FRAMES), FRAMES[:, 1:5].cos(), (FRAMES,), value=0.1070401
    ),
    "vic": Case(vic_loss, lambda s: naive_vic(s, SOFT), LOGITS / 3, (SOFT,), value=3.9254123),
    "inter": Case(
        lambda s, t, y, mask: inter_loss(s.unbind(1), y, mask, t, 2.0),
        lambda s: naive_inter(s, TARGETS, KNOWN, SOFT, 2.0),
        HEADS,
        (SOFT,),
        (TARGETS, KNOWN),
        value=4.4530427,
    ),
    "skill": Case(
        lambda s, *grams: skill_loss(s.unbind(1), grams),
        lambda s: naive_skill(s.unbind(1), LAYERS),
        wave(3, 2, 5, 4).abs(),
        tuple(gram(layers) for layers in LAYERS),
        value=0.0028304,
    ),
    "non_target": Case(
        lambda s, t, y: non_target_loss(s, t, y, 2.0),
        lambda s: naive_non_target(s, SOFT, TARGETS, 2.0),
        LOGITS,
        (SOFT,),
        (TARGETS,),
        value=2.6974124,
    ),
    "multilevel": Case(
        lambda s, t: multilevel_loss(s, t, 2.0),
        lambda s: naive_multilevel(s, SOFT, 2.0),
        LOGITS,
        (SOFT,),
        value=2.7355034,
    ),
    "consistency": Case(
        lambda s: consistency_loss(s, COARSE, FINE),
        lambda s: naive_consistency(s, COARSE, FINE),
        LOGITS,
        value=0.0981277,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_value_and_gradient_are_those_of_the_equation(case):
    student = case.student.clone().requires_grad_()
    found, expected = case.of(student), case.twin(student)
    assert expected.item() == pytest.approx(case.value, abs=2e-7)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7)
    (gradient,) = torch.autograd.grad(found, student)
    (expected,) = torch.autograd.grad(expected, student)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_what_half_precision_gives_is_compared_in_float32(case):
    half, teacher = case.student.bfloat16(), tuple(t.half() for t in case.teacher)
    expected = case.loss(half.float(), *(t.float() for t in teacher), *case.labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.loss(half, *teacher, *case.labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("teacher_too", [False, True])
@pytest.mark.parametrize("clips", [slice(0, 1), slice(None)], ids=["one", "all"])
def test_silence_gives_finite_gradients(case, clips, teacher_too):
    student = case.student.float()
    student[clips] = 0
    student.requires_grad_()
    teacher = tuple(t.float().clone() for t in case.teacher)
    if teacher_too:
        for tensor in teacher:
            tensor[clips] = 0
    value = case.loss(student, *teacher, *case.labels)
    (gradient,) = torch.autograd.grad(value, student)
    assert 0 <= value < 10
    assert gradient.abs().max() < 1


def test_a_batch_of_one_clip_is_legal(case):
    student = case.student[:1].float().requires_grad_()
    value = case.loss(student, *(t[:1] for t in case.teacher), *(t[:1] for t in case.labels))
    (gradient,) = torch.autograd.grad(value, student)
    assert 0 < value < 10
    assert 0 < gradient.abs().max() < 2


@pytest.mark.parametrize(
    ("loss", "features"),
    [
        pytest.param(lambda s: attention_loss(s, attention_map(s.detach())), MAPS, id="attention"),
        pytest.param(lambda s: fitnet_loss(s, s.detach()), FRAMES, id="fitnet"),
        pytest.param(lambda s: skill_loss([s], [gram(s.detach())[:, None].expand(-1, 3, -1, -1)]), FRAMES, id="skill"),
    ],
)
def test_the_same_features_cost_nothing(loss, features):
    assert loss(features.float()).item() < 1e-12


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda z: multilevel_loss(z, z.detach(), 2.0), id="multilevel"),
        pytest.param(lambda z: non_target_loss(z, z.detach(), TARGETS, 2.0), id="non_target"),
        pytest.param(lambda z: inter_loss([z], z.detach().sigmoid(), KNOWN, z.detach(), 2.0), id="inter"),
    ],
)
def test_the_same_predictions_teach_nothing(loss):
    logits = LOGITS.float().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    assert gradient.abs().max() < 1e-7


def test_attention_fits_float16_and_its_factor_cancels():
    loud = 1000 * MAPS.float()
    attention = attention_map(loud)
    assert attention.amax(dim=(1, 2)).tolist() == [1, 1, 1]
    assert attention_loss(loud, attention_map(OTHER_MAPS[4, 5])).item() == pytest.approx(0.0020971, abs=2e-7)
    assert attention_loss(MAPS.float(), attention.half()).item() < 1e-7


def test_hints_are_frames_of_band_means():
    found = hints(MAPS.half())
    assert found.dtype == torch.float32
    assert found.shape == (3, 4, 2)
    assert found[1, 2, 0].item() == pytest.approx(sum(MAPS[1, 0, 2].tolist()) / 5, abs=1e-3)


# Columns of a Hadamard matrix: no mean, no covariance, a standard deviation of √(8/7).
SPREAD = torch.tensor([[(-1.0) ** (n & d).bit_count() for d in (1, 2, 4)] for n in range(8)])


@pytest.mark.parametrize(
    ("student", "value"),
    [
        pytest.param(SPREAD, 0, id="alike, spread and decorrelated"),
        pytest.param(SPREAD + 2, 4, id="invariance"),
        pytest.param(SPREAD / 2, 1 / 4 + 1 - (2 / 7 + 1e-4) ** 0.5, id="invariance and variance"),
        pytest.param(SPREAD[:, [0, 0, 1]], 2 * 2 / 3 + 2 * (8 / 7) ** 2 / 3 / 25, id="invariance and covariance"),
    ],
)
def test_terms_of_vic(student, value):
    assert vic_loss(student, SPREAD).item() == pytest.approx(value, abs=1e-6)


def test_labels_that_are_unknown_leave_soft_labels():
    logits = LOGITS.float()
    found = inter_loss([logits, logits], TARGETS, torch.zeros_like(KNOWN), SOFT, 2.0)
    assert found == kd_loss(logits, SOFT, 2.0)


def test_non_targets_count_four_times_and_are_kd_where_there_is_nothing_else():
    logits = LOGITS.float().requires_grad_()
    for labels in (torch.zeros(4, 5), torch.ones(4, 5)):
        assert non_target_loss(logits, SOFT, labels, 2.0).item() == pytest.approx(kd_loss(logits, SOFT, 2.0).item())
    (plain,) = torch.autograd.grad(kd_loss(logits, SOFT, 2.0), logits)
    (found,) = torch.autograd.grad(non_target_loss(logits, SOFT, TARGETS, 2.0), logits)
    ratio = found / plain
    torch.testing.assert_close(ratio / ratio[0, 1], torch.where(TARGETS < 0.5, EMPHASIS, 1.0), rtol=1e-4, atol=0)
    assert EMPHASIS == 4


def test_consistency_trains_the_coarse_tag_and_the_most_probable_fine_one():
    logits = torch.tensor([[1.0, -1, 0, 2, 2]], requires_grad=True)
    (gradient,) = torch.autograd.grad(consistency_loss(logits, COARSE, FINE), logits)
    # p is 0.73 for the coarse tag, 0.27 and 0.5 for its fine ones.
    assert gradient[0, 0] > 0
    assert gradient[0, 2] < 0
    assert gradient[0, [1, 3, 4]].tolist() == [0, 0, 0]


def naive_clusters(layers, count):
    """Merge, of layers of frames (N, T', D), the two clusters that are closest on average, until `count` are left."""

    def alignment(a, b):
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        return (np.square(a.T @ b).sum()) / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)

    def distance(own, others):
        return np.mean(
            [1 - alignment(a, b) for i in own for j in others for a, b in zip(layers[i], layers[j], strict=True)]
        )

    clusters = [(layer,) for layer in range(len(layers))]
    while len(clusters) > count:
        pairs = [(i, j) for j in range(len(clusters)) for i in range(j)]
        i, j = min(pairs, key=lambda pair: distance(clusters[pair[0]], clusters[pair[1]]))
        merged = tuple(sorted(clusters[i] + clusters[j]))
        clusters = [cluster for k, cluster in enumerate(clusters) if k not in (i, j)] + [merged]
    return sorted(clusters, key=max)


@pytest.mark.parametrize("seed", range(3))
def test_layers_are_clustered_by_their_alignment(seed):
    layers = [rand(3, 8, 5)]
    for layer in range(5):
        # Wider and wider layers, each some way from the one before.
        change = randn(3, 8, 6 + layer, seed=10 * seed + layer)
        layers.append(torch.cat([layers[-1], change[..., :1]], dim=-1) + 0.2 * change)
    similarities = torch.stack([gram(layer.float()) for layer in layers])
    scaled = similarities * torch.tensor([1.0, 10, 0.1, 3, 1, 1])[:, None, None, None]
    for count in range(1, 7):
        expected = naive_clusters([layer.numpy() for layer in layers], count)
        assert cluster_layers(similarities, count) == expected
        assert cluster_layers(scaled.half(), count) == expected


def test_layers_that_are_the_same_still_make_as_many_clusters_as_asked_for():
    one, other = gram(rand(2, 5, 4)), gram(rand(2, 5, 4, seed=1))
    assert cluster_layers(torch.stack([one, other, one]), 2) == [(1,), (0, 2)]
    for same in (torch.stack([one, one, one]), torch.zeros(3, 2, 5, 5)):
        clusters = cluster_layers(same, 2)
        assert len(clusters) == 2
        assert sorted(layer for cluster in clusters for layer in cluster) == [0, 1, 2]


@pytest.mark.parametrize("offset", [0.0, 1.0, 4.0])
def test_centring_a_gram_matrix_is_centring_its_frames(offset):
    frames = rand(4, 16, 32) + offset
    matrix = gram(frames)
    largest = matrix.max().item()
    expected = (frames - frames.mean(dim=1, keepdim=True)).float()
    found = centred_gram(matrix)
    torch.testing.assert_close(found, expected @ expected.mT, rtol=0, atol=2e-6 * largest)
    torch.testing.assert_close(centred_gram(found), found, rtol=0, atol=2e-6 * largest)


@pytest.mark.parametrize(("offset", "relative"), [(0.0, 0.01), (1.0, 0.05), (2.0, 0.1)])
def test_float16_costs_little_of_a_centred_gram_matrix(offset, relative):
    # Non-negative frames as behind a ReLU; the further they are from zero, the more alike they look.
    matrix = gram(rand(8, 64, 128) + offset)
    matrix = matrix / matrix.amax(dim=(1, 2), keepdim=True)
    exact = centred_gram(matrix)
    error = (centred_gram(matrix.half()) - exact).norm(dim=(1, 2))
    assert (error <= 2**-11 * matrix.norm(dim=(1, 2))).all()
    assert (error <= relative * exact.norm(dim=(1, 2))).all()
