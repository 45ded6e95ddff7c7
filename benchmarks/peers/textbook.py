"""The recipe of the field's tutorials: ResNet-50 and BERT-base, joined, brute-force cosine; PyTorch eager, FP32.

As the recipe is written, the question is embedded with every frame; the stage ``question`` is what that takes.
"""

from __future__ import annotations

import cv2
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

from edge_ravlm.frames import Pixels
from peers.inputs import IMAGENET, centre_crop, filled, word_ids
from peers.protocol import Job, Reply, Stages


class Textbook:
    """Nearest entry by the sum of two cosines: of the pictures and of the texts.

    Args:
        job: what is taught.
        vision: the image encoder's shape; ResNet-50 unless told.
        language: the text encoder's; BERT-base unless told.
    """

    def __init__(self, job: Job, vision: ResNetConfig | None = None, language: BertConfig | None = None) -> None:
        torch.set_num_threads(job.threads)
        torch.manual_seed(0)
        self._vision = ResNetModel(vision or ResNetConfig()).eval()
        self._language = BertModel(language or BertConfig()).eval()
        self._texts = (*job.texts, *job.filler)
        said = {text: self._said(text) for text in set(job.texts)}
        taught = [
            torch.cat([self._seen(picture, Stages()), said[text]]).numpy()
            for picture, text in zip(job.stored("taught"), job.texts, strict=True)
        ]
        self._memory = normalize(torch.from_numpy(filled(taught, job.entries)))

    @torch.inference_mode()
    def ask(self, frame: Pixels, question: str) -> Reply:
        """See ``Peer.ask``."""
        stages = Stages()
        seen = self._seen(frame, stages)
        with stages.time("question"):
            said = self._said(question)
        with stages.time("search"):
            nearest = int((self._memory @ torch.cat([seen, said])).argmax())
        return Reply(self._texts[nearest], stages)

    def close(self) -> None:
        """Nothing is open."""

    @torch.inference_mode()
    def _seen(self, picture: Pixels, stages: Stages) -> Tensor:
        with stages.time("preprocess"):
            pixels = torch.from_numpy(centre_crop(picture, 256, 224, cv2.INTER_LINEAR, IMAGENET))
        with stages.time("encode"):
            return normalize(self._vision(pixels).pooler_output.flatten(), dim=0)

    @torch.inference_mode()
    def _said(self, text: str) -> Tensor:
        # As [CLS] words [SEP], by their places in BERT's vocabulary.
        ids = [101, *word_ids(text, self._language.config.vocab_size), 102]
        return normalize(self._language(torch.tensor([ids])).pooler_output[0], dim=0)
