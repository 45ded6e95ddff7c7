"""The still parts and the light of the demonstration clip: ground, house, trees, lamp."""

from __future__ import annotations

import cv2
import numpy as np

from edge_ravlm.export.data.demo_canvas import (
    BAY,
    BAY_CENTRE,
    EYE,
    FOCAL,
    FPS,
    FRAMES,
    GATE_LEFT,
    GATE_RIGHT,
    GROUND,
    GROUND_PX,
    HEIGHT,
    LAMP_S,
    LAMP_Z,
    PITCH,
    SCALE,
    WALL_HEIGHT,
    WALL_LENGTH,
    WIDTH,
    Array,
    Colour,
    Part,
    band,
    draw_parts,
    fbm,
    material,
    paste,
    prism,
    project,
    scratch,
    stamp,
    tint,
    wall,
)


def ground(rng: np.random.Generator) -> Array:
    """The ground seen from above, GROUND_PX pixels a metre, far edge first."""
    h, w = int((GROUND[3] - GROUND[2]) * GROUND_PX), int((GROUND[1] - GROUND[0]) * GROUND_PX)
    lawn = material(rng, h, w, (58, 112, 94), 0.72, 150, (0.08, 0.13, 0.09))
    tar = material(rng, h, w, (106, 106, 108), 0.72, 180, (0.06, 0.07, 0.02))
    slab = material(rng, h, w, (140, 148, 154), 0.72, 120, (0.05, 0.05, 0.03))
    frayed = fbm(rng, h, w, 24, 4)
    drive = [(-1.45, 16.4), (2.1, 16.4), (2.1, 13.9), (5.0, 13.7), (6.0, 8.3), (5.8, 4), (-0.6, 4), (-1.5, 10)]
    walk = [wall(s, 0, o)[:2] for s, o in ((-3, 0.75), (9.6, 0.75), (9.6, 1.85), (-3, 1.85))]
    for cover, area, edge in (
        (slab, walk, frayed),
        (tar, drive, frayed),
        (slab, band(-16, 16, 16.4, 18.2), None),
        (tar, band(-16, 16, 18.3, 25.4), None),
        (slab, BAY, None),
    ):
        stamp(lawn, cover, area, edge)
    wear(lawn, rng)
    return lawn


def wear(texture: Array, rng: np.random.Generator) -> None:
    """Adds joints, paint, kerbs, tyre tracks, oil and cracks to the ground texture."""
    axis, side = BAY[3] - BAY[0], BAY[1] - BAY[0]
    for k in range(1, 12):
        scratch(texture, [BAY[0] + axis * k / 12, BAY[1] + axis * k / 12], 0.03, 0.8)
    for k in range(1, 6):
        scratch(texture, [BAY[0] + side * k / 6, BAY[3] + side * k / 6], 0.03, 0.8)
    scratch(texture, [BAY[0], BAY[3], BAY[2], BAY[1]], 0.12, 1.5)
    for s in np.arange(-3, 9.6, 0.75):
        scratch(texture, [wall(s, 0, 0.75)[:2], wall(s, 0, 1.85)[:2]], 0.04, 0.72)
    for x in np.arange(-16, 16, 1.5):
        scratch(texture, [(x, 16.4), (x, 18.2)], 0.04, 0.8)
        scratch(texture, [(x, 21.9), (x + 0.8, 21.9)], 0.12, 1.7)
    scratch(texture, [(-16, 18.25), (16, 18.25)], 0.16, 1.25)
    for x in (-0.35, 1.05):
        scratch(texture, [(x, 17), (x, 13), (x + 0.3, 9), (x + 1.2, 5)], 0.3, 0.9)
    for _ in range(9):
        steps = rng.normal(0, 0.28, (9, 2)) + rng.normal(0, 0.25, 2)
        scratch(texture, np.cumsum(steps, 0) + (rng.uniform(-1, 2), rng.uniform(6, 15)), 0.025, 0.72)
    scratch(texture, [BAY_CENTRE, (4.1, 10.0)], 0.5, 0.78)


