"""Image students: what ships equals what was trained, and the choice goes by measured latency."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edge_ravlm.errors import DataError, UsageError
from edge_ravlm.export.onnx_graph import image_graph
from edge_ravlm.export.quantize.cpu_u8 import quantize
from edge_ravlm.export.students import STUDENTS, StudentKind
from edge_ravlm.export.students.choose import choose_student
from edge_ravlm.export.students.image import ImageStudent, pooled
from edge_ravlm.export.students.plain import PlainBackbone
from edge_ravlm.export.students.whitening import fit_whitening
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.targets import target

pytestmark = pytest.mark.export

SIDE = 64


def lived_in(side: int = SIDE) -> ImageStudent:
    """A small plain student whose BatchNorms have seen something."""
    torch.manual_seed(0)
    student = ImageStudent(PlainBackbone((8, 8, 16, 16, 24), (1, 2, 2, 1)), dim=8, side=side)
    for part in student.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    for _ in range(3):
        student.train()(pictures(8, side))
    student.set_tail(0.1 * torch.randn(24), torch.randn(24, 8))
    return student.eval()


def pictures(count: int, side: int = SIDE) -> torch.Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(0, 256, (count, side, side, 3)).astype(np.uint8))


@torch.no_grad()
def test_the_fused_form_gives_the_same_numbers_with_one_convolution_a_block():
    student = lived_in()
    deployed = student.fused()
    embedding, tokens = student(pictures(4))
    again, tokens_again = deployed(pictures(4))
    torch.testing.assert_close(again, embedding, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens_again, tokens, atol=1e-4, rtol=1e-4)
    kinds = [type(part) for part in deployed.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.Conv2d) == 1 + 6
    assert all(part.kernel_size == (3, 3) for part in deployed.modules() if isinstance(part, nn.Conv2d))


def test_fusing_leaves_the_original_trainable():
    student = lived_in()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    deployed = student.fused()
    with torch.no_grad():
        deployed.projection.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_outputs_are_unit_vectors_and_one_token_a_cell():
    embedding, tokens = lived_in(80)(pictures(2, 80))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    assert tokens.shape == (2, 9, 24)  # 80 / 32, rounded up


@torch.no_grad()
def test_the_query_decides_which_cells_count():
    tokens = torch.zeros(1, 3, 2)
    tokens[0] = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    mean, found = pooled(tokens, torch.zeros(2)), pooled(tokens, torch.tensor([0.0, 20.0]))
    assert torch.allclose(mean, nn.functional.normalize(tokens.mean(1), dim=1)), "none is the plain mean"
    assert torch.allclose(found, torch.tensor([[0.0, 1.0]]), atol=1e-6)


@torch.no_grad()
def test_the_deploy_form_keeps_the_query():
    student = lived_in()
    plain = student(pictures(2))[0]
    student.query.copy_(torch.linspace(-1, 1, student.channels))
    assert not torch.allclose(student(pictures(2))[0], plain, atol=1e-3)
    assert torch.allclose(student(pictures(2))[0], student.fused()(pictures(2))[0], atol=1e-5)


def test_a_deployed_plain_student_survives_onnx_and_int8():
    deployed = lived_in().fused()
    shape, shown = Preprocess(height=SIDE, width=SIDE), pictures(8)
    graph = image_graph(deployed, shape)
    inputs = [shown[row : row + 1].numpy() for row in range(8)]
    expected = deployed(shown)[0].detach().numpy()
    for model, least in ((graph, 0.99999), (quantize(graph, inputs), 0.95)):
        session = onnxruntime.InferenceSession(model.SerializeToString())
        found = session.run(["embedding"], {"image": shown.numpy()})[0]
        assert (found * expected).sum(1).min() > least


def test_whitening_levels_the_spread_and_keeps_the_largest_directions():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6))[0]
    spread = torch.tensor([8.0, 4.0, 2.0, 0.1, 0.1, 0.1])
    cloud = torch.randn(500, 6) * spread @ basis.T + 5
    full = (cloud - cloud.mean(0)) @ fit_whitening(cloud, 3, strength=1).projection
    torch.testing.assert_close(full.std(0) / full.std(0).mean(), torch.ones(3), atol=1e-3, rtol=0)
    kept = (cloud - cloud.mean(0)) @ fit_whitening(cloud, 3, strength=0).projection
    assert kept.std(0)[0] > 1.7 * kept.std(0)[1] > 2.5 * kept.std(0)[2]


def test_whitening_survives_directions_without_spread():
    flat = torch.randn(20, 4) @ torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    found = fit_whitening(flat, 4, strength=1)(flat)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(("shape", "got"), [((5, 20), "5 pictures"), ((20, 5), "5 channels")])
def test_whitening_says_what_there_is_too_little_of(shape: tuple[int, int], got: str):
    with pytest.raises(DataError, match=got):
        fit_whitening(torch.randn(shape), 8)


@pytest.mark.parametrize("kind", [kind for kind in STUDENTS.values() if not kind.packages], ids=lambda kind: kind.name)
def test_random_kinds_build_at_any_side_and_name_no_source(kind: StudentKind):
    student = kind.build(dim=32, side=96).eval()
    embedding, tokens = student(pictures(1, 96))
    assert embedding.shape == (1, 32)
    assert tokens.shape == (1, 9, student.channels)
    assert (student.side, kind.build(dim=32).side, kind.sources) == (96, kind.side, ())


@pytest.mark.data
def test_efficientnet_starts_from_imagenet_and_takes_bgr():
    from edge_ravlm.export.teachers import image_teacher

    student, teacher = STUDENTS["efficientnet-lite0"].build(dim=32), image_teacher("efficientnet-lite0")
    shown = pictures(1, 224)
    head = teacher._network.network.head
    with torch.no_grad():
        expected = nn.functional.relu6(head(student.eval().grid(shown))).flatten(2).transpose(1, 2)
    torch.testing.assert_close(teacher.embed(shown)[1], expected, atol=1e-4, rtol=1e-4)
    assert STUDENTS["efficientnet-lite0"].sources[0].licence == "Apache-2.0"


SPEEDS = {kind.name: 2.0 * kind.prior for kind in STUDENTS.values()}


def test_the_most_accurate_kind_that_fits_is_chosen_and_every_measurement_reported():
    choice = choose_student(target("cpu-x86"), 7.0, latency=lambda kind: SPEEDS[kind.name])
    assert choice.kind.name == "efficientnet-lite0-128"
    assert {one.name: one.int8_ms for one in choice.measured} == SPEEDS
    assert [one.name for one in choice.measured if one.fits] == [
        "efficientnet-lite0-128",
        "repvgg-small",
        "repvgg-tiny",
    ]
    assert "6.0 ms of 7 ms" in choice.reason


def test_a_gpu_gets_the_plain_family_and_the_choice_says_that_it_was_not_measured():
    choice = choose_student(target("jetson-orin-nano"), 7.0, latency=lambda kind: pytest.fail("measured"))
    assert (choice.kind.name, choice.measured) == ("repvgg-a0", ())
    assert "not measured" in choice.reason
    only = choose_student(target("rtx-40"), 7.0, ["efficientnet-lite0"])
    assert only.kind.name == "efficientnet-lite0"
    assert "plain" not in only.reason


def test_a_budget_that_nothing_fits_names_the_fastest():
    with pytest.raises(UsageError, match=r"within 1 ms, got 2.0 ms for the fastest, repvgg-tiny"):
        choose_student(target("cpu-x86"), 1.0, latency=lambda kind: SPEEDS[kind.name])


@pytest.mark.parametrize(("kinds", "got"), [(["resnet"], "'resnet'"), ([], "no name")])
def test_an_unknown_kind_is_refused_with_those_there_are(kinds: list[str], got: str):
    with pytest.raises(UsageError, match=f"repvgg-a0.*{got}"):
        choose_student(target("cpu-x86"), 9.0, kinds)


def test_latency_is_measured_on_the_real_int8_graph():
    choice = choose_student(target("cpu-x86"), 10_000, ["repvgg-tiny"])
    assert choice.kind.name == "repvgg-tiny"
    assert choice.measured[0].int8_ms > 0
