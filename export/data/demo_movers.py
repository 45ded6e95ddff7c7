"""What moves in the demonstration clip: the gate, cars, people, animals, and their timing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from edge_ravlm.export.data.demo_canvas import (
    BAY_CENTRE,
    EYE,
    GATE_LEFT,
    GATE_RIGHT,
    GATE_SWING,
    GATE_Y,
    SUN,
    Array,
    Colour,
    Part,
    band,
    darken,
    draw_parts,
    fixed,
    plan,
    project,
    to_ground,
)

# Moments (s) at which each thing starts to change, and the state it changes to.
GATE_PLAN = [
    (-9.0, "closed"),
    (6.0, "open"),
    (17.0, "closed"),
    (29.0, "open"),
    (40.0, "closed"),
    (50.5, "open"),
    (61.0, "closed"),
    (72.0, "open"),
    (82.0, "closed"),
]
LIGHT_PLAN = [
    (-9.0, "off"),
    (4.0, "on"),
    (10.5, "off"),
    (16.0, "on"),
    (23.5, "off"),
    (34.0, "on"),
    (44.0, "off"),
    (53.0, "on"),
    (57.5, "off"),
    (67.0, "on"),
    (76.5, "off"),
    (81.5, "on"),
]
FROM_STREET = [
    (12.0, 21.8),
    (6.5, 21.8),
    (2.4, 21.0),
    (0.5, 18.6),
    (0.3, 16.4),
    (0.9, 14.8),
    (2.9, 14.0),
    (3.72, 12.3),
    BAY_CENTRE,
]
FROM_YARD = [(2.2, -1.5), (3.8, 3.0), (4.55, 6.6), (4.35, 8.6), BAY_CENTRE]


class Shape(NamedTuple):
    """A car body: sizes in metres; profiles are (share of length from rear, height) knots."""

    length: float
    width: float
    top: tuple[tuple[float, float], ...]
    belt: tuple[tuple[float, float], ...]
    glass_from: float


class Visit(NamedTuple):
    """One stay in the bay: drives in from `start`, drives away from `leave` (s)."""

    shape: str
    paint: Colour
    start: float
    way_in: list[tuple[float, float]]
    leave: float
    way_out: list[tuple[float, float]]


class Walk(NamedTuple):
    """A distractor on a straight line: kind, seconds, ground points (m), two colours."""

    kind: str
    start: float
    end: float
    a: tuple[float, float]
    b: tuple[float, float]
    main: Colour
    second: Colour


SHAPES = {
    "hatch": Shape(
        3.9,
        1.72,
        (
            (0, 0.84),
            (0.01, 0.93),
            (0.1, 1.38),
            (0.2, 1.47),
            (0.5, 1.47),
            (0.58, 1.4),
            (0.76, 1.0),
            (0.96, 0.84),
            (1, 0.72),
        ),
        ((0, 0.7), (0.06, 0.96), (0.75, 0.92), (0.95, 0.76), (1, 0.58)),
        0.1,
    ),
    "sedan": Shape(
        4.6,
        1.8,
        (
            (0, 0.86),
            (0.01, 0.98),
            (0.17, 1.03),
            (0.33, 1.38),
            (0.45, 1.44),
            (0.55, 1.41),
            (0.71, 1.0),
            (0.97, 0.82),
            (1, 0.72),
        ),
        ((0, 0.7), (0.04, 0.94), (0.72, 0.92), (0.96, 0.74), (1, 0.56)),
        0.2,
    ),
    "van": Shape(
        4.9,
        1.9,
        ((0, 1.7), (0.01, 1.85), (0.05, 1.95), (0.68, 1.95), (0.76, 1.8), (0.89, 1.2), (0.98, 0.98), (1, 0.84)),
        ((0, 0.8), (0.03, 1.08), (0.88, 1.08), (0.97, 0.88), (1, 0.6)),
        0.55,
    ),
    "suv": Shape(
        4.4,
        1.86,
        (
            (0, 0.98),
            (0.01, 1.1),
            (0.06, 1.6),
            (0.15, 1.68),
            (0.54, 1.66),
            (0.62, 1.55),
            (0.75, 1.1),
            (0.97, 0.98),
            (1, 0.86),
        ),
        ((0, 0.8), (0.03, 1.06), (0.75, 1.04), (0.96, 0.9), (1, 0.66)),
        0.08,
    ),
}
VISITS = [
    Visit("hatch", (40, 42, 178), 9.0, FROM_STREET, 21.5, FROM_YARD),
    Visit("sedan", (150, 96, 46), 32.5, FROM_STREET, 46.0, FROM_YARD),
    Visit("van", (214, 218, 220), 55.0, FROM_YARD, 66.6, FROM_YARD),
    Visit("suv", (74, 128, 132), 75.0, FROM_STREET, 999.0, FROM_YARD),
]
WALKS = [
    Walk("bird", 2.5, 4.6, (-9, 14), (12, 17), (60, 58, 60), (80, 80, 84)),
    Walk("street", 3.2, 6.2, (-16, 21.6), (18, 21.6), (120, 116, 110), (0, 0, 0)),
    Walk("cat", 13.0, 20.5, (-5.5, 7.6), (8.2, 7.5), (58, 92, 150), (70, 110, 170)),
    Walk("person", 22.8, 30.5, (0.6, 14.6), (-8.0, 9.3), (92, 62, 40), (60, 50, 48)),
    Walk("street", 25.0, 28.4, (18, 23.4), (-16, 23.4), (66, 64, 170), (0, 0, 0)),
    Walk("person", 34.5, 44.0, (9.5, 17.6), (-8.0, 17.6), (60, 70, 150), (90, 80, 76)),
    Walk("person", 40.8, 46.0, (7.4, 7.4), (-3.0, 7.0), (150, 150, 146), (84, 58, 44)),
    Walk("bird", 48.0, 50.2, (13, 12), (-12, 16), (50, 50, 52), (70, 70, 74)),
    Walk("street", 51.5, 54.6, (-16, 21.6), (18, 21.6), (60, 120, 90), (0, 0, 0)),
    Walk("cat", 58.8, 64.0, (9.0, 8.9), (-2.5, 7.0), (52, 52, 54), (66, 66, 68)),
    Walk("person", 66.2, 72.5, (-5.0, 14.9), (5.6, 14.2), (70, 110, 60), (64, 54, 50)),
    Walk("person", 70.0, 80.0, (-9.0, 9.0), (2.0, 15.3), (58, 60, 64), (120, 100, 80)),
    Walk("street", 78.6, 82.0, (18, 23.4), (-16, 23.4), (190, 190, 186), (0, 0, 0)),
    Walk("bird", 84.0, 86.0, (-10, 15), (10, 11), (60, 58, 60), (80, 80, 84)),
]


def gate_parts(opening: float) -> list[Part]:
    """Both gate leaves; opening 0 (shut) to 1 (swung into the yard)."""
    parts, paint = [], (58.0, 52.0, 46.0)
    angle = opening * GATE_SWING
    reach = (GATE_RIGHT - GATE_LEFT) / 2 - 0.06
    for hinge, way in ((GATE_LEFT + 0.03, 1.0), (GATE_RIGHT - 0.03, -1.0)):
        foot, lean = np.array([hinge, GATE_Y]), np.array([way * np.cos(angle), -np.sin(angle)])

        def at(share: float, z: float, foot: Array = foot, lean: Array = lean) -> Array:
            """A point (3,) of this leaf: share of its reach from the hinge, height m."""
            return np.append(foot + lean * reach * share, z)

        parts.append(Part(np.array([at(0, 0.1), at(1, 0.1), at(1, 0.55), at(0, 0.55)]), 0.0, (70, 62, 54), 0.35))
        for share in np.linspace(0, 1, 11):
            top = 1.3 + 0.28 * share**2
            parts.append(Part(np.array([at(share, 0.1), at(share, top)]), 0.05, paint, 0.4))
        for z, rise in ((0.1, 0.0), (0.55, 0.0), (1.22, 0.28)):
            rail = np.array([at(s, z + rise * s**2) for s in np.linspace(0, 1, 7)])
            parts.append(Part(rail, 0.08, paint, 0.45))
    return parts


def limbs(walk: Walk, t: float) -> list[Part]:
    """A person, cat or bird at time t as thick lines, limbs swinging with the stride."""
    f = (t - walk.start) / (walk.end - walk.start)
    a, b = np.array(walk.a), np.array(walk.b)
    ahead = (b - a) / np.hypot(*(b - a))
    here, pace = a + f * (b - a), np.hypot(*(b - a)) * f
    side = np.array([-ahead[1], ahead[0]])

    def bone(width: float, paint: Colour, *spots: tuple[float, float, float]) -> Part:
        """A line through (ahead, left, up) offsets in metres."""
        return Part(np.array([np.append(here + ahead * u + side * v, z) for u, v, z in spots]), width, paint, 0.42)

    if walk.kind == "bird":
        flap, z = 0.22 * np.sin(t * 22), 3.2 + 0.3 * np.sin(t * 2)
        return [
            bone(0.1, walk.main, (-0.2, 0, z), (0.15, 0, z)),
            bone(0.07, walk.second, (-0.05, 0.45, z + flap), (0, 0, z), (-0.05, -0.45, z + flap)),
        ]
    if walk.kind == "cat":
        swing = [0.11 * np.sin(pace * 11 + k * 1.6) for k in range(4)]
        legs = [
            bone(0.05, walk.main, (u, v, 0.2), (u + s, v, 0.02))
            for (u, v), s in zip(((0.2, 0.05), (0.2, -0.05), (-0.2, 0.05), (-0.2, -0.05)), swing, strict=True)
        ]
        tail = bone(0.05, walk.main, (-0.24, 0, 0.28), (-0.4, 0, 0.4), (-0.42, 0, 0.55 + 0.04 * np.sin(t * 3)))
        return [
            tail,
            *legs,
            bone(0.16, walk.main, (-0.2, 0, 0.26), (0.2, 0, 0.27)),
            bone(0.13, walk.second, (0.31, 0, 0.36), (0.33, 0, 0.36)),
            bone(0.04, walk.second, (0.3, 0.05, 0.4), (0.3, 0.05, 0.46)),
            bone(0.04, walk.second, (0.3, -0.05, 0.4), (0.3, -0.05, 0.46)),
        ]
    return person(walk, bone, pace * 4.1)


def person(walk: Walk, bone: Callable[..., Part], stride: float) -> list[Part]:
    """The lines of a walking person; stride is the phase of the step (rad)."""
    s, c, skin = np.sin(stride), np.cos(stride), (114, 144, 185)
    sleeve = tuple(0.85 * x for x in walk.main)
    legs = [
        bone(
            0.15,
            walk.second,
            (0, v, 0.9),
            (0.16 * w + 0.05, v, 0.48),
            (0.3 * w - 0.04, v, 0.05 + 0.08 * max(0, k)),
            (0.3 * w + 0.1, v, 0.05),
        )
        for v, w, k in ((0.1, s, c), (-0.1, -s, -c))
    ]
    arms = [
        bone(0.1, sleeve, (0, v, 1.38), (-0.16 * w, v * 1.15, 1.12), (-0.2 * w + 0.1, v, 0.9))
        for v, w in ((0.23, s), (-0.23, -s))
    ]
    return [
        legs[0],
        arms[1],
        legs[1],
        bone(0.34, walk.main, (0, 0, 1.02), (0.02, 0, 1.28)),
        bone(0.24, walk.main, (0, 0.08, 1.36), (0, -0.08, 1.36)),
        arms[0],
        bone(0.11, skin, (0.02, 0, 1.45), (0.03, 0, 1.56)),
        bone(0.2, skin, (0.03, 0, 1.6), (0.03, 0, 1.64)),
        bone(0.19, (40, 48, 60), (-0.01, 0, 1.66), (-0.02, 0, 1.69)),
    ]


def body(shape: Shape, paint: Colour) -> tuple[Array, Array, Array]:
    """A car body as quads (M, 4, 3) in metres (ahead, left, up), bgr (M, 3) and gloss (M,)."""
    u = np.unique(np.concatenate([np.linspace(0, 1, 29), [k[0] for k in shape.top]]))
    low = np.interp(u, [k[0] for k in shape.belt], [k[1] for k in shape.belt])
    top = np.maximum(np.interp(u, [k[0] for k in shape.top], [k[1] for k in shape.top]), low + 0.01)
    half = shape.width / 2 * (1 - 0.16 * np.abs(2 * u - 1) ** 7)
    tall = np.clip((top - low) / 0.5, 0, 1)
    v = np.stack(
        [half * 0.9, half, half, half * 0.97, half * (0.95 - 0.2 * tall), half * (0.85 - 0.22 * tall), 0 * half]
    )
    z = np.stack([0 * u + 0.25, 0 * u + 0.42, (0.42 + low) / 2 + 0.06, low, low + (top - low) * 0.9, top, top + 0.03])
    v, z = np.concatenate([-v, v[-2::-1]]).T, np.concatenate([z, z[-2::-1]]).T
    ring = np.stack([np.repeat((u - 0.5)[:, None] * shape.length, 13, 1), v, z], 2)
    ends = [np.stack([r[:, 0], 0 * r[:, 1], 0 * r[:, 2] + 0.5], 1)[None] for r in (ring[0], ring[-1])]
    ring = np.concatenate([ends[0], ring, ends[1]])
    quads = np.stack([ring[:-1, :-1], ring[1:, :-1], ring[1:, 1:], ring[:-1, 1:]], 2).reshape(-1, 4, 3)
    glass = glazing(shape, u, top, low)
    colour = np.where(glass[:, None], (46.0, 42.0, 38.0), np.array(paint, np.float64))
    return quads, colour, np.where(glass, 0.5, 0.2)


def glazing(shape: Shape, u: Array, top: Array, low: Array) -> Array:
    """Which quads of a body are glass: (M,) bool, in the order body() makes them."""
    mid = (u[1:] + u[:-1]) / 2
    cabin = (np.minimum(top[1:] - low[1:], top[:-1] - low[:-1]) > 0.12) & (mid > shape.glass_from)
    side = cabin & (np.abs(mid - 0.47) > 0.018) & (mid > shape.glass_from + 0.03)
    steep = np.abs(np.diff(top) / np.diff(u) / shape.length) > 0.33
    pane = steep & (np.maximum(top[1:] - low[1:], top[:-1] - low[:-1]) > 0.12) & (mid < 0.9)
    pane &= (mid > 0.3) | (shape.glass_from < 0.3)
    table = np.zeros((len(u) + 1, 12), bool)
    table[1:-1, [3, 8]] = (side & (top[1:] - low[1:] > 0.2))[:, None]
    table[1:-1, [5, 6]] = pane[:, None]
    return table.ravel()


def place(points: Array, pose: Array) -> Array:
    """Points (..., 3) of a car (ahead, left, up) in the world; pose is x, y, heading (rad)."""
    c, s = np.cos(pose[2]), np.sin(pose[2])
    x = pose[0] + points[..., 0] * c - points[..., 1] * s
    y = pose[1] + points[..., 0] * s + points[..., 1] * c
    return np.stack([x, y, points[..., 2]], -1)


def draw_body(canvas: Array, quads: Array, colour: Array, gloss: Array) -> None:
    """Paints body quads (M, 4, 3) far to near with sunlight, sky reflection and rim gloss."""
    centre = quads.mean(1)
    normal = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    outside = centre - (*quads.reshape(-1, 3)[:, :2].mean(0), 0.6)
    normal *= np.where((normal * outside).sum(1) < 0, -1, 1)[:, None]
    sight = np.array(EYE) - centre
    sight /= np.linalg.norm(sight, axis=1, keepdims=True)
    facing = (normal * sight).sum(1)
    bounce = 2 * facing * normal[:, 2] - sight[:, 2]
    up = np.clip(bounce * 4 + 0.4, 0, 1)[:, None]
    sky = up * (205, 192, 178) + (1 - up) * (62, 66, 66)
    mirror = (gloss * (0.35 + 0.65 * (1 - np.abs(facing)) ** 2))[:, None]
    shaded = colour * (0.66 + 0.34 * np.clip(normal[:, 2:], -0.6, 1))
    value = np.column_stack([shaded * (1 - mirror) + sky * mirror, 255 * np.clip(normal @ SUN, 0.02, 1)]).clip(1, 250)
    pixels, depth = project(quads.reshape(-1, 3))
    corners, depth = fixed(pixels).reshape(-1, 4, 2), depth.reshape(-1, 4)
    for k in np.argsort(-np.linalg.norm(centre - EYE, axis=1), kind="stable"):
        if facing[k] > -0.02 and depth[k].min() > 0.8:
            cv2.fillConvexPoly(canvas, corners[k], value[k].tolist(), cv2.LINE_8, 4)


def wheels(shape: Shape, pose: Array, rolled: float) -> tuple[list[Part], list[Part]]:
    """Tyre blocks behind the body and wheel faces (arch, tyre, rim, spokes) on its near side."""
    ring = np.linspace(0, 2 * np.pi, 17)
    near = np.sign((np.array(EYE[:2]) - pose[:2]) @ (-np.sin(pose[2]), np.cos(pose[2])))
    blocks, faces = [], []
    for u in (-0.31, 0.30):
        for side in (-1.0, 1.0):
            v = side * shape.width / 2
            spot = np.array([u * shape.length, v * 0.88, 0.16])
            tread = place(np.array([spot - (0.2, 0, 0), spot + (0.2, 0, 0)]), pose)
            blocks.append(Part(tread, 0.26, (28, 28, 28), 0.05))
            if side != near:
                continue
            for radius, paint, out in ((0.39, 26.0, 1.0), (0.32, 38.0, 1.01), (0.21, 150.0, 1.02)):
                disc = np.stack(
                    [
                        u * shape.length + radius * np.cos(ring),
                        0 * ring + v * out,
                        np.maximum(0.02, 0.32 + radius * np.sin(ring)),
                    ],
                    1,
                )
                faces.append(Part(place(disc, pose), 0.0, (paint, paint, paint), 0.3))
            for k in range(5):
                a, hub = k * 1.2566 - rolled / 0.32, np.array([u * shape.length, v * 1.03, 0.32])
                spoke = np.array([hub, hub + (0.2 * np.cos(a), 0, 0.2 * np.sin(a))])
                faces.append(Part(place(spoke, pose), 0.05, (90, 90, 90), 0.3))
    return blocks, faces


def trim(shape: Shape, pose: Array) -> list[Part]:
    """Lights, grille and number plate on whichever end of a car faces the camera."""
    front = (np.array(EYE[:2]) - pose[:2]) @ (np.cos(pose[2]), np.sin(pose[2])) > 0
    u, w = (0.5 if front else -0.5) * shape.length * 1.005, shape.width / 2
    lights: Colour = (226, 232, 230) if front else (40, 36, 176)
    rows = [
        (-0.3 * w, 0.3 * w, 0.42, 0.54, (206, 212, 208)),
        (-0.78 * w, -0.5 * w, 0.6, 0.72, lights),
        (0.5 * w, 0.78 * w, 0.6, 0.72, lights),
    ]
    if not front and shape.glass_from > 0.3:
        rows += [(-0.72 * w, -0.03 * w, 1.2, 1.62, (46, 42, 38)), (0.03 * w, 0.72 * w, 1.2, 1.62, (46, 42, 38))]
    if front:
        rows.insert(0, (-0.62 * w, 0.62 * w, 0.34, 0.52, (34, 34, 34)))
    return [
        Part(place(np.array([[u, a, z0], [u, b, z0], [u, b, z1], [u, a, z1]]), pose), 0.0, c, 0.3)
        for a, b, z0, z1, c in rows
    ]


def draw_car(canvas: Array, shape: Shape, paint: Colour, pose: Array, rolled: float) -> Array:
    """Draws a car with its shadows; returns its outline in pixels (N, 2)."""
    quads, colour, gloss = body(shape, paint)
    quads = place(quads, pose)
    points = quads.reshape(-1, 3)
    if project(points)[1].min() > 0.9:
        mask = np.zeros(canvas.shape[:2], np.uint8)
        cv2.fillConvexPoly(mask, cv2.convexHull(fixed(project(to_ground(points))[0])), 255, cv2.LINE_8, 4)
        darken(canvas, mask, 2.5, 0.9, 0.1)
        foot = np.array(band(-0.5, 0.5, -0.5, 0.5)) * (shape.length, shape.width)
        mask[:] = 0
        cv2.fillPoly(mask, [fixed(project(place(plan(foot), pose))[0])], 255, cv2.LINE_8, 4)
        darken(canvas, mask, 4.0, 0.9, 0.6)
    blocks, faces = wheels(shape, pose, rolled)
    draw_parts(canvas, blocks)
    draw_body(canvas, quads, colour, gloss)
    draw_parts(canvas, faces + trim(shape, pose))
    return project(points)[0]


def settled(moves: list[tuple[float, str]], t: float, takes: float) -> tuple[str, float]:
    """The state a plan is in or moving to at time t, and how far the move is (0..1)."""
    start, state = [m for m in moves if m[0] <= t][-1]
    return state, min(1.0, (t - start) / takes)


def road(waypoints: list[tuple[float, float]]) -> Array:
    """A smooth dense path (K, 2) in metres through rounded waypoints."""
    points = np.array(waypoints, np.float64)
    for _ in range(5):
        cut = np.stack([0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]], 1)
        points = np.concatenate([points[:1], cut.reshape(-1, 2), points[-1:]])
    return points


def along(path: Array, share: float) -> tuple[Array, float]:
    """The pose (x, y, heading) at a share (0..1) of a path's length, and the metres rolled."""
    run = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])

    def point(s: float) -> Array:
        """The path point (2,) after s metres."""
        return np.array([np.interp(s, run, path[:, k]) for k in (0, 1)])

    s = share * run[-1]
    ahead = point(min(s + 0.7, run[-1])) - point(max(s - 0.7, 0.0))
    return np.array([*point(s), np.arctan2(ahead[1], ahead[0])]), float(s)