def facade(rng: np.random.Generator) -> Array:
    """The house front (110 px a metre, top row first): boards, plinth, door and window."""
    m, h, w = 110, int(WALL_HEIGHT * 110), int(WALL_LENGTH * 110)
    image = material(rng, h, w, (150, 166, 172), 0.22, 200, (0.025, 0.02, 0.01)).astype(np.float32)
    z = (h - 1 - np.arange(h)) / m
    tone = (1 - 0.25 * np.exp(-(z % 0.19) / 0.02)) * (1 - 0.35 * np.clip((z - 2.3) / 0.7, 0, 1) ** 1.5)
    image[..., :3] *= tone[:, None, None]
    image[z < 0.4, :, :3] *= 0.62

    def rect(s0: float, z0: float, s1: float, z1: float, colour: Colour) -> None:
        """Fills a rectangle given in metres along and up the wall."""
        cv2.rectangle(
            image, (round(s0 * m), h - round(z1 * m)), (round(s1 * m), h - round(z0 * m)), (*colour, 50.0), -1
        )

    rect(3.86, 0.0, 5.1, 2.32, (176, 184, 186))
    rect(3.98, 0.05, 4.98, 2.2, (44, 62, 96))
    for z0, z1 in ((0.2, 0.75), (0.87, 1.4)):
        for s0 in (4.1, 4.54):
            rect(s0, z0, s0 + 0.34, z1, (32, 46, 74))
            rect(s0 + 0.04, z0 + 0.04, s0 + 0.34, z1, (50, 70, 106))
    rect(4.1, 1.55, 4.86, 2.05, (66, 62, 52))
    rect(4.84, 1.0, 4.92, 1.12, (120, 170, 190))
    rect(1.3, 0.9, 3.3, 2.25, (184, 190, 192))
    for s0 in (1.4, 2.36):
        rect(s0, 1.0, s0 + 0.84, 2.15, (70, 64, 52))
        rect(s0 + 0.5 * (s0 < 2), 1.0, s0 + 0.34 + 0.5 * (s0 < 2), 2.15, (104, 106, 104))
    return image.clip(1, 250).astype(np.uint8)


def foliage(canvas: Array, rng: np.random.Generator, points: Array, shade: Array, size: float, colour: Colour) -> None:
    """Draws leaf clusters at world points (N, 3), far ones first; shade (N,) is brightness."""
    pixels, depth = project(points)
    radius = np.maximum(1, size * FOCAL * SCALE / depth * rng.uniform(0.5, 1.2, len(depth)))
    warm = rng.normal(1, 0.09, len(depth))
    for k in np.argsort(-depth, kind="stable"):
        value = tint((colour[0], colour[1], colour[2] * warm[k]), 0.25 + 0.5 * min(1.0, shade[k]), shade[k])
        centre = np.rint(pixels[k] * SCALE).astype(int)
        axes = (int(radius[k]), int(radius[k] * 0.7))
        cv2.ellipse(canvas, (int(centre[0]), int(centre[1])), axes, float(warm[k] * 900 % 180), 0, 360, value, -1)


def crown(
    canvas: Array, rng: np.random.Generator, centre: Colour, radii: Colour, count: int, size: float, colour: Colour
) -> None:
    """Draws a tree crown or bush: clusters filling an ellipsoid (m), lit from the sun's side."""
    unit = rng.normal(0, 1, (count, 3))
    unit *= (rng.uniform(0.55, 1.05, count) / np.linalg.norm(unit, axis=1))[:, None]
    shade = 0.68 + 0.34 * (unit @ np.array([0.5, -0.15, 0.85])) + rng.normal(0, 0.11, count)
    points = np.array(centre) + unit * radii
    foliage(canvas, rng, points, shade.clip(0.25, 1.3), size, colour)


