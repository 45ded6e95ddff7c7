"""SmallCap's shape: CLIP ViT-B/32 sees, retrieved texts prompt, GPT-2 with cross-attention writes; eager, FP32.

Ramos et al. 2023, "SmallCap", arXiv:2209.15323. The prompt is its own, with the question behind; the four entries with
the nearest pictures are in it. Eight tokens, greedy, with a cache of keys and values.
"""

from __future__ import annotations

import cv2
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DynamicCache,
    EncoderDecoderCache,
    GPT2Config,
    GPT2LMHeadModel,
)

from edge_ravlm.frames import Pixels
from peers.inputs import CLIP, centre_crop, filled, word_ids
from peers.protocol import Job, Reply, Stages

TOKENS, RETRIEVED = 8, 4


class SmallCap:
    """Writes about a frame what the nearest entries suggest.

    Args:
        job: what is taught.
        vision: the image encoder's shape; ViT-B/32 unless told.
        language: the decoder's, as wide as the encoder; GPT-2 (124 M) unless told.
    """

    def __init__(self, job: Job, vision: CLIPVisionConfig | None = None, language: GPT2Config | None = None) -> None:
        torch.set_num_threads(job.threads)
        torch.manual_seed(0)
        self._vision = CLIPVisionModelWithProjection(vision or CLIPVisionConfig()).eval()
        language = language or GPT2Config()
        language.add_cross_attention = True
        self._language = GPT2LMHeadModel(language).eval()
        self._texts = (*job.texts, *job.filler)
        taught = [self._seen(picture, Stages())[0].numpy() for picture in job.stored("taught")]
        self._memory = torch.from_numpy(filled(taught, job.entries))

    @torch.inference_mode()
    def ask(self, frame: Pixels, question: str) -> Reply:
        """See ``Peer.ask``; each token is written as its number."""
        stages = Stages()
        seen, patches = self._seen(frame, stages)
        with stages.time("search"):
            nearest = (self._memory @ seen).topk(RETRIEVED).indices.tolist()
        captions = " ".join(self._texts[i] for i in nearest)
        prompt = f"Similar images show {captions}. {question} This image shows"
        token = torch.tensor([word_ids(prompt, self._language.config.vocab_size)])
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        written = []
        for step in range(TOKENS):
            with stages.time("decode" if step else "prefill"):
                found = self._language(
                    token, cache=cache, encoder_hidden_states=patches, use_cache=True, logits_to_keep=1
                )
                token = found.logits[:, -1:].argmax(-1)
                written.append(int(token))
        return Reply(" ".join(f"#{number}" for number in written), stages)

    def close(self) -> None:
        """Nothing is open."""

    @torch.inference_mode()
    def _seen(self, picture: Pixels, stages: Stages) -> tuple[Tensor, Tensor]:
        """The picture's embedding [d] of unit length, and its patches [1, patches, width]."""
        side = self._vision.config.image_size
        with stages.time("preprocess"):
            pixels = torch.from_numpy(centre_crop(picture, side, side, cv2.INTER_CUBIC, CLIP))
        with stages.time("encode"):
            found = self._vision(pixels)
            return normalize(found.image_embeds[0], dim=0), found.last_hidden_state
