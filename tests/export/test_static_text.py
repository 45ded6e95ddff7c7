"""The text teacher's own forward pass, and the table distilled from it, on a toy BERT."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from edge_ravlm.errors import DataError
from edge_ravlm.export.students import static_text
from edge_ravlm.export.students.static_text import StaticText, distil, prune_tokenizer, to_onnx_int8
from edge_ravlm.export.teachers.minilm import MiniLM

pytestmark = pytest.mark.export

THINGS = ["gate", "door", "lamp", "dog", "car", "oven", "bike", "cat"]
STATES = ["open", "closed", "red", "here", "gone", "warm"]
CORPUS = [f"the {thing} is {state}" for thing in THINGS for state in STATES]
SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz?é"]
VOCAB = [
    *SPECIAL,
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    "the",
    "is",
    *THINGS,
    *STATES,
    "##ing",
    "дом",
]
DIM, HIDDEN = 16, 32


def tokenizer_json() -> bytes:
    tokenizer = Tokenizer(WordPiece({piece: row for row, piece in enumerate(VOCAB)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens([token for token in SPECIAL if token != "[unused0]"])
    tokenizer.normalizer = BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    ends = [(token, VOCAB.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.enable_truncation(128)
    return tokenizer.to_str().encode()


def toy_weights(layers: int = 2, positions: int = 40) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    shapes = {
        "embeddings.word_embeddings.weight": (len(VOCAB), HIDDEN),
        "embeddings.position_embeddings.weight": (positions, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    linears = {"attention.self.query": (HIDDEN, HIDDEN), "attention.self.key": (HIDDEN, HIDDEN)}
    linears |= {"attention.self.value": (HIDDEN, HIDDEN), "attention.output.dense": (HIDDEN, HIDDEN)}
    linears |= {"intermediate.dense": (2 * HIDDEN, HIDDEN), "output.dense": (HIDDEN, 2 * HIDDEN)}
    for layer in range(layers):
        for name, shape in linears.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
    weights = {name: 0.3 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    norms = [f"encoder.layer.{i}.{part}" for i in range(layers) for part in ("attention.output", "output")]
    for name in ["embeddings", *norms]:
        weights[f"{name}.LayerNorm.weight"] = torch.ones(HIDDEN)
        weights[f"{name}.LayerNorm.bias"] = torch.zeros(HIDDEN)
    return weights


@pytest.fixture(scope="module")
def teacher() -> MiniLM:
    return MiniLM(toy_weights(), tokenizer_json(), heads=4)


@pytest.fixture(scope="module")
def student(teacher: MiniLM) -> StaticText:
    return distil(teacher, CORPUS, dim=DIM, vocab=200)


def run(model: bytes, tokenizer: bytes, texts: list[str], padded_to: int = 0) -> NDArray[np.float32]:
    encodings = Tokenizer.from_str(tokenizer.decode()).encode_batch(texts)
    feeds = {
        "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
    }
    width = max(0, padded_to - feeds["input_ids"].shape[1])
    feeds = {name: np.pad(values, ((0, 0), (0, width))) for name, values in feeds.items()}
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = session.run(["embedding"], feeds)[0]
    assert isinstance(found, np.ndarray)
    return found


class TestTeacher:
    def test_unit_length_whatever_the_batch(self, teacher: MiniLM) -> None:
        texts = ["the gate is open", "door", "is the dog here?", ""]
        alone = np.concatenate([teacher.embed([text]) for text in texts])
        assert alone.dtype == np.float32
        assert alone.shape == (4, teacher.dim)
        np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(teacher.embed(texts, batch_size=4), alone, atol=1e-5)

    def test_long_texts_are_cut_at_the_positions_there_are(self, teacher: MiniLM) -> None:
        np.testing.assert_array_equal(teacher.embed(["gate " * 500]), teacher.embed(["gate " * 38]))

    def test_reports_progress_in_texts(self, teacher: MiniLM) -> None:
        seen: list[tuple[int, int]] = []
        teacher.embed(["gate"] * 5, batch_size=2, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(2, 5), (4, 5), (5, 5)]

    def test_is_read_from_a_zip(self, teacher: MiniLM, tmp_path: Path) -> None:
        files = {
            "config.json": json.dumps({"num_attention_heads": 4}).encode(),
            "model.safetensors": save(toy_weights() | {"embeddings.position_ids": torch.arange(4)}),
            "tokenizer.json": tokenizer_json(),
        }
        with zipfile.ZipFile(tmp_path / "model.zip", "w") as model:
            for name, data in files.items():
                model.writestr(name, data)
        np.testing.assert_array_equal(MiniLM.from_zip(tmp_path / "model.zip").embed(CORPUS), teacher.embed(CORPUS))

    def test_refuses_what_is_no_model(self, tmp_path: Path) -> None:
        files = ("config.json", "model.safetensors", "tokenizer.json")
        for there in range(len(files) + 1):
            with zipfile.ZipFile(tmp_path / "model.zip", "w") as model:
                for name in files[:there]:
                    model.writestr(name, b"{}")
            with pytest.raises(DataError, match=files[there].replace(".", r"\.") if there < 3 else "all-MiniLM-L6-v2"):
                MiniLM.from_zip(tmp_path / "model.zip")
        (tmp_path / "text").write_bytes(b"{}")
        for name in ("absent.zip", "text"):
            with pytest.raises(DataError, match="all-MiniLM-L6-v2"):
                MiniLM.from_zip(tmp_path / name)


class TestTokenizer:
    def test_drops_what_is_never_typed_and_keeps_every_character(self) -> None:
        _, pieces = prune_tokenizer(tokenizer_json(), CORPUS, 200, {})
        assert pieces[:2] == ["[PAD]", "[UNK]"]
        assert set(VOCAB) - set(pieces) == {"[unused0]", "[CLS]", "[SEP]", "[MASK]", "дом"}

    def test_keeps_the_frequent_pieces_first(self) -> None:
        characters = 2 * len(LETTERS) + 2
        _, pieces = prune_tokenizer(tokenizer_json(), ["the gate", "the gate is", "gate"], characters + 2, {})
        assert pieces[characters:] == ["the", "gate"]

    def test_keeps_what_people_say_before_what_is_written(self) -> None:
        characters = 2 * len(LETTERS) + 2
        _, pieces = prune_tokenizer(tokenizer_json(), CORPUS, characters + 3, {"Oven": 900, "kettle": 9})
        assert pieces[characters:] == ["the", "is", "oven"]

    def test_no_special_tokens_padded_and_cut(self, student: StaticText) -> None:
        tokenizer = Tokenizer.from_str(student.tokenizer_json.decode())
        short, long = tokenizer.encode_batch(["the gate", "gate " * 500])
        assert short.tokens[:3] == ["the", "gate", "[PAD]"]
        assert sum(short.attention_mask) == 2
        assert len(long.ids) == len(short.ids) == static_text.MAX_TOKENS
        assert tokenizer.encode("").ids == []


class TestStudent:
    def test_points_where_the_teacher_points(self, teacher: MiniLM, student: StaticText) -> None:
        wanted, found = (embed @ embed.T for embed in (teacher.embed(CORPUS), student.embed(CORPUS)))
        pairs = np.triu_indices(len(CORPUS), 1)
        assert np.corrcoef(wanted[pairs], found[pairs])[0, 1] > 0.7

    def test_same_inputs_same_bytes(self, teacher: MiniLM, student: StaticText) -> None:
        again = distil(teacher, CORPUS, dim=DIM, vocab=200)
        assert again.tokenizer_json == student.tokenizer_json
        assert to_onnx_int8(again) == to_onnx_int8(student)
        assert to_onnx_int8(distil(teacher, CORPUS, dim=DIM, vocab=200, seed=1)) != to_onnx_int8(student)

    def test_reports_both_stages(self, teacher: MiniLM) -> None:
        seen: dict[str, tuple[int, int]] = {}
        distil(teacher, CORPUS, dim=DIM, progress=lambda stage, done, total: seen.update({stage: (done, total)}))
        assert seen["teacher"] == (len(CORPUS), len(CORPUS))
        assert seen["table"][0] == seen["table"][1]

    def test_refuses_too_little(self, teacher: MiniLM) -> None:
        with pytest.raises(DataError, match="sentences"):
            distil(teacher, ["gate", "gate", " "], dim=2)
        with pytest.raises(DataError, match="dimensions"):
            distil(teacher, CORPUS, dim=HIDDEN + 1)

    def test_refuses_a_teacher_with_another_kind_of_tokenizer(self) -> None:
        class Other:
            tokenizer_json = json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}}}).encode()

        with pytest.raises(DataError, match=r"WordPiece.*got BPE.*minilm-l6"):
            distil(Other(), CORPUS, dim=DIM)


class TestGraph:
    def test_equals_numpy_and_unit_length(self, student: StaticText) -> None:
        found = run(to_onnx_int8(student), student.tokenizer_json, CORPUS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        assert (found * student.embed(CORPUS)).sum(1).min() > 0.999

    def test_padding_changes_nothing(self, student: StaticText) -> None:
        model, texts = to_onnx_int8(student), ["the gate is open", "dog"]
        alone = np.concatenate([run(model, student.tokenizer_json, [text]) for text in texts])
        for width in (0, 9, 64):
            found = run(model, student.tokenizer_json, texts, padded_to=width)
            np.testing.assert_allclose(found, alone, atol=1e-6)

    def test_nothing_to_read_is_finite(self, student: StaticText) -> None:
        for width in (0, 5):
            found = run(to_onnx_int8(student), student.tokenizer_json, [""], padded_to=width)
            np.testing.assert_array_equal(found, np.zeros((1, DIM)))
        among = run(to_onnx_int8(student), student.tokenizer_json, ["", "the gate"])
        assert np.isfinite(among).all()

    def test_unknown_characters_are_finite_and_not_nothing(self, student: StaticText) -> None:
        found = run(to_onnx_int8(student), student.tokenizer_json, ["門は開いている", "🙂", "gate 門", "x" * 200])
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)

    def test_loads_in_the_oldest_supported_runtimes(self, student: StaticText) -> None:
        model = onnx.load_model_from_string(to_onnx_int8(student))
        assert [(entry.domain, entry.version <= 20) for entry in model.opset_import] == [("", True)]
        assert model.ir_version <= 10
        assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
        assert [value.name for value in model.graph.output] == ["embedding"]


def test_int8_table_is_a_quarter(teacher: MiniLM, student: StaticText) -> None:
    wide = StaticText(np.tile(student.table, (50, 16)), student.tokenizer_json)
    assert len(to_onnx_int8(wide)) < 0.27 * wide.table.nbytes