def far_layer(rng: np.random.Generator) -> Array:
    """Everything up to the street: sky, houses, trees and the whole ground."""
    h, w = HEIGHT * SCALE, WIDTH * SCALE
    canvas = material(rng, h, w, (214, 200, 184), 0.7, 400, (0.03, 0.0, 0.015))
    clouds = cv2.GaussianBlur(fbm(rng, h // 3, w, 200, 5), (0, 0), 3).clip(-0.5, 2)[..., None]
    canvas[: h // 3, :, :3] = (canvas[: h // 3, :, :3] + clouds * (6, 12, 17)).clip(0, 246)
    for x, y, z, r in ((-17.0, 46.0, 5.0, 5.5), (-6, 44, 4, 5), (4, 47, 4.5, 5), (15, 44, 4.5, 6), (25, 46, 5, 6)):
        crown(canvas, rng, (x, y, z), (r * 1.2, r * 0.7, r * 0.75), 1500, 0.4, (74, 98, 88))
    corners = np.array(
        [[GROUND[0], GROUND[3], 0], [GROUND[1], GROUND[3], 0], [GROUND[1], GROUND[2], 0], [GROUND[0], GROUND[2], 0]]
    )
    paste(canvas, ground(rng), corners)
    for x, paint, roof in ((-5.0, (150, 164, 176), (70, 76, 104)), (8.5, (140, 146, 150), (88, 84, 82))):
        draw_parts(canvas, prism(np.array(band(x, x + 8.5, 31, 36)), 0, 3.0, paint))
        slope = np.array([[x - 0.5, 30.4, 2.9], [x + 9, 30.4, 2.9], [x + 8, 33.5, 5.4], [x + 0.5, 33.5, 5.4]])
        draw_parts(canvas, [Part(slope, 0, roof, 0.3)])
        for s in (1.0, 3.6, 6.2):
            pane = np.array([[x + s, 30.95, z] for z in (1, 2.3)] + [[x + s + 1.3, 30.95, z] for z in (2.3, 1)])
            draw_parts(canvas, [Part(pane, 0, (88, 80, 70), 0.2), Part(pane[[0, 1, 2, 3, 0]], 0.1, (190,) * 3, 0.2)])
    for x, y, z, r, c in ((-9.0, 28.5, 3.4, 2.6, 70), (4.4, 29.5, 3.0, 1.7, 84), (14.5, 28, 3.6, 2.7, 64)):
        draw_parts(canvas, [Part(np.array([[x, y, 0], [x, y, z]]), 0.35, (52, 62, 72), 0.2)])
        crown(canvas, rng, (x, y, z), (r, r, r * 0.95), 1300, 0.26, (c * 0.62, c * 1.35, c))
    for k in range(35):
        crown(canvas, rng, (1.1 * k - 15, 27.3, 0.5), (0.9, 0.5, 0.75), 110, 0.15, (48, 92, 74))
    return canvas


def near_layer(rng: np.random.Generator) -> Array:
    """What stands between the yard and the street, and the house; 0 where nothing stands."""
    canvas = np.zeros((HEIGHT * SCALE, WIDTH * SCALE, 4), np.uint8)
    for x0, x1 in ((GATE_RIGHT + 0.3, 14.0), (-13.0, GATE_LEFT - 0.3)):
        draw_parts(canvas, prism(np.array(band(x0, x1, 15.8, 16.3)), 0, 1.2, (34, 58, 48)))
        count = int((x1 - x0) * 330)
        spots = np.column_stack(
            [rng.uniform(x0, x1, count), rng.uniform(15.55, 16.5, count), 1.5 * np.sqrt(rng.uniform(0, 1, count))]
        )
        foliage(canvas, rng, spots, 0.45 + 0.4 * spots[:, 2] + rng.normal(0, 0.13, count), 0.1, (52, 98, 76))
    for x in (GATE_LEFT - 0.25, GATE_RIGHT + 0.25):
        draw_parts(canvas, prism(np.array(band(x - 0.24, x + 0.24, 15.8, 16.28)), 0, 1.72, (104, 118, 150)))
        draw_parts(canvas, prism(np.array(band(x - 0.31, x + 0.31, 15.73, 16.35)), 1.72, 1.84, (168, 174, 178)))
    crown(canvas, rng, (8.3, 12.6, 0.7), (1.5, 1.1, 1.0), 1500, 0.1, (50, 104, 84))
    crown(canvas, rng, (7.4, 14.2, 0.5), (1.0, 0.8, 0.8), 900, 0.09, (62, 100, 104))
    house(canvas, rng)
    return canvas


def house(canvas: Array, rng: np.random.Generator) -> None:
    """Draws the house front, its roof, the step and the canopy over the door."""
    end = WALL_LENGTH
    paste(canvas, facade(rng), np.array([wall(0, WALL_HEIGHT), wall(end, WALL_HEIGHT), wall(end, 0), wall(0, 0)]))
    tiles = material(rng, 300, 1000, (66, 70, 98), 0.5, 120, (0.05, 0.08, 0.06))
    rows = (np.arange(300) % 25 / 25.0) ** 3
    tiles[..., :3] = (tiles[..., :3] * (1 - 0.35 * rows)[:, None, None]).astype(np.uint8)
    paste(
        canvas,
        tiles,
        np.array([wall(-1, 5.2, -3.2), wall(end - 0.4, 5.2, -3.2), wall(end + 0.5, 3.02, 0.5), wall(-1, 3.02, 0.5)]),
    )
    draw_parts(canvas, [Part(np.array([wall(-1, 2.97, 0.5), wall(end + 0.5, 2.97, 0.5)]), 0.15, (170, 178, 182), 0.2)])
    for s0, s1, out, z0, z1, paint in (
        (3.75, 5.25, 0.7, 0.0, 0.14, (128, 136, 142)),
        (3.7, 5.2, 0.85, 2.42, 2.54, (92, 94, 104)),
    ):
        draw_parts(
            canvas,
            prism(np.array([wall(s, 0, o)[:2] for s, o in ((s0, out), (s1, out), (s1, 0), (s0, 0))]), z0, z1, paint),
        )
    draw_parts(canvas, [Part(np.array([wall(end, 0.1, 0.05), wall(end, 2.9, 0.05)]), 0.09, (168, 176, 180), 0.2)])


def lamp(lit: bool) -> list[Part]:
    """The porch lantern: bracket, glass and cap."""
    glass: Colour = (196, 238, 255) if lit else (104, 108, 106)
    base = [wall(LAMP_S + s, 0, o)[:2] for s, o in ((-0.09, 0.26), (0.09, 0.26), (0.09, 0.08), (-0.09, 0.08))]
    cap = [wall(LAMP_S + s, 0, o)[:2] for s, o in ((-0.13, 0.3), (0.13, 0.3), (0.13, 0.04), (-0.13, 0.04))]
    arm = Part(np.array([wall(LAMP_S, LAMP_Z + 0.2, 0), wall(LAMP_S, LAMP_Z + 0.2, 0.17)]), 0.05, (40,) * 3, 0.2)
    return [
        arm,
        *prism(np.array(base), LAMP_Z - 0.17, LAMP_Z + 0.15, glass),
        *prism(np.array(cap), LAMP_Z + 0.15, LAMP_Z + 0.22, (36, 38, 40)),
        *prism(np.array(cap), LAMP_Z - 0.22, LAMP_Z - 0.17, (36, 38, 40)),
    ]


def daylight(t: float) -> tuple[Array, Array]:
    """Ambient and direct light (3,) bgr at time t: clouds pass, the afternoon turns warmer."""
    cloud = 0.5 + 0.32 * np.sin(t * 0.21 + 0.8) + 0.18 * np.sin(t * 0.53 + 2.0)
    late = t / (FRAMES / FPS)
    gain = 1.2 + 0.12 * np.sin(t * 0.11 + 0.4) - 0.08 * late
    warmth = 0.05 * np.sin(t * 0.16 + 1.0) + 0.06 * late
    tone = np.array([1 - warmth, 1.0, 1 + warmth])
    return gain * 0.42 * tone * (1.06, 1.0, 0.95), gain * (0.50 + 0.62 * cloud) * tone * (0.9, 1.0, 1.08)


def vignette() -> Array:
    """Brightness towards the corners, (HEIGHT, WIDTH, 1) float32."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.hypot((x - WIDTH / 2) / WIDTH, (y - HEIGHT / 2) / WIDTH)[..., None]
    fade: Array = 1 - 0.75 * radius**2.2
    return fade.astype(np.float32)


def glow() -> tuple[Array, Array]:
    """The lit lamp's light on surfaces and its bloom in the lens, (HEIGHT, WIDTH, 3) float32 each."""
    canvas, m = np.zeros((HEIGHT * SCALE, WIDTH * SCALE), np.float32), 20
    y, x = np.mgrid[GROUND[3] : GROUND[2] : -1 / m, GROUND[0] : GROUND[1] : 1 / m][:2]
    foot = wall(LAMP_S, 0, 0.2)
    corners = np.array([[x.min(), y.max(), 0], [x.max(), y.max(), 0], [x.max(), y.min(), 0], [x.min(), y.min(), 0]])
    paste(canvas, (0.5 * np.exp(-np.hypot(x - foot[0], y - foot[1]) / 1.1)).astype(np.float32), corners)
    z, s = np.mgrid[WALL_HEIGHT : 0 : -1 / m, 0 : WALL_LENGTH : 1 / m][:2]
    away = np.hypot(s - LAMP_S, z - LAMP_Z)
    paste(
        canvas,
        (1.7 * np.exp(-away / 0.75) + 1.2 * np.exp(-((away / 0.3) ** 2))).astype(np.float32),
        np.array([wall(0, WALL_HEIGHT), wall(WALL_LENGTH, WALL_HEIGHT), wall(WALL_LENGTH, 0), wall(0, 0)]),
    )
    spill = cv2.GaussianBlur(cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), (0, 0), 1.2)
    px, py = project(wall(LAMP_S, LAMP_Z, 0.17)[None])[0][0]
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    far = np.hypot(cols - px, rows - py)
    bloom = 90 * np.exp(-((far / 5) ** 2)) + 30 * np.exp(-far / 18)
    warm = np.array([0.42, 0.78, 1.1], np.float32)
    return spill[..., None] * warm, (bloom[..., None] * warm).astype(np.float32)


def tree_maps() -> tuple[tuple[Array, Array], Array]:
    """Half-size maps into the foliage noise (x, y) and how much foliage stands above, float32."""
    y, x = np.mgrid[: HEIGHT // 2, : WIDTH // 2] * 2.0
    right, drop = (x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL
    down = np.maximum(drop * np.cos(PITCH) + np.sin(PITCH), 0.05)
    depth = EYE[2] / down
    gx, gy = right * depth, depth * (np.cos(PITCH) - drop * np.sin(PITCH))
    cover = np.zeros_like(gx)
    for cx, cy, r, strength in ((-4, 8, 3.6, 1.0), (-1, 15.5, 2.6, 0.7), (4.6, 9.4, 2.4, 0.6), (8, 15, 3, 0.9)):
        cover = np.maximum(cover, strength * np.exp(-(((gx - cx) ** 2 + (gy - cy) ** 2) / r**2)))
    maps = (320 + gx * 18).astype(np.float32), (60 + gy * 18).astype(np.float32)
    return maps, (0.85 * cover * (y > 60)).astype(np.float32)
