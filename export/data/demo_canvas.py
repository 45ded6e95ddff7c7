"""World geometry, projection, drawing and textures of the demonstration clip.

World units are metres: x to the right, y ahead, z up, the camera above the origin.  Canvases
are (HEIGHT * SCALE, WIDTH * SCALE, 4) uint8: blue, green, red reflectance as displayed, and
the share of direct sunlight (0..255) that the surface receives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Colour = tuple[float, float, float]
Box = tuple[float, float, float, float]
WIDTH, HEIGHT, FPS, FRAMES, SCALE, SEED = 640, 360, 10, 880, 2, 20
EYE, PITCH, FOCAL = (0.0, 0.0, 4.2), 0.244, 502.0
SUN = np.array([0.62, 0.30, 0.72]) / np.linalg.norm([0.62, 0.30, 0.72])
GATE_LEFT, GATE_RIGHT, GATE_Y, GATE_SWING = -1.7, 2.3, 16.0, 1.4
WALL_START, WALL_LENGTH, WALL_HEIGHT = np.array([-9.0, 9.0]), 7.6, 3.1
WALL_ALONG = np.array([0.8638, 0.5039])
WALL_OUT = np.array([0.5039, -0.8638])
LAMP_S, LAMP_Z = 5.45, 2.05
BAY = np.array([[3.19, 7.98], [5.65, 8.40], [4.81, 13.23], [2.35, 12.80]])
BAY_CENTRE = (4.0, 10.6)
GROUND, GROUND_PX = (-16.0, 16.0, 5.0, 36.0), 60


class Part(NamedTuple):
    """A piece in the world: points (N, 3); a line `width` m thick, or a polygon if 0."""

    points: Array
    width: float
    colour: Colour
    sun: float


def project(points: Array) -> tuple[Array, Array]:
    """Pixels (N, 2) at output size and depths (N,) in metres of world points (N, 3)."""
    rel = np.asarray(points, np.float64) - EYE
    depth = rel[:, 1] * np.cos(PITCH) - rel[:, 2] * np.sin(PITCH)
    up = rel[:, 1] * np.sin(PITCH) + rel[:, 2] * np.cos(PITCH)
    safe = np.maximum(depth, 0.4)
    return np.stack([WIDTH / 2 + FOCAL * rel[:, 0] / safe, HEIGHT / 2 - FOCAL * up / safe], 1), depth


def fixed(pixels: Array) -> Array:
    """Output-size pixels as the int32 canvas coordinates (1/16 canvas pixel) OpenCV draws with."""
    return np.rint((pixels * SCALE - 0.5) * 16).clip(-200000, 200000).astype(np.int32)


def plan(points: Any, z: float = 0.0) -> Array:
    """Ground points (N, 2) lifted to world points (N, 3) at height z (m)."""
    flat = np.asarray(points, np.float64)
    return np.column_stack([flat, np.full(len(flat), z)])


def wall(s: float, z: float, out: float = 0.0) -> Array:
    """World point (3,) on the house front: s m along it, z m up, out m in front of it."""
    return np.append(WALL_START + s * WALL_ALONG + out * WALL_OUT, z)


def tint(colour: Colour, sun: float, gain: float = 1.0) -> tuple[float, float, float, float]:
    """A drawing colour for a canvas from bgr (0..255), sun share (0..1) and a brightness factor."""
    b, g, r = (min(255.0, c * gain) for c in colour)
    return (b, g, r, max(1.0, 255.0 * sun))


def draw_parts(canvas: Array, parts: list[Part]) -> None:
    """Draws parts in the given order."""
    for part in parts:
        pixels, depth = project(part.points)
        if depth.min() < 0.8:
            continue
        value = tint(part.colour, part.sun)
        if part.width:
            thick = max(1, round(part.width * FOCAL * SCALE / float(depth.mean())))
            cv2.polylines(canvas, [fixed(pixels)], False, value, thick, cv2.LINE_AA, 4)
        else:
            cv2.fillPoly(canvas, [fixed(pixels)], value, cv2.LINE_AA, 4)


def to_ground(points: Array) -> Array:
    """Where the sun throws world points (N, 3) on the ground, as world points (N, 3)."""
    fall: Array = SUN * (points[:, 2:] / SUN[2])
    return points - fall


def darken(canvas: Array, mask: Array, soft: float, sun_loss: float, all_loss: float) -> None:
    """Takes sunlight and ambient light away under a canvas-sized uint8 mask, blurred by soft px."""
    x, y, w, h = cv2.boundingRect(mask)
    pad = int(3 * soft) + 1
    rows, cols = slice(max(0, y - pad), y + h + pad), slice(max(0, x - pad), x + w + pad)
    if not w:
        return
    cover = cv2.GaussianBlur(mask[rows, cols], (0, 0), soft).astype(np.float32) / 255
    area = canvas[rows, cols].astype(np.float32)
    area[..., :3] *= 1 - all_loss * cover[..., None]
    area[..., 3] *= 1 - sun_loss * cover
    canvas[rows, cols] = np.maximum(area, 1).astype(np.uint8)


def shadow_parts(canvas: Array, parts: list[Part], soft: float, loss: float) -> None:
    """Darkens the ground where parts keep the sun away (loss 0..1, blur soft px)."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    for part in parts:
        pixels, depth = project(to_ground(part.points))
        if part.width:
            thick = max(1, round(part.width * FOCAL * SCALE / max(1.0, float(depth.mean()))))
            cv2.polylines(mask, [fixed(pixels)], False, 255, thick, cv2.LINE_8, 4)
        else:
            cv2.fillPoly(mask, [fixed(pixels)], 255, cv2.LINE_8, 4)
    darken(canvas, mask, soft, loss, 0.12 * loss)


