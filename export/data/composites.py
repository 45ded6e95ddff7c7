"""Hard composed scenes: a cut-out among clutter as a camera may see it, askew, cut off, blurred, dark and compressed.

All of a scene follows from one random generator: equal seeds give equal pictures. These are composites, not
photographs of the things in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ravlm.errors import UsageError
from edge_ravlm.export.data.scenes import Material, background, weather
from edge_ravlm.frames import Pixels


@dataclass(frozen=True)
class Wear:
    """How hard scenes are; the ranges are uniform unless it says otherwise.

    Attributes:
        scale: the cut-out's longer side as a share of the scene's side.
        thinnest: what is long and thin is drawn larger, up to the end of ``scale``, until its shorter side is that
            share of the scene's side.
        rotation: degrees to either side.
        perspective: how far each corner moves, at most, as a share of the cut-out's sides.
        cut_off: how often the cut-out reaches over the border.
        hidden: share of the cut-out's width and height that is then outside, at most.
        clutter: pieces of other photographs around it, at most.
        blurred: how often it moved (a line of up to ``motion`` pixels) or was out of focus (a disc of up to
            ``defocus`` pixels radius).
        gamma: exponent of the brightness, log-uniform.
        compressed: how often there are JPEG artefacts, of a quality in ``quality``.
    """

    scale: tuple[float, float] = (0.2, 0.6)
    thinnest: float = 0.07
    rotation: float = 10.0
    perspective: float = 0.12
    cut_off: float = 0.25
    hidden: float = 0.3
    clutter: int = 3
    blurred: float = 0.5
    motion: int = 9
    defocus: float = 2.5
    gamma: tuple[float, float] = (0.6, 1.6)
    compressed: float = 0.7
    quality: tuple[int, int] = (30, 95)

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise UsageError("scale", expected="0 < low <= high <= 1", got=str(self.scale), do="give shares of 1")


WEAR = Wear()


def composite(source: Material, index: int, rng: np.random.Generator, wear: Wear = WEAR) -> Pixels:
    """Object ``index`` once, uint8 [SIDE, SIDE, 3] BGR; ``SIDE`` as in ``scenes``."""
    return located(source, index, rng, wear)[0]


def located(
    source: Material, index: int, rng: np.random.Generator, wear: Wear = WEAR
) -> tuple[Pixels, NDArray[np.float32]]:
    """The same scene, and where in it the object's corners are; see ``placed``."""
    scene = background(source, rng)
    for _ in range(int(rng.integers(wear.clutter + 1))):
        scene = _cluttered(scene, background(source, rng), rng)
    scene, corners = placed(scene, source.objects[index], rng, wear)
    return worn(scene, rng, wear), corners


def placed(
    scene: Pixels, cut_out: Pixels, rng: np.random.Generator, wear: Wear = WEAR
) -> tuple[Pixels, NDArray[np.float32]]:
    """The scene with the cut-out on it, and where its corners came to lie.

    Args:
        scene: uint8 [s, s, 3] BGR, left alone.
        cut_out: uint8 [h, w, 4] BGRA.
        rng: of all choices.
        wear: how it may lie.

    Returns:
        uint8 [s, s, 3], and float32 [4, 2] x and y in pixels: top left, top right, bottom right, bottom left.
    """
    side = scene.shape[0]
    shares = np.array(cut_out.shape[1::-1]) / max(cut_out.shape[:2])
    least = np.clip(wear.thinnest / shares.min(), *wear.scale)
    shape = np.maximum(1, rng.uniform(least, wear.scale[1]) * side * shares)
    unit = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    angle = np.deg2rad(rng.uniform(-wear.rotation, wear.rotation))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = ((unit + rng.uniform(-wear.perspective, wear.perspective, (4, 2)) / 2) * shape) @ turn.T
    low, high = -corners.min(axis=0), side - corners.max(axis=0)
    if rng.random() < wear.cut_off:
        axis, beyond = int(rng.integers(2)), rng.uniform(0.05, max(0.05, wear.hidden)) * np.ptp(corners, axis=0)
        edge = (low - beyond if rng.random() < 0.5 else high + beyond)[axis]
        low[axis] = high[axis] = edge
    corners = (corners + rng.uniform(low, np.maximum(low, high))).astype(np.float32)
    return _warped(scene, cut_out, corners), corners


