import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from iusp.config.methods import METHODS
from iusp.config.params import load
from iusp.config.students import Recipe, Student, TappedLayers
from iusp.data.taxonomy import Taxonomy
from iusp.distillation.attention import attention_loss
from iusp.distillation.consistency import consistency_loss
from iusp.distillation.fitnet import fitnet_loss
from iusp.distillation.inter import inter_loss
from iusp.distillation.iusp import iusp_loss
from iusp.distillation.kd import kd_loss
from iusp.distillation.losses import DistillationLosses
from iusp.distillation.method import Outputs, Subject
from iusp.distillation.multilevel import multilevel_loss
from iusp.distillation.non_target import non_target_loss
from iusp.distillation.similarity import row_normalised
from iusp.distillation.skill import skill_loss
from iusp.distillation.sp import sp_loss
from iusp.distillation.vic import vic_loss
from iusp.models import ARCHITECTURES, build
from iusp.models.maps import band_means, clip_embedding, frames, gram, pooled, pooled_frames, pooled_gram
from tests.support.equations import averaged, naive_kd, rand, randn, similarities, squared_distance, wave
from tests.support.project import ROOT

quick = settings(max_examples=25, deadline=None)


# Twins of the docstrings' equations, one number at a time, in float64.


def naive_iusp(student, teacher):
    """Take frames of both: the loss itself takes the teacher's Gram matrices."""
    count = min(len(student[0]), len(teacher[0]))
    total = sum(
        squared_distance(similarities(averaged(t, count)), similarities(averaged(s, count)))
        for s, t in zip(student, teacher, strict=True)
    )
    return total / (len(student) * count**2)


def naive_sp(student, teacher):
    flat = [[value for frame in clip for value in frame] for clip in student]
    return squared_distance(similarities(teacher), similarities(flat)) / len(flat) ** 2


@pytest.mark.parametrize(("own", "others"), [(4, 4), (5, 3), (3, 5), (7, 4), (1, 6), (6, 1)])
def test_iusp_is_its_equation_also_where_frame_counts_differ(own, others):
    student, teacher = rand(3, own, 6), rand(3, others, 4, seed=1)
    result = iusp_loss(student.float(), gram(teacher.float()))
    assert result.item() == pytest.approx(float(naive_iusp(student, teacher)), abs=1e-6)


def test_sp_is_its_equation():
    student, teacher = rand(5, 3, 4), rand(5, 9, seed=1)
    assert sp_loss(student.float(), teacher.float()).item() == pytest.approx(
        float(naive_sp(student, teacher)), abs=1e-6
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_is_its_equation(temperature):
    student, teacher = 3 * randn(4, 5), 3 * randn(4, 5, seed=1)
    result = kd_loss(student.float(), teacher.float(), temperature)
    assert result.item() == pytest.approx(float(naive_kd(student, teacher, temperature)), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "twin", "student"),
    [
        pytest.param(
            lambda s: iusp_loss(s, gram(rand(2, 4, 3, seed=1))),
            lambda s: naive_iusp(s, rand(2, 4, 3, seed=1)),
            rand(2, 4, 3),
            id="iusp",
        ),
        pytest.param(
            lambda s: iusp_loss(s, gram(rand(2, 3, 3, seed=1))),
            lambda s: naive_iusp(s, rand(2, 3, 3, seed=1)),
            rand(2, 5, 2),
            id="iusp-pooled",
        ),
        pytest.param(
            lambda s: sp_loss(s, rand(4, 5, seed=1)), lambda s: naive_sp(s, rand(4, 5, seed=1)), rand(4, 2, 2), id="sp"
        ),
        pytest.param(
            lambda s: kd_loss(s, randn(3, 4, seed=1), 2.0),
            lambda s: naive_kd(s, randn(3, 4, seed=1), 2.0),
            randn(3, 4),
            id="kd",
        ),
    ],
)
def test_gradients_are_those_of_the_equations(loss, twin, student):
    student = student.requires_grad_()
    assert torch.autograd.gradcheck(twin, student)
    (expected,) = torch.autograd.grad(twin(student), student)
    (found,) = torch.autograd.grad(loss(student), student)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_frozen_numbers():
    student, teacher = wave(3, 5, 4).abs().float(), wave(3, 7, 6, phase=1.0).abs().float()
    assert iusp_loss(student, gram(teacher)).item() == pytest.approx(0.0043606, abs=2e-7)
    assert sp_loss(student, wave(3, 8, phase=2.0).float()).item() == pytest.approx(0.0547473, abs=2e-7)
    logits, soft = 3 * wave(3, 4).float(), 3 * wave(3, 4, phase=1.0).float()
    assert kd_loss(logits, soft, 2.0).item() == pytest.approx(2.6710934, abs=2e-6)


