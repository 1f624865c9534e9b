"""The pixels of Scenes: anti-aliased shapes over a soft texture, computed in numpy for one bounding box at a time.

Only + - * / sqrt, minimum and maximum are applied to the arrays, so equal input gives equal pixels on any machine.
Lengths are in units of the frame's shorter side until they become pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np

from hcmi.config import ScenesConfig
from hcmi.scenes.sampling import SceneClip
from hcmi.scenes.vocabulary import Event, between, pick

PALETTE = {"red": (226, 44, 44), "orange": (247, 140, 20), "yellow": (250, 226, 60), "green": (52, 190, 76),
           "blue": (44, 104, 240), "purple": (140, 56, 196), "pink": (250, 146, 196), "white": (246, 246, 246),
           "cyan": (40, 224, 232), "lime": (170, 240, 40), "brown": (156, 88, 36), "magenta": (228, 30, 190)}
RADIUS = (0.13, 0.19)
# How far the middle of a path may be from the middle of its room, across and down; (0.9, 0.9) for all other actions.
FREEDOM = {"slides left": (0, 0.9), "slides right": (0, 0.9), "slides up": (0.9, 0), "slides down": (0.9, 0),
           "jumps": (0.9, 0), "splits": (0, 0.9), "loops": (0, 0),
           "zigzags": (0, 0), "bounces": (0.9, 0), "swings": (0, 0), "spirals": (0, 0)}
# The greatest scale of a shape during its action; 1 for all other actions.
GREATEST = {"grows": 1.4, "shrinks": 1.4, "splits": 0.8, "pulses": 1.25}
PAN_PIXELS = 8                  # how far the background may move during a clip

Field = np.ndarray              # float32 [H, X]
Room = tuple[float, float, float, float]        # middle across and down, width, height


# --------------------------------------------- shapes: distance to the outline, negative inside, for a radius of one

def _circle(x: Field, y: Field) -> Field:
    return np.sqrt(x * x + y * y) - 1


def _square(x: Field, y: Field) -> Field:
    return np.maximum(np.abs(x), np.abs(y)) - 0.86


def _triangle(x: Field, y: Field) -> Field:
    return np.maximum(np.abs(x) * 0.866 - y * 0.5, y) - np.float32(0.58)


def _ring(x: Field, y: Field) -> Field:
    return np.abs(np.sqrt(x * x + y * y) - 0.76) - 0.26


def _star(x: Field, y: Field) -> Field:
    """Five points: fold the plane into one tenth, then the distance to one edge (after Inigo Quilez, sdStar5)."""
    x, y = np.abs(x), -y
    for kx, ky in ((0.809017, -0.587785), (-0.809017, -0.587785)):
        over = 2 * np.maximum(kx * x + ky * y, 0)
        x, y = x - over * kx, y - over * ky
    x, y = np.abs(x), y - 1.12
    edge_x, edge_y = 0.45 * 0.587785 * 1.12, 0.45 * 0.809017 * 1.12 - 1.12
    along = np.clip((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
    dx, dy = x - edge_x * along, y - edge_y * along
    return np.sqrt(dx * dx + dy * dy) * np.sign(y * edge_x - x * edge_y)


def _cross(x: Field, y: Field) -> Field:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 1, np.minimum(x, y) - 0.34)


def _heart(x: Field, y: Field) -> Field:
    """Two discs above a wedge (after Inigo Quilez, sdHeart)."""
    x, y = np.abs(x) * 0.58, (0.92 - y) * 0.58
    disc = np.sqrt((x - 0.25) ** 2 + (y - 0.75) ** 2) - 0.3536
    half = 0.5 * np.maximum(x + y, 0)
    wedge = np.minimum(np.sqrt(x * x + (y - 1) ** 2), np.sqrt((x - half) ** 2 + (y - half) ** 2)) * np.sign(x - y)
    return np.where(x + y > 1, disc, wedge) / 0.58


def _moon(x: Field, y: Field) -> Field:
    full = np.sqrt(x * x + y * y) - 1
    bite = np.sqrt((x - 0.52) ** 2 + (y + 0.12) ** 2) - 0.8
    return np.maximum(full, -bite)


def _polygon(x: Field, y: Field, *corners: tuple[float, float]) -> Field:
    """The inside of a convex polygon; its corners go clockwise on the screen."""
    edges = []
    for (px, py), (qx, qy) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = math.sqrt((qx - px) ** 2 + (qy - py) ** 2)
        edges.append((x - px) * ((qy - py) / length) - (y - py) * ((qx - px) / length))
    return np.maximum.reduce(edges)


def _diamond(x: Field, y: Field) -> Field:
    return _polygon(x, y, (0, -1), (0.6, 0), (0, 1), (-0.6, 0))


def _arrow(x: Field, y: Field) -> Field:
    head = _polygon(x, y, (0, -1), (0.9, 0.05), (-0.9, 0.05))
    return np.minimum(head, _polygon(x, y, (-0.3, 0), (0.3, 0), (0.3, 1), (-0.3, 1)))


def _bolt(x: Field, y: Field) -> Field:
    """Two wedges, each the other one turned by half a turn."""
    wedge = ((0.3, -1.05), (0.25, 0.2), (-0.62, 0.2))
    return np.minimum(_polygon(x, y, *wedge), _polygon(-x, -y, *wedge))


def _hourglass(x: Field, y: Field) -> Field:
    return _polygon(x, -np.abs(y), (-0.74, -0.86), (0.74, -0.86), (0.08, 0.05), (-0.08, 0.05))


OUTLINES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "ring": _ring,
    "star": _star, "cross": _cross, "heart": _heart, "moon": _moon,
    "diamond": _diamond, "arrow": _arrow, "bolt": _bolt, "hourglass": _hourglass}


# ------------------------------------------------------------------------------------------------- actions: what moves

@dataclass(frozen=True)
class Pose:
    x: float                    # of the centre
    y: float
    scale: float = 1.0
    alpha: float = 1.0
    narrow: float = 1.0         # width as a share of the usual width


def _bounce(u: float) -> float:
    """Height of a ball above the floor, as a share of the height that it falls from."""
    start, end, top = (-0.3, 0.3, 1.0) if u < 0.3 else (0.3, 0.7, 0.6) if u < 0.7 else (0.7, 1.0, 0.3)
    along = (u - start) / (end - start)
    return top * 4 * along * (1 - along)


@dataclass(frozen=True)
class Actor:
    """One shape of an event, with everything that differs between two clips that show it."""

    event: Event
    x: float                    # the middle of its path
    y: float
    reach_x: float              # half the extent of the path
    reach_y: float
    radius: float
    tilt: float                 # radians
    ease: float                 # 0: even speed, 1: slow start and end
    turn: float                 # direction of a loop, or of the first move to a side, 1 or -1
    colour: tuple[float, float, float]

    def poses(self, u: float) -> tuple[Pose, ...]:
        """Where the shape is at `u` in [0, 1] of its event."""
        x, y, action = self.x, self.y, self.event.action
        if action == "blinks":          # twice; each gap is long enough that one of three sampled frames falls into it
            return () if 0.26 <= u < 0.44 or 0.56 <= u < 0.74 else (Pose(x, y),)
        u = (1 - self.ease) * u + self.ease * u * u * (3 - 2 * u)
        if action.startswith("slides"):
            sx, sy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[action.split()[1]]
            return (Pose(x + sx * self.reach_x * (2 * u - 1), y + sy * self.reach_y * (2 * u - 1)),)
        if action in ("grows", "shrinks"):
            return (Pose(x, y, scale=0.4 + 1.0 * (u if action == "grows" else 1 - u)),)
        if action in ("fades in", "fades out"):
            return (Pose(x, y, alpha=u if action == "fades in" else 1 - u),)
        if action == "jumps":
            return (Pose(x, y + self.reach_y * (1 - 2 * math.sin(math.pi * u))),)
        if action == "loops":
            angle = self.turn * 2 * math.pi * u
            reach_x, reach_y = 0.8 * min(self.reach_x, self.reach_y), 0.8 * min(self.reach_y, 2 * self.reach_x)
            return (Pose(x + reach_x * math.sin(angle), y - reach_y * math.cos(angle)),)
        if action == "spirals":         # one and a half rounds, ever closer to the middle
            angle = self.turn * 3 * math.pi * u
            reach_x, reach_y = min(self.reach_x, 2 * self.reach_y), min(self.reach_y, 2 * self.reach_x)
            return (Pose(x + (1 - u) * reach_x * math.sin(angle), y - (1 - u) * reach_y * math.cos(angle)),)
        if action == "zigzags":         # from one side to the other, with three strokes up or down
            stroke = 1 - abs(3 * u % 2 - 1)         # 0, 1, 0, 1
            return (Pose(x + self.turn * self.reach_x * (2 * u - 1), y + 0.8 * self.reach_y * (1 - 2 * stroke)),)
        if action == "bounces":         # falls, and comes up less high twice
            return (Pose(x, y + self.reach_y * (1 - 2 * _bounce(u))),)
        if action == "swings":          # as a pendulum, to the other side and back
            aside = math.cos(2 * math.pi * u)
            return (Pose(x + self.turn * self.reach_x * aside, y + 0.5 * self.reach_y * (1 - 2 * aside * aside)),)
        if action == "pulses":
            return (Pose(x, y, scale=0.85 + 0.4 * math.cos(4 * math.pi * u)),)
        if action == "flips":           # turns like a coin, twice
            return (Pose(x, y, narrow=max(0.12, abs(math.cos(2 * math.pi * u)))),)
        apart = self.reach_x * u        # splits
        return Pose(x - apart, y, 0.8), Pose(x + apart, y, 0.8)


def _rooms(rng: Random, event: Event, x: float, y: float, width: float, height: float) -> list[Room]:
    """The room of each shape of an event. Two of a kind have one half each of the room that one shape would have."""
    if event.number == 1:
        return [(x, y, width, height)]
    if width < height or rng.random() < 0.5:
        return [(x, y - height / 4, width, height / 2), (x, y + height / 4, width, height / 2)]
    return [(x - width / 4, y, width / 2, height), (x + width / 4, y, width / 2, height)]


def _cast(rng: Random, clip: SceneClip, aspect_x: float, aspect_y: float) -> list[Actor]:
    """Place every shape so that its whole path stays inside its room: half of the frame if two events act at a time."""
    actors, most_tilt = [], 0.5 if clip.style == "shifted" else 0.18
    sides: dict[int, int] = {}
    for event in clip.events:
        partners = sum(other.order == event.order for other in clip.events)
        if partners == 2 and event.order not in sides:
            sides[event.order] = int(rng.random() * 2)
            side = sides[event.order]
        else:
            side = 1 - sides[event.order] if partners == 2 else 0
        width = aspect_x / partners
        size = 0.7 if event.number == 2 else 0.8 if partners == 2 else 1
        for room in _rooms(rng, event, (side + 0.5) * width, aspect_y / 2, width, aspect_y):
            actors.append(_actor(rng, event, room, size, most_tilt))
    return actors


def _actor(rng: Random, event: Event, room: Room, size: float, most_tilt: float) -> Actor:
    middle_x, middle_y, width, height = room
    radius = between(rng, *RADIUS) * size
    biggest = radius * 1.05 * GREATEST.get(event.action, 1)
    room_x, room_y = width / 2 - biggest, height / 2 - biggest
    reach_x, reach_y = (between(rng, 0.65, 0.95) * free for free in (room_x, room_y))
    free_x, free_y = FREEDOM.get(event.action, (0.9, 0.9))
    x = middle_x + between(rng, -1, 1) * room_x * free_x
    y = middle_y + between(rng, -1, 1) * room_y * free_y
    tint = between(rng, 0.92, 1.06)
    red, green, blue = (min(255.0, channel * tint + between(rng, -8, 8)) for channel in PALETTE[event.colour])
    return Actor(event, x, y, reach_x, reach_y, radius, tilt=between(rng, -most_tilt, most_tilt),
                 ease=between(rng, 0, 0.6), turn=pick(rng, (-1.0, 1.0)), colour=(red, green, blue))


# ---------------------------------------------------------------------------------------------------------- painting

def _soft_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> Field:
    """Value noise in [0, 1): a coarse grid of random values, smoothly interpolated."""
    grid = rng.random((cells + 2, cells + 2), dtype=np.float32)

    def places(size: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.arange(size, dtype=np.float32) * np.float32(cells / size)
        whole = at.astype(np.int64)
        part = at - whole
        return whole, part * part * (3 - 2 * part)

    (row, v), (col, u) = places(height), places(width)
    left = grid[row][:, col] * (1 - v[:, None]) + grid[row + 1][:, col] * v[:, None]
    right = grid[row][:, col + 1] * (1 - v[:, None]) + grid[row + 1][:, col + 1] * v[:, None]
    return left * (1 - u) + right * u


def _background(rng: np.random.Generator, height: int, width: int, shifted: bool) -> np.ndarray:
    """A muted texture of two colours, float32 [H, X, 3]; dark, or nearly white when `shifted`."""
    base = rng.random(2, dtype=np.float32) * 30 + (172 if shifted else 36)
    hues = (rng.random((2, 3), dtype=np.float32) - 0.5) * 40
    first, second = base[0] + hues[0], base[1] + 40 + hues[1]
    blend = 0.55 * _soft_noise(rng, height, width, 3) + 0.3 * _soft_noise(rng, height, width, 9)
    blend += 0.15 * _soft_noise(rng, height, width, 28)
    return (first + (second - first) * blend[:, :, None]).astype(np.float32)


def _paint(canvas: np.ndarray, actor: Actor, pose: Pose, unit: float) -> None:
    """Blend one shape into `canvas`, float32 [H, X, 3], with a soft dark rim and lit from above."""
    radius = actor.radius * pose.scale * unit
    cx, cy, reach = pose.x * unit, pose.y * unit, radius * 1.25 + 5
    top, bottom = max(0, int(cy - reach)), min(canvas.shape[0], int(cy + reach) + 2)
    left, right = max(0, int(cx - reach)), min(canvas.shape[1], int(cx + reach) + 2)
    if top >= bottom or left >= right:
        return
    dy = (np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - cy)) * np.float32(1 / radius)
    dx = (np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - cx)) * np.float32(1 / radius)
    cos, sin = np.float32(math.cos(actor.tilt)), np.float32(math.sin(actor.tilt))
    across = (cos * dx + sin * dy) / np.float32(pose.narrow)
    pixels = OUTLINES[actor.event.shape](across, cos * dy - sin * dx) * np.float32(radius)
    cover = np.clip(0.5 - pixels, 0, 1) * np.float32(pose.alpha)
    shade = 1 - np.clip(1 - pixels * np.float32(1 / 5), 0, 1) * (1 - cover) * np.float32(0.35 * pose.alpha)
    light = (1.02 - 0.12 * dy)[:, :, None] * np.asarray(actor.colour, dtype=np.float32)
    box = canvas[top:bottom, left:right]
    box *= (shade * (1 - cover))[:, :, None]
    box += light * cover[:, :, None]


def _blur(canvas: np.ndarray) -> np.ndarray:
    """Mean of 5 x 5 pixels. The edges wrap around, which shows only in the background."""
    for axis in (0, 1):
        canvas = np.stack([np.roll(canvas, step, axis) for step in (-2, -1, 0, 1, 2)]).mean(axis=0)
    return canvas


def render(clip: SceneClip, config: ScenesConfig) -> np.ndarray:
    """The frames of a clip, uint8 RGB [T, H, X, 3]; a pure function of `clip` and the frame size."""
    height, width, fps = config.height, config.width, config.fps
    unit, shifted = float(min(height, width)), clip.style == "shifted"
    rng = Random(clip.pixel_seed)
    actors = _cast(rng, clip, width / unit, height / unit)
    noise_rng = np.random.Generator(np.random.PCG64(int(rng.random() * 2**53)))
    wall = _background(noise_rng, height + PAN_PIXELS, width + PAN_PIXELS, shifted)
    strength = between(rng, 14, 24) if shifted else between(rng, 2, 6)
    grain = (noise_rng.random((height + 32, width + 32, 1), dtype=np.float32) - 0.5) * np.float32(2 * strength)
    pan = [int(rng.random() * (PAN_PIXELS + 1)) for _ in range(4)]
    frames = np.empty((clip.num_frames, height, width, 3), dtype=np.uint8)
    shifts = noise_rng.integers(0, 32, size=(clip.num_frames, 2))
    for number in range(clip.num_frames):
        share = number / max(1, clip.num_frames - 1)
        y, x = (round(pan[i] + (pan[i + 2] - pan[i]) * share) for i in (0, 1))
        canvas = wall[y:y + height, x:x + width].copy()
        now = (number + 0.5) / fps
        for actor in actors:
            event = actor.event
            if event.start_s <= now < event.end_s:
                for pose in actor.poses((now - event.start_s) / (event.end_s - event.start_s)):
                    _paint(canvas, actor, pose, unit)
        gy, gx = shifts[number]
        if shifted:
            canvas = _blur(canvas)
        canvas += grain[gy:gy + height, gx:gx + width]
        np.clip(canvas, 0, 255, out=canvas)
        frames[number] = canvas
    return frames
