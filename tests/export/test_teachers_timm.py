"""Teachers through ``timm``, offline: its smallest models with random weights, saved as a user's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from edge_ravlm.errors import DataError
from edge_ravlm.export.teachers import image_teacher

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("torchvision_imports")]

SIDE = 160
GRIDS = {"test_vit": 10, "test_resnet": 5, "test_convnext": 5}
"""Side in cells of the last stage's grid."""


def noise(side: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(pixels: Tensor, model: Any) -> Tensor:
    mean, std = (torch.tensor(model.pretrained_cfg[part])[:, None, None] for part in ("mean", "std"))
    return (pixels.flip(3).permute(0, 3, 1, 2).float() / 255 - mean) / std


def make(folder: Path, architecture: str, **settings: Any) -> tuple[Any, str]:
    """A model with random weights, and the name of the teacher that reads its file."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(architecture, **settings).eval()
    save_file(model.state_dict(), folder / "mine.safetensors")
    return model, f"timm:{architecture}/{folder / 'mine.safetensors'}"


@pytest.mark.parametrize("architecture", GRIDS)
class TestBackbones:
    def test_agrees_with_the_model(self, architecture: str, tmp_path: Path) -> None:
        model, name = make(tmp_path, architecture)
        teacher, pixels = image_teacher(name), noise()
        with torch.no_grad():
            hidden = model.forward_features(normalised(pixels, model))
            wanted = model.forward_head(hidden, pre_logits=True)
        patches = hidden[:, model.num_prefix_tokens :] if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)
        embedding, tokens = teacher.embed(pixels)
        assert (teacher.side, teacher.dim) == (SIDE, model.num_features)
        assert tokens.shape == (2, GRIDS[architecture] ** 2, patches.shape[2])
        torch.testing.assert_close(embedding, normalize(wanted), rtol=1e-4, atol=1e-5)
        if architecture != "test_convnext":  # whose last norm belongs to its head
            torch.testing.assert_close(tokens, patches, rtol=1e-4, atol=1e-5)

    def test_another_side(self, architecture: str, tmp_path: Path) -> None:
        teacher = image_teacher(make(tmp_path, architecture)[1], 96)
        embedding, tokens = teacher.embed(noise(96))
        assert tokens.shape[:2] == (2, (GRIDS[architecture] * 96 // SIDE) ** 2)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


class TestFiles:
    def test_a_classifier_of_yours_does_not_matter(self, tmp_path: Path) -> None:
        """A fine-tuned model has other classes than timm's own."""
        model, name = make(tmp_path, "test_resnet", num_classes=7)
        with torch.no_grad():
            wanted = model.forward_head(model.forward_features(normalised(noise(), model)), pre_logits=True)
        torch.testing.assert_close(image_teacher(name).embed(noise())[0], normalize(wanted), rtol=1e-4, atol=1e-5)

    def test_names_the_file_and_no_path(self, tmp_path: Path) -> None:
        (source,) = image_teacher(make(tmp_path, "test_resnet")[1]).sources
        assert (source.name, source.origin) == ("test_resnet/mine.safetensors", "a local file")

    def test_blue_is_not_red(self, tmp_path: Path) -> None:
        teacher = image_teacher(make(tmp_path, "test_resnet")[1])
        assert not torch.allclose(teacher.embed(noise())[0], teacher.embed(noise().flip(3))[0], atol=1e-3)

    def test_missing_weights_are_not_made_up(self, tmp_path: Path) -> None:
        model, name = make(tmp_path, "test_resnet")
        state = model.state_dict()
        del state["conv1.0.weight"]
        save_file(state, tmp_path / "mine.safetensors")
        with pytest.raises(DataError, match=r"teacher 'timm:test_resnet/.*weights on the hub or in a file"):
            image_teacher(name)

    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "damaged.safetensors").write_bytes(b"half a download")
        damaged = f"{tmp_path}/damaged.safetensors"
        for name in (
            "no_such_network",
            f"no_such_network/{damaged}",
            f"test_vit/{damaged}",
            f"test_vit/{tmp_path}/absent",
        ):
            with pytest.raises(DataError, match="expected a timm architecture, and weights"):
                image_teacher(f"timm:{name}")

    def test_no_hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(DataError, match="check the names, the network and the file"):
            image_teacher("timm:test_resnet")
