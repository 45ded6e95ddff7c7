"""Renders the demonstration clip: a fixed camera over a front yard, with its truth.

Three things change state on their own: a gate, a parking bay and a porch light.  Daylight
drifts, tree shadows move, people, a cat, birds and street cars pass.  Everything is drawn
from one seed with numpy and OpenCV, so the clip carries no third-party material.

World units are metres: x to the right, y ahead, z up, the camera above the origin.  Times
are seconds.  Canvases are (H * SCALE, W * SCALE, 4) uint8: blue, green, red reflectance as
displayed, and the share of direct sunlight (0..255) that the surface receives.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_ravlm.export.data.demo_canvas import (
    BAY,
    FPS,
    FRAMES,
    GATE_LEFT,
    GATE_RIGHT,
    GATE_SWING,
    GATE_Y,
    HEIGHT,
    LAMP_S,
    LAMP_Z,
    SEED,
    WIDTH,
    Array,
    Box,
    Part,
    draw_parts,
    fbm,
    plan,
    project,
    shadow_parts,
    wall,
)
from edge_ravlm.export.data.demo_movers import (
    GATE_PLAN,
    LIGHT_PLAN,
    SHAPES,
    VISITS,
    WALKS,
    Walk,
    draw_car,
    gate_parts,
    leaves,
    limbs,
    settled,
    visit_pose,
    walk_pose,
)
from edge_ravlm.export.data.demo_scene import (
    daylight,
    far_layer,
    glow,
    lamp,
    near_layer,
    tree_maps,
    vignette,
)

CODING_FPS = 26000.0


class Scene:
    """The still layers and light maps of the yard, built once from the seed."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Draws the layers; the light maps are (HEIGHT, WIDTH) float32."""
        self.rng, self.far, self.near = rng, far_layer(rng), near_layer(rng)
        self.mask = (self.near[..., 3] > 0).astype(np.uint8)
        hedge = [
            Part(np.array([[x, 16, 0], [x + 0.5, 16, 0], [x + 0.5, 16, 1.4], [x, 16, 1.4]]), 0, (0, 0, 0), 0)
            for x in np.arange(-9, 12, 0.5)
            if x + 0.5 < GATE_LEFT or x > GATE_RIGHT
        ]
        shadow_parts(self.far, hedge, 3.0, 0.9)
        self.noise = rng.normal(0, 1, (HEIGHT + 64, WIDTH + 64, 3)).astype(np.float32)
        self.noise = 1.7 * self.noise + 1.3 * cv2.GaussianBlur(self.noise, (0, 0), 1.0)
        self.vignette = vignette()
        self.glow, self.halo = glow()
        self.tree = fbm(rng, 640, 640, 44, 4)
        self.map, self.cover = tree_maps()

    def tree_shade(self, t: float) -> Array:
        """The share (HEIGHT, WIDTH, 1) of sunlight that moving foliage keeps away at time t."""
        sway = np.float32(7 * np.sin(t * 0.7) + 3 * np.sin(t * 1.9)), np.float32(5 * np.sin(t * 0.5 + 1) + 0.6 * t)
        one = cv2.remap(self.tree, self.map[0] + sway[0], self.map[1] + sway[1], cv2.INTER_LINEAR)
        two = cv2.remap(self.tree, self.map[1] * np.float32(0.8) - sway[1], self.map[0] + sway[0], cv2.INTER_LINEAR)
        shade = self.cover * np.clip(0.55 + 0.8 * (one + two), 0, 1)
        full: Array = cv2.resize(cv2.blur(shade, (3, 3)), (WIDTH, HEIGHT))
        return full[..., None]

    def expose(self, canvas: Array, t: float, lit: float) -> Array:
        """The camera's bgr picture (HEIGHT, WIDTH, 3) uint8 of a canvas; lit is the lamp (0..1)."""
        small = cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32)
        ambient, sun = (x.astype(np.float32) for x in daylight(t))
        direct = small[..., 3:] / np.float32(255) * (1 - self.tree_shade(t))
        light = ambient + sun * direct + np.float32(lit) * self.glow
        image = small[..., :3] * np.sqrt(light) * self.vignette + np.float32(lit) * self.halo
        dx, dy = 0.4 * np.sin(t * 2.3) + 0.3 * np.sin(t * 9.1), 0.35 * np.sin(t * 1.9 + 1) + 0.3 * np.sin(t * 7.7)
        shift = np.array([[1, 0, dx], [0, 1, dy]])
        image = cv2.warpAffine(image, shift, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        x, y = self.rng.integers(0, 64, 2)
        return (image + self.noise[y : y + HEIGHT, x : x + WIDTH]).clip(0, 255).astype(np.uint8)


def box_of(pixels: Array) -> Box:
    """The bounding box (x0, y0, x1, y1) of pixels (N, 2)."""
    return float(pixels[:, 0].min()), float(pixels[:, 1].min()), float(pixels[:, 0].max()), float(pixels[:, 1].max())


def cores() -> dict[str, Box]:
    """The pixel box that each watched thing itself fills."""
    swung = GATE_Y - 2.0 * np.sin(GATE_SWING)
    gate = [[x, y, z] for x in (GATE_LEFT, GATE_RIGHT) for y in (GATE_Y, swung) for z in (0, 1.5)]
    light = np.array([wall(s, z) for s in (LAMP_S - 0.95, LAMP_S + 0.95) for z in (LAMP_Z - 0.75, LAMP_Z + 0.6)])
    bay = np.concatenate([plan(BAY), plan(BAY, 1.3)])
    spots = {"gate": np.array(gate), "bay": bay, "light": light}
    return {name: box_of(project(points)[0]) for name, points in spots.items()}


def draw_walk(canvas: Array, walk: Walk, t: float) -> Box:
    """Draws a distractor with its shadow; returns its pixel box."""
    if walk.kind == "street":
        pose = walk_pose(walk, t)
        return box_of(draw_car(canvas, SHAPES["sedan"], walk.main, pose, pose[0]))
    parts = limbs(walk, t)
    shadow_parts(canvas, parts, 2.0 if walk.kind != "bird" else 5.0, 0.8)
    draw_parts(canvas, parts)
    return box_of(project(np.concatenate([p.points for p in parts]))[0])


def draw_frame(scene: Scene, k: int) -> tuple[Array, list[Box], bool]:
    """Frame k as bgr, the boxes of what moves inside the yard, and whether a car is parked."""
    t, parked, boxes = k / FPS, False, []
    canvas = scene.far.copy()
    walks = [w for w in WALKS if w.start <= t <= w.end]
    visits = [(v, p) for v in VISITS if (p := visit_pose(v, t)) is not None]
    opening, lit = gate_opening(t), light_level(t)
    for walk in (w for w in walks if w.a[1] > 16.5 and w.kind != "bird"):
        draw_walk(canvas, walk, t)
    for visit, (pose, rolled, _) in visits:
        if pose[1] > 17.6:
            draw_car(canvas, SHAPES[visit.shape], visit.paint, pose, rolled)
    gate = gate_parts(opening)
    shadow_parts(canvas, gate, 1.2, 0.85)
    cv2.copyTo(scene.near, scene.mask, canvas)
    draw_parts(canvas, lamp(lit > 0.5))
    draw_parts(canvas, gate)
    inside: list[tuple[float, Any]] = [(p[0][1], (v, p)) for v, p in visits if p[0][1] <= 17.6]
    inside += [(walk_pose(w, t)[1], w) for w in walks if w.a[1] <= 16.5 or w.kind == "bird"]
    for _, item in sorted(inside, key=lambda pair: -pair[0]):
        if isinstance(item, Walk):
            boxes.append(draw_walk(canvas, item, t))
        else:
            visit, (pose, rolled, still) = item
            outline = draw_car(canvas, SHAPES[visit.shape], visit.paint, pose, rolled)
            parked |= still
            boxes += [] if still else [box_of(outline)]
    draw_parts(canvas, leaves(t))
    return scene.expose(canvas, t, lit), boxes, parked


def gate_opening(t: float) -> float:
    """How far the gate is open at time t, 0..1."""
    state, f = settled(GATE_PLAN, t, 1.5)
    f = f * f * (3 - 2 * f)
    return f if state == "open" else 1 - f


def light_level(t: float) -> float:
    """The lamp's brightness at time t, 0..1."""
    state, f = settled(LIGHT_PLAN, t, 0.3)
    return f if state == "on" else 1 - f


def overlap(a: Box, b: Box) -> bool:
    """Whether two pixel boxes touch."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def labels(t: float, boxes: list[Box], parked: bool) -> dict[str, str | None]:
    """Each thing's state at time t; None while it changes or something passes before it."""
    gate, gate_done = settled(GATE_PLAN, t, 1.5)
    light, light_done = settled(LIGHT_PLAN, t, 0.3)
    states = {
        "gate": gate if gate_done >= 1 else None,
        "bay": "taken" if parked else "free",
        "light": light if light_done >= 1 else None,
    }
    return {n: None if any(overlap(b, core) for b in boxes) else states[n] for n, core in cores().items()}


def intervals(states: list[str | None]) -> list[list[Any]]:
    """Runs [first, last, state] of equal states, inclusive, gap-free; under 0.5 s counts as None."""
    runs = joined([[k, k, state] for k, state in enumerate(states)])
    return joined([[a, b, state if b - a + 1 >= FPS // 2 else None] for a, b, state in runs])


def joined(runs: list[list[Any]]) -> list[list[Any]]:
    """Runs [first, last, state] with neighbours of equal state merged."""
    merged: list[list[Any]] = []
    for first, last, state in runs:
        if merged and merged[-1][2] == state:
            merged[-1][1] = last
        else:
            merged.append([first, last, state])
    return merged


def teach_frames(runs: list[list[Any]], state: str) -> list[int]:
    """Frames at 1/4, 1/2 and 3/4 of the state's first run of 2 s or more in the first third."""
    cut = [(a, min(b, FRAMES // 3)) for a, b, s in runs if s == state]
    first, last = next((a, b) for a, b in cut if b - a + 1 >= 2 * FPS)
    return [first + (last - first) * q // 4 for q in (1, 2, 3)]


def region(core: Box) -> list[int]:
    """A core box grown by 15 % in width and height, as whole pixels inside the picture."""
    dx, dy = 0.075 * (core[2] - core[0]), 0.075 * (core[3] - core[1])
    return [
        max(0, round(core[0] - dx)),
        max(0, round(core[1] - dy)),
        min(WIDTH, round(core[2] + dx)),
        min(HEIGHT, round(core[3] + dy)),
    ]


WORDS = {
    "gate": ("is the gate open?", {"open": "the gate is open", "closed": "the gate is closed"}),
    "bay": ("is the parking bay free?", {"free": "the parking bay is free", "taken": "a car is in the parking bay"}),
    "light": ("is the porch light on?", {"on": "the porch light is on", "off": "the porch light is off"}),
}


def truth(name: str, digest: str, states: dict[str, list[str | None]]) -> dict[str, Any]:
    """The truth record of a clip from each thing's per-frame states."""
    runs = {n: intervals(s) for n, s in states.items()}
    things = [
        {"name": n, "question": WORDS[n][0], "region": region(core), "states": WORDS[n][1], "intervals": runs[n]}
        for n, core in cores().items()
    ]
    teach = {n: {s: teach_frames(runs[n], s) for s in WORDS[n][1]} for n in runs}
    return {
        "clip": name,
        "sha256": digest,
        "width": WIDTH,
        "height": HEIGHT,
        "fps": FPS,
        "frames": FRAMES,
        "made_by": "python -m edge_ravlm.export.data.demo_clip",
        "licence": "CC0-1.0",
        "things": things,
        "teach": teach,
    }


def writer(path: Path, fps: float, raw: bool) -> cv2.VideoWriter:
    """A VP9 writer; raw takes packets instead of pictures."""
    flags = [cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1, cv2.VIDEOWRITER_PROP_KEY_INTERVAL, FRAMES] if raw else []
    made = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"vp09"), fps, (WIDTH, HEIGHT), flags)
    if not made.isOpened():
        raise OSError(f"this OpenCV cannot write VP9: {path}")
    return made


def retime(source: Path, target: Path) -> None:
    """Copies the packets of a clip, and which are key pictures, into a file that plays at FPS."""
    packets, out = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG), writer(target, FPS, True)
    packets.set(cv2.CAP_PROP_FORMAT, -1)
    while True:
        found, data = packets.read()
        if not found:
            break
        out.set(cv2.VIDEOWRITER_PROP_KEY_FLAG, packets.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME))
        out.write(data)
    out.release()


def make(folder: Path) -> dict[str, Any]:
    """Writes yard.mp4 and yard.json to the folder; returns the truth record.

    OpenCV has no bit rate setting, but derives one from the frame rate, capped; a rate of
    CODING_FPS leaves about 2 KB a picture.  The packets are then copied at the true rate.
    """
    scene, clip = Scene(np.random.default_rng(SEED)), folder / "yard.mp4"
    states: dict[str, list[str | None]] = {name: [] for name in WORDS}
    with tempfile.TemporaryDirectory() as scratch_folder:
        draft = Path(scratch_folder) / "draft.mp4"
        out = writer(draft, CODING_FPS, False)
        for k in range(FRAMES):
            picture, boxes, parked = draw_frame(scene, k)
            out.write(picture)
            for name, state in labels(k / FPS, boxes, parked).items():
                states[name].append(state)
        out.release()
        retime(draft, clip)
    record = truth(clip.name, hashlib.sha256(clip.read_bytes()).hexdigest(), states)
    (folder / "yard.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def main() -> None:
    """Makes the clip in the folder given, else edge_ravlm/clips."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "edge_ravlm/clips")
    folder.mkdir(parents=True, exist_ok=True)
    record = make(folder)
    sys.stdout.write(f"{folder / record['clip']} {record['frames']} frames {record['sha256']}\n")


if __name__ == "__main__":
    main()
