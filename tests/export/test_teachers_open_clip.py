"""Teachers through ``open_clip``, offline: a tiny CLIP with random weights, saved as a user's file or folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import normalize

from edge_ravlm.errors import DataError
from edge_ravlm.export.teachers import image_teacher, text_teacher

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("torchvision_imports")]

SIDE, CONTEXT = 32, 16
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
TOWERS = {
    "vit": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
    "resnet": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "timm": {"image_size": 64, "timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"},
}
CELLS = {"vit": 16, "resnet": 1, "timm": 4}
LOOKS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
TEXTS = ["The gate is open", "it's  a dog, isn't it?", "Ångström 42 x " * 20, "naïve   CAFÉ\n1984!"]


def noise(side: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(LOOKS[part])[:, None, None] for part in ("mean", "std"))
    return (pixels.flip(3).permute(0, 3, 1, 2).float() / 255 - mean) / std


def make(folder: Path, tower: str = "vit") -> tuple[Any, str]:
    """A model with random weights, and the name of the teacher that reads its folder."""
    import open_clip

    config = {"embed_dim": 24, "vision_cfg": TOWERS[tower], "text_cfg": TEXT}
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": LOOKS}))
    return model, f"open_clip:local-dir:{folder}"


@pytest.mark.parametrize("tower", TOWERS)
def test_images_agree_with_the_model(tower: str, tmp_path: Path) -> None:
    model, name = make(tmp_path, tower)
    teacher, pixels = image_teacher(name), noise(TOWERS[tower]["image_size"])
    with torch.no_grad():
        wanted = model.encode_image(normalised(pixels))
    embedding, tokens = teacher.embed(pixels)
    assert (teacher.side, teacher.dim) == (TOWERS[tower]["image_size"], 24)
    assert tokens.shape[:2] == (2, CELLS[tower])
    torch.testing.assert_close(embedding, normalize(wanted), rtol=1e-4, atol=1e-5)


def test_tokens_are_the_last_layers_patches(tmp_path: Path) -> None:
    model, name = make(tmp_path)
    model.visual.output_tokens = True
    with torch.no_grad():
        _, patches = model.visual(normalised(noise()))
    torch.testing.assert_close(image_teacher(name).embed(noise())[1], patches, rtol=1e-4, atol=1e-5)


def test_another_side_moves_the_positions(tmp_path: Path) -> None:
    embedding, tokens = image_teacher(make(tmp_path)[1], 48).embed(noise(48))
    assert tokens.shape == (2, 36, 32)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


def test_blue_is_not_red(tmp_path: Path) -> None:
    teacher = image_teacher(make(tmp_path)[1])
    assert not torch.allclose(teacher.embed(noise())[0], teacher.embed(noise().flip(3))[0], atol=1e-3)


class TestTexts:
    def test_agree_with_the_model(self, tmp_path: Path) -> None:
        import open_clip

        model, name = make(tmp_path)
        with torch.no_grad():
            wanted = normalize(model.encode_text(open_clip.SimpleTokenizer(context_length=CONTEXT)(TEXTS)))
        teacher = text_teacher(name)
        assert teacher.dim == 24
        np.testing.assert_allclose(teacher.embed(TEXTS, batch_size=3), wanted, atol=1e-5)

    def test_its_tokenizer_file_gives_its_ids(self, tmp_path: Path) -> None:
        import open_clip

        teacher = text_teacher(make(tmp_path)[1])
        found = [encoding.ids for encoding in Tokenizer.from_str(teacher.tokenizer_json.decode()).encode_batch(TEXTS)]
        wanted = open_clip.SimpleTokenizer(context_length=CONTEXT)(TEXTS).tolist()
        assert [row + [0] * (CONTEXT - len(row)) for row in found] == wanted
        np.testing.assert_allclose(teacher.embed_ids(found), teacher.embed(TEXTS), atol=1e-6)


class TestFiles:
    def test_an_architecture_and_a_file(self, tmp_path: Path) -> None:
        import open_clip

        model, _ = make(tmp_path)
        (tmp_path / "configs").mkdir()
        config = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
        (tmp_path / "configs" / "ViT-tiny-test.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / "configs")
        weights = tmp_path / "open_clip_model.safetensors"
        name = f"open_clip:ViT-tiny-test/{weights}"
        mean, std = (
            torch.tensor(part)[:, None, None] for part in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )
        with torch.no_grad():
            images = model.encode_image((noise().flip(3).permute(0, 3, 1, 2).float() / 255 - mean) / std)
        torch.testing.assert_close(image_teacher(name).embed(noise())[0], normalize(images), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            texts = normalize(model.encode_text(open_clip.SimpleTokenizer(context_length=CONTEXT)(TEXTS)))
        np.testing.assert_allclose(text_teacher(name).embed(TEXTS), texts, atol=1e-5)
        (source,) = image_teacher(name).sources
        assert (source.name, source.origin) == ("ViT-tiny-test/open_clip_model.safetensors", "a local file")

    def test_names_the_folder_and_no_path(self, tmp_path: Path) -> None:
        (tmp_path / "clip").mkdir()
        (source,) = image_teacher(make(tmp_path / "clip")[1]).sources
        assert (source.name, source.origin) == ("clip", "a local file")

    def test_missing_weights_are_not_made_up(self, tmp_path: Path) -> None:
        model, name = make(tmp_path)
        state = model.state_dict()
        del state["visual.proj"]
        save_file(state, tmp_path / "open_clip_model.safetensors")
        with pytest.raises(DataError, match="an open_clip architecture, and weights"):
            image_teacher(name)
        (tmp_path / "open_clip_model.safetensors").unlink()
        with pytest.raises(DataError, match="got Required pretrained weights"):
            image_teacher(name)

    @pytest.mark.parametrize(
        "name", ["ViT-B-32/no-such-weights", "No-Such-Net/openai", "local-dir:absent", "ViT-S-32-alt"]
    )
    def test_what_cannot_be_read(self, name: str) -> None:
        with pytest.raises(DataError, match="check the names, the network and the file"):
            image_teacher(f"open_clip:{name}")