def worn(scene: Pixels, rng: np.random.Generator, wear: Wear = WEAR) -> Pixels:
    """The scene through a bad camera: blur, exposure, light and noise, compression; uint8 of the same shape."""
    if rng.random() < wear.blurred:
        kernel = _motion(rng, wear.motion) if rng.random() < 0.5 else _disc(rng.uniform(0.8, wear.defocus))
        scene = np.asarray(cv2.filter2D(scene, -1, kernel, borderType=cv2.BORDER_REFLECT), np.uint8)
    gamma = np.exp(rng.uniform(*np.log(wear.gamma)))
    curve = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    scene = weather(curve[scene], rng)
    if rng.random() < wear.compressed:
        quality = int(rng.integers(wear.quality[0], wear.quality[1] + 1))
        _, packed = cv2.imencode(".jpg", scene, [cv2.IMWRITE_JPEG_QUALITY, quality])
        scene = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
    return scene


def _warped(scene: Pixels, cut_out: Pixels, corners: NDArray[np.float32]) -> Pixels:
    """The cut-out with its corners there; colours travel weighed by alpha, so that no fringe comes along."""
    alpha = cut_out[..., 3:].astype(np.float32) / 255
    weighed = np.concatenate([cut_out[..., :3] * alpha, alpha], axis=2)
    scale = float(max(np.ptp(corners, axis=0)) / max(cut_out.shape[:2]))
    if scale < 1:  # warping alone would skip pixels
        small = [max(1, round(n * scale)) for n in cut_out.shape[1::-1]]
        weighed = cv2.resize(weighed, small, interpolation=cv2.INTER_AREA)
    # A transparent rim, so that the edges of what fills its rectangle are smooth too.
    weighed = cv2.copyMakeBorder(weighed, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
    height, width = weighed.shape[:2]
    own = np.array([[1, 1], [width - 1, 1], [width - 1, height - 1], [1, height - 1]], np.float32) - 0.5
    # Only where it lies: most of a scene stays as it is.
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int) - 2, 0, scene.shape[1::-1])
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2, 0, scene.shape[1::-1])
    out: Pixels = scene.copy()
    if left < right and top < bottom:
        move = cv2.getPerspectiveTransform(own, corners - np.array([left + 0.5, top + 0.5], np.float32))
        piece = cv2.warpPerspective(weighed, move, (int(right - left), int(bottom - top)), flags=cv2.INTER_LINEAR)
        under = out[top:bottom, left:right]
        under[:] = np.clip(np.rint(under * (1 - piece[..., 3:]) + piece[..., :3]), 0, 255)
    return out


def _cluttered(scene: Pixels, photo: Pixels, rng: np.random.Generator) -> Pixels:
    """A quadrilateral piece of another photograph somewhere on the scene."""
    side = scene.shape[0]
    centre, size = rng.uniform(0, side, 2), rng.uniform(0.1, 0.4, 2) * side
    unit = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) + rng.uniform(-0.2, 0.2, (4, 2))
    h, w = (int(max(8, n)) for n in size)
    y, x = (int(rng.integers(side - n + 1)) for n in (h, w))
    opaque = np.dstack([photo[y : y + h, x : x + w], np.full((h, w), 255, np.uint8)])
    return _warped(scene, opaque, (unit * size + centre).astype(np.float32))


def _motion(rng: np.random.Generator, longest: int) -> NDArray[np.float32]:
    """A line in any direction, float32 [n, n] that sums to 1, 3 to ``longest`` pixels long."""
    length, angle = int(rng.integers(3, max(4, longest + 1))), rng.uniform(0, np.pi)
    kernel = np.zeros((length, length), np.float32)
    middle, reach = (length - 1) / 2, (length - 1) / 2 * np.array([np.cos(angle), np.sin(angle)])
    for step in np.linspace(-1, 1, 4 * length):
        x, y = np.rint(middle + step * reach).astype(int)
        kernel[y, x] += 1
    return np.asarray(kernel / kernel.sum(), np.float32)


def _disc(radius: float) -> NDArray[np.float32]:
    """A disc with soft edges, float32 [n, n] that sums to 1."""
    reach = int(np.ceil(radius))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(rows, columns), 0, 1).astype(np.float32)
    return np.asarray(kernel / kernel.sum(), np.float32)