def test_what_is_the_same_costs_nothing():
    frames = rand(3, 5, 4).float()
    assert iusp_loss(frames, gram(frames)).item() < 1e-12
    assert sp_loss(frames, frames.flatten(1)).item() < 1e-12
    logits = randn(3, 4).float().requires_grad_()
    (gradient,) = torch.autograd.grad(kd_loss(logits, logits.detach(), 3.0), logits)
    assert gradient.abs().max() < 1e-7


@quick
@given(seed=st.integers(0, 999), frames=st.integers(2, 9))
def test_non_negative_features_bound_the_losses(seed, frames):
    # Rows of unit norm without negative entries are at most √2 apart.
    sparse = torch.where(rand(4, frames, 3, seed=seed) > 0.6, rand(4, frames, 3, seed=seed + 1), 0.0).float()
    teacher = rand(4, frames, 5, seed=seed + 2).float()
    assert 0 <= iusp_loss(sparse, gram(teacher)) <= 2 / frames
    assert 0 <= sp_loss(sparse, teacher.flatten(1)) <= 2 / 4


@quick
@given(exponent=st.lists(st.floats(-4, 4), min_size=3, max_size=3))
def test_a_factor_per_clip_cancels(exponent):
    student, teacher = rand(3, 5, 4).float(), gram(rand(3, 7, 6, seed=1).float())
    factor = (10 ** torch.tensor(exponent))[:, None, None]
    expected = iusp_loss(student, teacher).item()
    assert iusp_loss(student, factor * teacher).item() == pytest.approx(expected, rel=1e-4)
    assert iusp_loss(factor * student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_iusp_sees_the_order_of_frames_and_sp_that_of_clips():
    frames = rand(3, 6, 4).float()
    turned = torch.tensor([3, 0, 5, 1, 4, 2])
    assert iusp_loss(frames[:, turned], gram(frames)).item() > 1e-3
    assert iusp_loss(frames[:, turned], gram(frames[:, turned])).item() < 1e-12
    assert sp_loss(frames[[2, 0, 1]], frames.flatten(1)).item() > 1e-4


def test_rolling_frames_rolls_the_similarities():
    frames = rand(2, 6, 4).float()
    rolled = gram(frames.roll(2, dims=1))
    assert torch.equal(rolled, gram(frames).roll((2, 2), dims=(1, 2)))


def test_zero_rows_stay_zero():
    matrix = rand(2, 4, 4).float()
    matrix[0, 1] = 0
    normalised = row_normalised(matrix)
    assert torch.equal(normalised[0, 1], torch.zeros(4))
    torch.testing.assert_close(normalised[1].norm(dim=-1), torch.ones(4))


def test_all_zero_frames_give_zero():
    nothing = torch.zeros(2, 5, 4)
    assert iusp_loss(nothing, gram(nothing)).item() == 0
    assert sp_loss(nothing, torch.zeros(2, 7)).item() == 0
    # A silent student is as far as rows of unit length are from zero: 1 a row.
    assert iusp_loss(nothing, gram(rand(2, 5, 3).float())).item() == pytest.approx(1 / 5)
    assert sp_loss(nothing, rand(2, 7).float()).item() == pytest.approx(1 / 2)


def silent_frame(loss, ceiling):
    """Return the gradient of the loss for a clip of which one frame (or all of clip 0) is zero, and the others'."""
    student = rand(3, 5, 4).float()
    student[0, slice(None) if loss is sp_loss else 2] = 0
    student.requires_grad_()
    teacher = rand(3, 7, seed=1).float() if loss is sp_loss else gram(rand(3, 5, 4, seed=1).float())
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    silent = (student == 0).all(-1)
    assert gradient[~silent].abs().max() < ceiling
    return gradient[silent], gradient[~silent]


@pytest.mark.parametrize("loss", [iusp_loss, sp_loss])
def test_the_gradient_of_a_zero_row_is_no_larger_than_others(loss):
    silent, others = silent_frame(loss, ceiling=1.0)
    assert others.abs().max() > 1e-4
    # The row itself gives none; what is left comes from its similarities with the other rows.
    assert silent.abs().max() < 1


@pytest.mark.parametrize("loss", [iusp_loss, sp_loss])
def test_zero_frames_behind_a_relu_teach_nothing_and_break_nothing(loss):
    before = randn(3, 5, 4).float()
    before[0] = -1.0
    before.requires_grad_()
    teacher = rand(3, 7, seed=1).float() if loss is sp_loss else gram(rand(3, 5, 4, seed=1).float())
    loss(before.relu(), teacher).backward()
    assert torch.equal(before.grad[0], torch.zeros(5, 4))
    assert 0 < before.grad.abs().max() < 1


def test_losses_are_in_float32_under_autocast():
    student, teacher = rand(3, 6, 40).float(), rand(3, 6, 40, seed=1).float()
    logits = randn(3, 8).float()
    calls = [
        lambda: gram(student),
        lambda: iusp_loss(student, gram(teacher)),
        lambda: iusp_loss(student, gram(teacher[:, :4])),
        lambda: sp_loss(student, teacher.flatten(1)),
        lambda: kd_loss(logits, -logits, 2.0),
    ]
    for call in calls:
        expected = call()
        with torch.autocast("cpu", torch.bfloat16):
            found = call()
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize("count", [6, 4])
def test_bfloat16_frames_are_compared_in_float32(count):
    student, teacher = rand(3, 6, 40).bfloat16(), gram(rand(3, count, 40, seed=1).float())
    assert torch.equal(iusp_loss(student, teacher), iusp_loss(student.float(), teacher))
    assert torch.equal(sp_loss(student, rand(3, 9).float()), sp_loss(student.float(), rand(3, 9).float()))


@quick
@given(frames=st.integers(1, 12), data=st.data())
def test_pooling_gram_matrices_is_pooling_frames(frames, data):
    count = data.draw(st.integers(1, frames))
    features = rand(2, frames, 3, seed=data.draw(st.integers(0, 99)))
    found = pooled_gram(gram(features.float()), count)
    pooled = torch.tensor([averaged(clip.tolist(), count) for clip in features], dtype=torch.float64)
    torch.testing.assert_close(pooled_frames(features, count), pooled)
    assert found.shape == (2, count, count)
    torch.testing.assert_close(found.double(), pooled @ pooled.mT, rtol=1e-5, atol=1e-6)


def test_embeddings_keep_inner_products():
    # |x| |y| / √E is the documented standard deviation; x and y are drawn, the hash is always the same.
    dimensions, pairs = 256, 800
    x, y = randn(pairs, 30, 40), randn(pairs, 30, 40, seed=1)
    error = (clip_embedding(x, dimensions) * clip_embedding(y, dimensions)).sum(1) - (x * y).sum((1, 2))
    relative = error / (x.norm(dim=(1, 2)) * y.norm(dim=(1, 2)))
    assert relative.std().item() == pytest.approx(dimensions**-0.5, rel=0.15)
    assert abs(relative.mean().item()) < 4 * dimensions**-0.5 / pairs**0.5


def test_embeddings_are_the_same_on_each_call():
    frames = rand(2, 6, 50).float()
    torch.manual_seed(1)
    first = clip_embedding(frames, 64)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(clip_embedding(frames, 64), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    # A clip's embedding does not depend on its neighbours, nor on how T'·D is divided.
    assert torch.equal(clip_embedding(frames[1:], 64), first[1:])
    assert torch.equal(clip_embedding(frames.reshape(2, 10, 30), 64), first)
    assert first.dtype == torch.float32
    assert first.shape == (2, 64)


def test_sp_on_embeddings_is_close_to_sp_on_frames():
    # Clips of a few kinds, so that the similarities differ.
    kinds = rand(3, 32, 200)
    teacher = torch.stack([kinds[n % 3] * (rand(32, 200, seed=n) > 0.4) for n in range(12)]).float()
    student = rand(12, 16, 20, seed=9).float()
    exact = sp_loss(student, teacher.flatten(1)).item()
    hashed = sp_loss(student, clip_embedding(teacher, 2048)).item()
    assert exact > 1e-4
    assert hashed == pytest.approx(exact, rel=0.1)


# All methods together, on three layers of student and teacher.

LAYERS = {name: [1, 3] for name in TappedLayers.model_fields} | {"skill": [1, 2, 3]}
# The cluster of the teacher's layers 3 and 2 teaches the student's layer 2.
MAPS = tuple(randn(4, channels, time, 3, seed=time).relu().float() for channels, time in ((2, 12), (3, 8), (4, 6)))
LOGITS = 2 * randn(4, 5).float()
TARGETS, MASK = (rand(4, 5, seed=3) > 0.6).float(), rand(4, 5, seed=4) > 0.3
KNOWN = {"logits": 2 * randn(4, 5, seed=1).half(), "pooled": rand(4, 7, seed=1).half()}
for _layer in (1, 2, 3):
    KNOWN |= {
        f"similarity-{_layer}": gram(rand(4, 6, 3, seed=_layer)).half(),
        f"embedding-{_layer}": rand(4, 9, seed=10 + _layer).half(),
        f"attention-{_layer}": rand(4, 6, 2, seed=20 + _layer).half(),
        f"hints-{_layer}": rand(4, 6, {1: 7, 2: 5, 3: 3}[_layer], seed=30 + _layer).half(),
    }
# What is stored of the training clips: the teacher's layers 3 and 2 are alike, layer 1 is not.
ALIKE, UNLIKE = rand(16, 6, 3, seed=50), rand(16, 6, 3, seed=51)
STORED = {name: array.numpy() for name, array in KNOWN.items()} | {
    "similarity-3": gram(ALIKE).half().numpy(),
    "similarity-2": gram(ALIKE + 0.01 * UNLIKE).half().numpy(),
    "similarity-1": gram(UNLIKE).half().numpy(),
}
SUBJECT = Subject(
    channels=(2, 3, 4),
    tags=["a", "a1", "a2", "b", "b1"],
    taxonomy=Taxonomy(coarse={"A": "a", "B": "b"}, fine={"A": ("a1", "a2"), "B": ("b1",)}, uncertain={}),
    knowledge=STORED.__getitem__,
)
TRAINED = {"fitnet": "regressors", "inter": "heads", "vic": "projection"}


def recipe(*methods, weight=1.0, layers=LAYERS):
    student = Student(architecture="plain", parameters=7000, method="+".join(methods) or "labels", seeds=[0])
    return Recipe(
        name="small",
        student=student,
        weights=dict.fromkeys(methods, weight),
        layers={method: layers[method] for method in methods if method in layers},
        temperature=2.0,
        knowledge="cached",
        training=load(ROOT / "params.yaml").distillation.training,
    )


def distillation(*methods, weight=1.0, layers=LAYERS):
    torch.manual_seed(0)
    losses = DistillationLosses(recipe(*methods, weight=weight, layers=layers), SUBJECT)
    return losses, lambda *parts: losses(Outputs(*parts))


def by_hand(method, parts):
    """Return one loss by its pure function; `parts` has the trained parts."""
    known = {name: array.float() for name, array in KNOWN.items()}

    def mean(loss):
        return (loss(1) + loss(3)) / 2

    return {
        "kd": lambda: kd_loss(LOGITS, known["logits"], 2.0),
        "non_target": lambda: non_target_loss(LOGITS, known["logits"], TARGETS, 2.0),
        "multilevel": lambda: multilevel_loss(LOGITS, known["logits"], 2.0),
        "inter": lambda: inter_loss(
            [parts["inter"].heads["1"](pooled(MAPS[2])), parts["inter"].heads["3"](pooled(MAPS[0]))],
            TARGETS,
            MASK,
            known["logits"],
            2.0,
        ),
        "vic": lambda: vic_loss(parts["vic"].projection(pooled(MAPS[2])), known["pooled"]),
        "sp": lambda: mean(lambda layer: sp_loss(frames(MAPS[3 - layer]), known[f"embedding-{layer}"])),
        "iusp": lambda: mean(lambda layer: iusp_loss(frames(MAPS[3 - layer]), known[f"similarity-{layer}"])),
        "attention": lambda: mean(lambda layer: attention_loss(MAPS[3 - layer], known[f"attention-{layer}"])),
        "fitnet": lambda: mean(
            lambda layer: fitnet_loss(
                parts["fitnet"].regressors[str(layer)](band_means(MAPS[3 - layer])), known[f"hints-{layer}"]
            )
        ),
        "skill": lambda: skill_loss(
            [frames(MAPS[1]), frames(MAPS[2])],
            [
                torch.stack([known["similarity-3"], known["similarity-2"]], dim=1),
                known["similarity-1"].unsqueeze(1),
            ],
        ),
        "consistency": lambda: consistency_loss(LOGITS, (0, 3), ((1, 2), (4,))),
    }[method]()


@pytest.mark.parametrize(
    "methods", [*((method,) for method in METHODS), ("iusp", "kd"), ("fitnet", "vic", "inter", "sp"), tuple(METHODS)]
)
def test_weighted_losses_are_the_pure_ones_averaged_over_layers(methods):
    losses, called = distillation(*methods, weight=3.0)
    found = called(LOGITS, MAPS, TARGETS, MASK, KNOWN)
    assert list(found) == list(methods)
    for method in methods:
        assert found[method].item() == pytest.approx(3 * by_hand(method, losses.methods).item(), rel=1e-6)
        assert found[method].item() > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_labels_alone_have_no_distillation_and_a_weight_of_zero_no_loss(method):
    assert distillation()[1](LOGITS, MAPS, TARGETS, MASK, {}) == {}
    assert distillation(method, weight=0.0)[1](LOGITS, MAPS, TARGETS, MASK, KNOWN)[method] == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_needs_no_knowledge_but_its_own(method):
    names = recipe(method).knowledge_names
    assert {name.partition("-")[0] for name in names} == {METHODS[method].knowledge} - {None}
    alone = distillation(method)[1](LOGITS, MAPS, TARGETS, MASK, {name: KNOWN[name] for name in names})
    assert alone[method] == distillation(method)[1](LOGITS, MAPS, TARGETS, MASK, KNOWN)[method]


@pytest.mark.parametrize("method", METHODS)
def test_trained_parts_belong_to_three_methods_and_learn(method):
    losses, called = distillation(method)
    parts = {name.split(".")[2] for name, _ in losses.named_parameters()}
    assert parts == ({TRAINED[method]} if method in TRAINED else set())
    if parts:
        called(LOGITS, MAPS, TARGETS, MASK, KNOWN)[method].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in losses.parameters())


def test_trained_parts_have_the_sizes_of_student_and_teacher():
    losses, _ = distillation(*METHODS)
    shapes = {name: tuple(tensor.shape) for name, tensor in losses.state_dict().items() if name.endswith("weight")}
    assert shapes == {
        "methods.fitnet.regressors.1.weight": (7, 4),
        "methods.fitnet.regressors.3.weight": (3, 2),
        "methods.inter.heads.1.weight": (5, 4),
        "methods.inter.heads.3.weight": (5, 2),
        "methods.vic.projection.weight": (7, 4),
    }


def test_a_cluster_of_layers_that_the_student_lacks_teaches_its_first():
    _, called = distillation("skill")
    _, last = MAPS[1:]
    found = called(LOGITS, (last,), TARGETS, MASK, KNOWN)["skill"]
    similarities = [KNOWN[f"similarity-{layer}"].float() for layer in (3, 2, 1)]
    expected = skill_loss([frames(last)] * 2, [torch.stack(similarities[:2], dim=1), similarities[2].unsqueeze(1)])
    assert found == expected


@pytest.mark.parametrize("method", METHODS)
def test_all_losses_are_in_float32_of_bfloat16_maps(method):
    half = distillation(method)[1](LOGITS.bfloat16(), [layer.bfloat16() for layer in MAPS], TARGETS, MASK, KNOWN)[
        method
    ]
    rounded = distillation(method)[1](
        LOGITS.bfloat16().float(), [layer.bfloat16().float() for layer in MAPS], TARGETS, MASK, KNOWN
    )[method]
    assert half.dtype == torch.float32
    # The mean over time and bands of `pooled` is that of autocast: bfloat16.
    assert half.item() == pytest.approx(rounded.item(), rel=1e-2 if method in ("vic", "inter") else 1e-6)


@pytest.mark.parametrize(
    ("architecture", "radius"), [("plain", 15), ("residual", 37), ("separable", 15), ("cnn_lstm", 8)]
)
def test_late_sounds_do_not_reach_early_frames(architecture, radius):
    torch.manual_seed(0)
    network = build(architecture, ARCHITECTURES[architecture].WIDTHS[2], 8, 16).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.fill_(0.5)  # so that no ReLU hides a change
    log_mel = randn(1, 128, 16).float()
    changed = log_mel.clone()
    changed[:, 64:] += randn(1, 64, 16, seed=1).float()
    with torch.inference_mode():
        difference = (network(changed)[1][-1] - network(log_mel)[1][-1]).abs().amax(dim=(0, 1, 3))
    # Output frame j is centred on input frame 8 j and sees `radius` frames to either side.
    centre = 8 * np.arange(len(difference))
    assert (difference[centre + radius < 64] == 0).all()
    assert (difference[(centre >= 64) & (centre < 128)] > 0).all()