def visit_pose(visit: Visit, t: float) -> tuple[Array, float, bool] | None:
    """Where a visiting car is at time t: pose, metres rolled, parked; None while it is away."""
    f, g = (t - visit.start) / 3.6, (t - visit.leave) / 3.4
    if f < 0 or g > 1:
        return None
    if g <= 0:
        f = min(f, 1.0)
        return (*along(road(visit.way_in), f * (2 - f)), f >= 1)
    if visit.way_in is visit.way_out:
        return (*along(road(visit.way_in), 1 - g * g), False)
    return (*along(road(visit.way_out)[::-1], g * g), False)


def walk_pose(walk: Walk, t: float) -> Array:
    """The pose (x, y, heading) of a passing street car at time t."""
    a, b = np.array(walk.a), np.array(walk.b)
    return np.append(a + (b - a) * (t - walk.start) / (walk.end - walk.start), np.arctan2(*(b - a)[::-1]))


def leaves(t: float) -> list[Part]:
    """A few leaves drifting down at time t."""
    parts = []
    for k in range(7):
        fall = (t * 0.55 + k * 1.37) % 4.5
        x = -7 + 2.4 * k + 1.2 * np.sin(t * 0.9 + k) + 0.3 * fall
        spot = np.array([x, 8.5 + (k * 2.3) % 6, 4.2 - fall])
        turn = np.array([0.05 * np.cos(t * 5 + k), 0, 0.05 * np.sin(t * 5 + k)])
        parts.append(Part(np.array([spot - turn, spot + turn]), 0.05, (40, 90, 130 + 10.0 * (k % 3)), 0.6))
    return parts
