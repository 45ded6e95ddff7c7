"""Teachers through ``transformers``, offline: tiny models with random weights, saved as the hub lays them out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn.functional import normalize

from edge_ravlm.errors import DataError, UsageError
from edge_ravlm.export.teachers import image_teacher, text_teacher

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("torchvision_imports")]

SIDE, PATCH = 32, 8
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "the", "gate", "is", "open", "closed", "dog", "a", "car"]
TEXTS = ["the gate is open", "dog", "a car is a car is a car", "the gate is closed"]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
DUAL = {"clip": ("CLIPModel", "CLIPConfig"), "siglip": ("SiglipModel", "SiglipConfig")}
ALONE = {
    "dinov2": ("Dinov2Model", "Dinov2Config"),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"),
    "dinov3_vit": ("DINOv3ViTModel", "DINOv3ViTConfig"),
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def noise(side: int = SIDE, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pixel_values(pixels: Tensor) -> Tensor:
    """As the image processor does it: RGB between 0 and 1, normalised."""
    mean, std = (torch.tensor(part)[:, None, None] for part in (MEAN, STD))
    return (pixels.flip(3).permute(0, 3, 1, 2).float() / 255 - mean) / std


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def write_tokenizer(folder: Path, length: int = 512) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **named).save_pretrained(folder)


def make(folder: Path, model: str, config: str, **settings: Any) -> Any:
    """A model with random weights, saved with its tokenizer and the image processor's file."""
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    made.save_pretrained(folder)
    write_tokenizer(folder)
    size = {"height": SIDE, "width": SIDE}
    write_json(folder / "preprocessor_config.json", {"size": size, "image_mean": MEAN, "image_std": STD})
    return made


def make_dual(folder: Path, kind: str) -> Any:
    return make(
        folder, *DUAL[kind], vision_config=VISION, text_config=TEXT, **{"projection_dim": 20} if kind == "clip" else {}
    )


def make_bert(folder: Path, **settings: Any) -> Any:
    return make(folder, "BertModel", "BertConfig", **TEXT | settings)


def padded(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, (ids != 0).long()


def ids_of(text: str) -> list[int]:
    return [2, *(WORDS.index(word) for word in text.split()), 3]


@pytest.mark.parametrize("kind", DUAL)
class TestDualImages:
    def test_agrees_with_the_model(self, kind: str, tmp_path: Path) -> None:
        model = make_dual(tmp_path, kind)
        teacher, pixels = image_teacher(f"hf:{tmp_path}"), noise()
        with torch.no_grad():
            output = model.vision_model(pixel_values=pixel_values(pixels))
            wanted = model.get_image_features(pixel_values=pixel_values(pixels)).pooler_output
        embedding, tokens = teacher.embed(pixels)
        assert (teacher.side, teacher.dim) == (SIDE, wanted.shape[1])
        torch.testing.assert_close(embedding, normalize(wanted))
        torch.testing.assert_close(tokens, output.last_hidden_state[:, -16:])

    def test_another_side_moves_the_positions(self, kind: str, tmp_path: Path) -> None:
        make_dual(tmp_path, kind)
        embedding, tokens = image_teacher(f"hf:{tmp_path}", 48).embed(noise(48))
        assert tokens.shape == (2, 36, 32)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))

    def test_blue_is_not_red(self, kind: str, tmp_path: Path) -> None:
        make_dual(tmp_path, kind)
        teacher, pixels = image_teacher(f"hf:{tmp_path}"), noise()
        assert not torch.allclose(teacher.embed(pixels)[0], teacher.embed(pixels.flip(3))[0], atol=1e-3)


@pytest.mark.parametrize("kind", ALONE)
def test_dino_is_its_class_token(kind: str, tmp_path: Path) -> None:
    model = make(tmp_path, *ALONE[kind], **VISION)
    teacher, pixels = image_teacher(f"hf:{tmp_path}", 40), noise(40)
    with torch.no_grad():
        hidden = model(pixel_values=pixel_values(pixels)).last_hidden_state
    embedding, tokens = teacher.embed(pixels)
    torch.testing.assert_close(embedding, normalize(hidden[:, 0]))
    torch.testing.assert_close(tokens, hidden[:, -25:])