def prism(base: Array, z0: float, z1: float, colour: Colour) -> list[Part]:
    """The faces of an upright prism over a counter-clockwise plan (N, 2) that the camera sees."""
    parts = []
    for a, b in zip(base, np.roll(base, -1, 0), strict=True):
        normal = np.array([b[1] - a[1], a[0] - b[0]]) / np.hypot(*(b - a))
        if normal @ (np.array(EYE[:2]) - a) > 0:
            face = np.array([[*a, z0], [*b, z0], [*b, z1], [*a, z1]])
            sun = max(0.0, float(normal @ SUN[:2]))
            shade = 0.78 + 0.12 * normal[0]
            parts.append(Part(face, 0.0, (colour[0] * shade, colour[1] * shade, colour[2] * shade), sun))
    return [*parts, Part(plan(base, z1), 0.0, colour, float(SUN[2]))]


def fbm(rng: np.random.Generator, height: int, width: int, cell: int, octaves: int = 5) -> Array:
    """Multi-octave noise (height, width) float32, mean 0, deviation 1; coarsest grain cell px."""
    total = np.zeros((height, width), np.float32)
    for k in range(octaves):
        step = max(1, cell >> k)
        grid = rng.standard_normal((height // step + 2, width // step + 2)).astype(np.float32)
        size = (grid.shape[1] * step, grid.shape[0] * step)
        total += cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)[:height, :width] * 0.62**k
    total -= total.mean()
    total /= total.std()
    return total


def material(
    rng: np.random.Generator,
    height: int,
    width: int,
    colour: Colour,
    sun: float,
    cell: int,
    rough: tuple[float, float, float],
) -> Array:
    """A texture (height, width, 4) uint8; rough gives coarse, fine and hue variation (0..1)."""
    coarse, fine, hue = fbm(rng, height, width, cell), fbm(rng, height, width, 4, 3), rough[2]
    tone = 1 + rough[0] * coarse + rough[1] * fine
    drift = fbm(rng, height, width, cell * 2, 4)
    out = np.empty((height, width, 4), np.float32)
    for k, lean in enumerate((-0.3, 0.0, 1.0)):
        out[..., k] = colour[k] * tone * (1 + hue * lean * drift)
    out[..., 3] = 255 * sun
    return out.clip(1, 250).astype(np.uint8)


def paste(canvas: Array, texture: Array, corners: Array) -> None:
    """Warps a texture on a world quad (4, 3): its corners from top left, clockwise."""
    h, w = texture.shape[:2]
    source = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32)
    target = (project(corners)[0] * SCALE - 0.5).astype(np.float32)
    size = (canvas.shape[1], canvas.shape[0])
    cv2.warpPerspective(
        texture, cv2.getPerspectiveTransform(source, target), size, canvas, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT
    )


def ground_px(points: Any) -> Array:
    """Ground points (N, 2) in metres as int32 pixels of the ground texture."""
    flat = np.asarray(points, np.float64)
    return np.rint((flat - (GROUND[0], GROUND[3])) * (GROUND_PX, -GROUND_PX)).astype(np.int32)


def stamp(texture: Array, cover: Array, area: Any, ragged: Array | None = None) -> None:
    """Lays a cover on the polygon `area` (N, 2) m of the ground; ragged noise frays its edge."""
    mask = np.zeros(texture.shape[:2], np.uint8)
    cv2.fillPoly(mask, [ground_px(area)], 255)
    if ragged is not None:
        mask = ((cv2.blur(mask, (13, 13)).astype(np.float32) + 38 * ragged) > 128).astype(np.uint8)
    texture[mask > 0] = cover[mask > 0]


def scratch(texture: Array, points: Any, width: float, gain: float) -> None:
    """Multiplies the brightness of a ground texture by gain along a line width m wide."""
    line, thick = ground_px(points), max(1, round(width * GROUND_PX))
    x, y, w, h = cv2.boundingRect(line)
    pad = thick + 8  # the blur reaches 4 px
    left, top = max(0, x - pad), max(0, y - pad)
    area = texture[top : y + h + pad, left : x + w + pad, :3]
    mask = np.zeros(area.shape[:2], np.float32)
    cv2.polylines(mask, [line - (left, top)], False, 1.0, thick, cv2.LINE_AA)
    mask = cv2.GaussianBlur(mask, (0, 0), 1.0)[..., None] * (gain - 1) + 1
    area[:] = (area * mask).clip(0, 250).astype(np.uint8)


def band(x0: float, x1: float, y0: float, y1: float) -> list[tuple[float, float]]:
    """The corners (m) of an upright ground rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
