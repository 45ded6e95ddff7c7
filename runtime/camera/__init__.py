"""Cameras: every kind of source behind one reader, in order or newest first.

::

    with open_camera("walk.mp4") as camera:            # every frame, in order
        for frame in camera.frames():
            ...
    with LiveCapture(open_camera("rtsp://…")) as live:  # always the newest frame, never the same one twice
        frame = live.newest(timeout_s=1.0)
"""

from edge_ravlm.runtime.camera.kinds import KINDS, SourceKind, describe, masked
from edge_ravlm.runtime.camera.live import LiveCapture
from edge_ravlm.runtime.camera.reader import Camera, CameraState, Reconnect, open_camera

__all__ = [
    "KINDS",
    "Camera",
    "CameraState",
    "LiveCapture",
    "Reconnect",
    "SourceKind",
    "describe",
    "masked",
    "open_camera",
]