class TestImageFiles:
    @pytest.mark.parametrize(
        ("processor", "side"),
        [
            ({"crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 30}}, 24),
            ({"size": {"shortest_edge": 40}}, 40),
            ({"size": 48}, 48),
            ({}, SIDE),
        ],
        ids=["crop", "edge", "number", "of the model"],
    )
    def test_the_side_is_the_image_processors(self, processor: dict[str, Any], side: int, tmp_path: Path) -> None:
        make(tmp_path, *ALONE["dinov2"], **VISION)
        write_json(tmp_path / "preprocessor_config.json", processor | {"image_mean": MEAN, "image_std": STD})
        assert image_teacher(f"hf:{tmp_path}").side == side

    def test_a_side_that_cuts_patches(self, tmp_path: Path) -> None:
        make_dual(tmp_path, "clip")
        with pytest.raises(UsageError, match="divisible by its patches of 8 pixels, got 36;"):
            image_teacher(f"hf:{tmp_path}", 36)

    def test_the_licence_of_the_card_and_no_path(self, tmp_path: Path) -> None:
        make_dual(tmp_path / "clip", "clip")
        (tmp_path / "clip" / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\nlicense: none of it")
        (source,) = image_teacher(f"hf:{tmp_path / 'clip'}").sources
        assert (source.name, source.origin, source.licence) == ("clip", "a local folder", "apache-2.0")

    @pytest.mark.parametrize("card", [None, "license: mit", "---\nlicense:\n---\n", "x\n---\nlicense: mit\n---\n"])
    def test_no_licence_is_invented(self, card: str | None, tmp_path: Path) -> None:
        make_dual(tmp_path, "clip")
        if card is not None:
            (tmp_path / "README.md").write_text(card)
        assert text_teacher(f"hf:{tmp_path}").sources[0].licence == "not stated by the model's card"

    def test_what_is_no_model(self, tmp_path: Path) -> None:
        for source in (tmp_path, tmp_path / "absent", "nobody/has-this-model"):
            for load in (image_teacher, text_teacher):
                with pytest.raises(DataError, match="a folder or hub id with a configuration"):
                    load(f"hf:{source}")

    def test_no_image_processor(self, tmp_path: Path) -> None:
        make_dual(tmp_path, "clip")
        (tmp_path / "preprocessor_config.json").unlink()
        with pytest.raises(DataError, match="tokenizer or image processor"):
            image_teacher(f"hf:{tmp_path}")

    def test_by_hub_id(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model that was downloaded before, in the hub's cache layout, without a network."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        model = tmp_path / "models--me--tiny"
        make_dual(model / "snapshots" / "abc", "clip")
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text("abc")
        teacher = image_teacher("hf:me/tiny")
        assert (teacher.sources[0].name, teacher.sources[0].origin) == ("me/tiny", "Hugging Face hub")
        assert text_teacher("hf:me/tiny").dim == teacher.dim

    def test_damaged_weights(self, tmp_path: Path) -> None:
        make_dual(tmp_path, "clip")
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        with pytest.raises(DataError, match="a folder or hub id with"):
            image_teacher(f"hf:{tmp_path}")

    def test_missing_weights_are_not_made_up(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        make_dual(tmp_path, "clip")
        state = load_file(tmp_path / "model.safetensors")
        del state["visual_projection.weight"]
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(DataError, match=r"expected all weights, got 1 missing, first visual_projection\.weight"):
            image_teacher(f"hf:{tmp_path}")

    def test_a_text_model_has_no_image_tower(self, tmp_path: Path) -> None:
        make_bert(tmp_path)
        with pytest.raises(DataError, match=r"an image tower of type clip, siglip, dinov2.*, got bert;"):
            image_teacher(f"hf:{tmp_path}")


@pytest.mark.parametrize("kind", DUAL)
def test_dual_texts_agree_with_the_model(kind: str, tmp_path: Path) -> None:
    model = make_dual(tmp_path, kind)
    teacher = text_teacher(f"hf:{tmp_path}")
    ids, mask = padded([ids_of(text) for text in TEXTS], 12)
    with torch.no_grad():
        wanted = model.get_text_features(input_ids=ids, attention_mask=mask if kind == "clip" else None).pooler_output
    found = teacher.embed(TEXTS, batch_size=3)
    assert teacher.dim == wanted.shape[1]
    np.testing.assert_allclose(found, normalize(wanted), atol=1e-6)
    np.testing.assert_array_equal(teacher.embed_ids([ids_of(text) for text in TEXTS], 3), found)


@pytest.fixture
def sentences(tmp_path: Path) -> Callable[..., None]:
    """Writes what sentence-transformers keeps beside a model."""

    def write(pooling: dict[str, Any], *further: str, longest: int | None = None) -> None:
        kinds = {"": "Transformer", "1_Pooling": "Pooling"} | {f"2_{name}": name for name in further}
        modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
        write_json(tmp_path / "modules.json", modules)
        write_json(tmp_path / "1_Pooling" / "config.json", {"include_prompt": True, **pooling})
        if longest is not None:
            write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})

    return write


class TestSentences:
    @pytest.mark.parametrize(
        ("pooling", "first"),
        [
            (None, False),
            ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, False),
            ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, True),
            ({"pooling_mode": "mean"}, False),
            ({"pooling_mode": "cls"}, True),
        ],
        ids=["no file", "mean", "cls", "new mean", "new cls"],
    )
    def test_pools_as_its_files_say(
        self, pooling: dict[str, Any] | None, first: bool, tmp_path: Path, sentences: Callable[..., None]
    ) -> None:
        model = make_bert(tmp_path)
        if pooling is not None:
            sentences(pooling, "Normalize")
        ids, mask = padded([ids_of(text) for text in TEXTS], 12)
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        means = torch.stack([row[: int(real)].mean(0) for row, real in zip(hidden, mask.sum(1), strict=True)])
        wanted = normalize(hidden[:, 0] if first else means)
        np.testing.assert_allclose(text_teacher(f"hf:{tmp_path}").embed(TEXTS, batch_size=2), wanted, atol=1e-6)

    def test_reads_as_far_as_it_was_published_to(self, tmp_path: Path, sentences: Callable[..., None]) -> None:
        make_bert(tmp_path)
        sentences({"pooling_mode": "mean"}, longest=6)
        teacher = text_teacher(f"hf:{tmp_path}")
        np.testing.assert_array_equal(teacher.embed(["dog " * 50]), teacher.embed(["dog dog dog dog"]))

    def test_positions_behind_the_paddings(self, tmp_path: Path) -> None:
        make(tmp_path, "RobertaModel", "RobertaConfig", **TEXT | {"pad_token_id": 0})
        teacher = text_teacher(f"hf:{tmp_path}")
        np.testing.assert_array_equal(teacher.embed(["dog " * 50]), teacher.embed(["dog " * 9]))

    def test_a_pooler_that_nothing_reads_may_be_missing(self, tmp_path: Path) -> None:
        from transformers import BertConfig, BertModel

        make_bert(tmp_path)
        torch.manual_seed(0)
        expected = text_teacher(f"hf:{tmp_path}").embed(TEXTS)
        BertModel.from_pretrained(tmp_path, add_pooling_layer=False, config=BertConfig(**TEXT)).save_pretrained(
            tmp_path
        )
        np.testing.assert_allclose(text_teacher(f"hf:{tmp_path}").embed(TEXTS), expected, atol=1e-6)

    def test_its_tokenizer_file_gives_its_ids(self, tmp_path: Path) -> None:
        make_bert(tmp_path)
        tokenizer = Tokenizer.from_str(text_teacher(f"hf:{tmp_path}").tokenizer_json.decode())
        assert tokenizer.encode("the gate is open").ids == ids_of("the gate is open")

    def test_order_and_progress(self, tmp_path: Path) -> None:
        make_bert(tmp_path)
        teacher, seen = text_teacher(f"hf:{tmp_path}"), list[tuple[int, int]]()
        together = teacher.embed(TEXTS, 3, lambda done, total: seen.append((done, total)))
        assert seen == [(3, 4), (4, 4)]
        np.testing.assert_allclose(together, np.concatenate([teacher.embed([text]) for text in TEXTS]), atol=1e-6)
        assert teacher.embed([]).shape == (0, teacher.dim)

    def test_refuses_what_it_would_get_wrong(self, tmp_path: Path, sentences: Callable[..., None]) -> None:
        make_bert(tmp_path)
        sentences({"pooling_mode_max_tokens": True})
        with pytest.raises(DataError, match="pooling by mean or cls, got pooling_mode_max_tokens;"):
            text_teacher(f"hf:{tmp_path}")
        sentences({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True})
        with pytest.raises(DataError, match="got pooling_mode_cls_token and pooling_mode_mean_tokens;"):
            text_teacher(f"hf:{tmp_path}")
        sentences({"pooling_mode": "mean"}, "Dense")
        with pytest.raises(DataError, match="Transformer, Pooling and Normalize, got also Dense;"):
            text_teacher(f"hf:{tmp_path}")

    def test_an_image_model_reads_nothing(self, tmp_path: Path) -> None:
        make(tmp_path, *ALONE["dinov2"], **VISION)
        with pytest.raises(DataError, match="a text encoder, or a model of type clip or siglip, got dinov2;"):
            text_teacher(f"hf:{tmp_path}")

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        make_bert(tmp_path)
        for file in tmp_path.glob("*token*"):
            file.unlink()
        with pytest.raises(DataError, match="expected a tokenizer's files, got none;"):
            text_teacher(f"hf:{tmp_path}")
