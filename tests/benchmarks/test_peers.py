"""The peers themselves, of their real kinds and tiny: they find what was taught, and our student computes the same."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from efficientnet_lite_pytorch import EfficientNet
from peers import ours, student, student_torch
from peers.protocol import Job, Peer
from synthetic import QUESTION, TAUGHT_EACH, TEXTS, pictures

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.export.onnx_graph import free_sides, image_graph
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.export.teachers.efficientnet import EfficientNetLite
from edge_ravlm.frames import Frame

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    file = tmp_path_factory.mktemp("job") / "pictures.npz"
    np.savez(file, taught=np.stack(pictures(2 * TAUGHT_EACH, seed=1)), shown=np.stack(pictures(2, seed=2)))
    return Job(str(file), TEXTS * TAUGHT_EACH, 30, 1)


@pytest.fixture(scope="module")
def transformers(torchvision_imports: None) -> Any:
    return importlib.import_module("transformers")


@pytest.fixture(scope="module")
def clip(transformers: Any) -> dict[str, Any]:
    """A CLIP of a thousandth of the size."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "image": transformers.CLIPVisionConfig(**shape, image_size=32, patch_size=16, projection_dim=8),
        "text": transformers.CLIPTextConfig(**shape, projection_dim=8),
    }


def finds_what_was_taught(peer: Peer, job: Job) -> None:
    """A taught picture with its own text for a question is nearest to its own entry, whatever the weights."""
    for picture, text in zip(job.stored("taught"), job.texts, strict=True):
        reply = peer.ask(picture, text)
        assert reply.text == text
    assert set(reply.stages_ms) == {"preprocess", "encode", "question", "search"}


def test_textbook(job: Job, transformers: Any) -> None:
    textbook = importlib.import_module("peers.textbook")
    vision = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    language = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=300
    )
    finds_what_was_taught(textbook.Textbook(job, vision, language), job)


def test_smallcap_writes_eight_tokens(job: Job, transformers: Any, clip: dict[str, Any]) -> None:
    smallcap = importlib.import_module("peers.smallcap")
    language = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=100)
    peer = smallcap.SmallCap(job, clip["image"], language)
    first, second = (peer.ask(picture, QUESTION) for picture in job.stored("shown"))
    assert len(first.text.split()) == 8
    assert set(first.stages_ms) == {"preprocess", "encode", "search", "prefill", "decode"}
    assert peer.ask(job.stored("shown")[0], QUESTION).text == first.text
    assert second.text


def test_smallcap_with_a_cache_writes_what_it_would_without(job: Job, transformers: Any, clip: dict[str, Any]) -> None:
    torch, smallcap = importlib.import_module("torch"), importlib.import_module("peers.smallcap")
    peer = smallcap.SmallCap(
        job, clip["image"], transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=100)
    )
    seen: list[Any] = []
    peer._language.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args[0], kwargs)), with_kwargs=True)
    written = [int(token[1:]) for token in peer.ask(job.stored("shown")[0], QUESTION).text.split()]
    assert [ids.shape[1] for ids, _ in seen[1:]] == [1] * 7
    ids, patches = seen[0][0], seen[0][1]["encoder_hidden_states"]
    with torch.inference_mode():
        for token in written:
            logits = peer._language(ids, encoder_hidden_states=patches, use_cache=False).logits[0, -1]
            assert int(logits.argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_clip_in_onnx_runtime(job: Job, transformers: Any, clip: dict[str, Any], tmp_path: Path) -> None:
    exporting, clip_ort = (importlib.import_module(f"peers.{name}") for name in ("export_graphs", "clip_ort"))
    made = {"clip_image": exporting.clip_image(clip["image"]), "clip_text": exporting.clip_text(clip["text"])}
    for name, graph in made.items():
        (tmp_path / name).write_bytes(graph.SerializeToString())
    graphs = {name: str(tmp_path / name) for name in made}
    finds_what_was_taught(clip_ort.ClipOrt(Job(job.pictures, job.texts, job.entries, job.threads, graphs)), job)
    session = onnxruntime.InferenceSession(graphs["clip_text"])
    (vector,) = session.run(None, {"tokens": np.full((1, 77), 49_407)})
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("way", "stages"),
    [
        (ours.retrieved, {"encode", "vote"}),
        (ours.retrieved_region, {"encode", "vote"}),
        (ours.generated, {"encode", "second_look", "prefill", "decode"}),
    ],
)
def test_ours_in_three_ways(way: Callable[[Job], ours.Pipeline], stages: set[str], job: Job) -> None:
    unsure = set() if way is ours.generated else {"second_look"}  # that is up to what it sees
    peer = way(job)
    try:
        assert len(peer._ravlm.memory) == job.entries
        replies = [peer.ask(picture, QUESTION) for picture in job.stored("shown")]
        assert stages == set(replies[0].stages_ms) & ({"encode", "second_look", "vote", "prefill", "decode"} - unsure)
        if "vote" in stages:
            assert [reply.text for reply in replies] == list(TEXTS)
        with pytest.raises(EdgeRavlmError, match="level cached"):
            peer.ask(job.stored("shown")[1], QUESTION)
    finally:
        peer.close()


@pytest.fixture(scope="module")
def network() -> ImageStudent:
    """The student as the benchmark builds it, around random weights: there is nothing to download."""

    def load(_: Path, variant: int, side: int) -> EfficientNetLite:
        return EfficientNetLite(EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=side)).eval()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student_torch, "package_file", lambda *_: Path("none"))
        patch.setattr(student_torch, "load_efficientnet_lite", load)
        return student_torch.student(Bundle.open(STARTER))


def test_our_student_in_full_precision(
    network: ImageStudent, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(STARTER)
    graph = image_graph(network, bundle.manifest.preprocess)
    free_sides(graph)
    (tmp_path / "student.onnx").write_bytes(graph.SerializeToString())
    monkeypatch.setattr(student_torch, "student", lambda _: network)
    with_graph = Job(job.pictures, job.texts, job.entries, job.threads, {"student": str(tmp_path / "student.onnx")})
    inputs = [bundle.manifest.preprocess(Frame(picture)) for picture in job.stored("shown")]
    embeddings = []
    for peer in (student_torch.torch_eager(with_graph), student.ort_fp32(with_graph)):
        try:
            encoder = peer._ravlm._image
            embeddings.append([encoder.embed(pixels) for pixels in inputs])
            stored = peer._ravlm.memory.vectors("image", [1])[0]
            once = encoder.embed(bundle.manifest.preprocess(Frame(job.stored("taught")[0])))
            assert 0.9 < stored @ once < 1.001, "what is taught is looked at more than once"
            assert {"encode", "vote"} <= set(peer.ask(job.stored("shown")[0], QUESTION).stages_ms)
        finally:
            peer.close()
    assert embeddings[0][0].shape == (bundle.manifest.image_space.dim,)
    np.testing.assert_allclose(*embeddings, atol=1e-3)
