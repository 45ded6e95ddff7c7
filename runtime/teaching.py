"""What is taught: from a picture and a sentence to an entry of the memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cv2
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import UsageError
from edge_ravlm.frames import Frame, Pixels, Region
from edge_ravlm.runtime.arguments import check_region, check_tags
from edge_ravlm.runtime.encoders import ImageEncoder, TextEncoder
from edge_ravlm.runtime.memory import NewEntry
from edge_ravlm.runtime.questions import REGION_TAG

_LONG = 400
"""Characters of a text beyond which the fusion decoder, which reads 96 tokens in all, may miss its end."""

_log = logging.getLogger(__name__)


class Teacher:
    """Makes entries.

    Args:
        bundle: an opened bundle.
        flavor: which of its quantization flavours the encoders are of.
        image: the image encoder.
        text: the text encoder.
    """

    def __init__(self, bundle: Bundle, flavor: str, image: ImageEncoder, text: TextEncoder) -> None:
        self._has_meanings = bundle.manifest.meaning_space is not None
        self._flavor, self._image, self._text = flavor, image, text

    def entry(
        self,
        picture: Frame | NDArray[Any] | None,
        text: str,
        *,
        answer: str | None,
        tags: Mapping[str, str | int | float | bool] | None,
        region: Region | None,
        modality: str | None,
        at: float | None,
    ) -> NewEntry:
        """See ``Ravlm.entry``."""
        region = check_region(region)
        named = {REGION_TAG: region.name} if region is not None and region.name else {}
        entry = NewEntry(  # checks what it is given before a model sees it
            text=text,
            answer=answer,
            tags={**check_tags(tags), **named},
            modality=modality or ("text" if picture is None else "frame"),
            time=time.time() if at is None else at,
            flavor=self._flavor,
        )
        untold = picture is not None and not text and self._has_meanings
        if not text.strip() and not untold:
            raise nothing_said()
        if len(text) > _LONG:
            _log.warning("a text of %d characters: teach each of its facts by itself, so that all are found", len(text))
        vectors = {} if untold else {"text": self._text.embed([text])[0]}
        if picture is None:
            return replace(entry, vectors=vectors)
        frame = Frame.of(picture)
        pixels = self._image.preprocess(frame, region)
        # Who gives a region has said where to look.
        look = self._image.study(frame) if region is None else self._image.look(pixels)
        vectors["image"] = look.embedding
        if look.meaning is not None:
            vectors["meaning"] = look.meaning
        return replace(entry, vectors=vectors, thumbnail=_jpeg(pixels))


def nothing_said() -> UsageError:
    """A text that is empty."""
    return UsageError("memory text", expected="a sentence", got="an empty one", do="say what the picture shows")


def _jpeg(pixels: Pixels) -> bytes:
    """The encoder's input as a small picture: enough to look at, and to embed again with another encoder."""
    encoded = cv2.imencode(".jpg", pixels[0], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return bytes(encoded)
