"""A camera read live: a thread keeps the newest frame, whoever asks gets it once."""

from __future__ import annotations

import threading

from edge_ravlm.frames import Frame
from edge_ravlm.runtime.camera.reader import Camera


class LiveCapture:
    """Captures in a thread of its own into a slot of one frame, in which the newest wins.

    It owns the camera from now on: closing the capture closes the camera. Recordings keep their own pace
    unless the camera was opened with ``realtime=False``.

    Args:
        camera: an open camera that nobody else reads.

    Attributes:
        dropped: frames that a newer one replaced before anybody asked.
    """

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.dropped = 0
        self._changed = threading.Condition()
        self._slot: Frame | None = None
        self._error: Exception | None = None
        self._finished = False
        self._thread = threading.Thread(target=self._run, name=f"capture {camera.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> LiveCapture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        """True once no frame is left and none will come."""
        with self._changed:
            return self._finished and self._slot is None

    @property
    def reason(self) -> str:
        """Why it ended: "end of file", "closed", or the sentence of the error; empty while it runs."""
        with self._changed:
            return str(self._error) if self._error else self.camera.reason

    def newest(self, timeout_s: float) -> Frame | None:
        """The newest frame not yet given out, waiting for one if need be.

        Args:
            timeout_s: seconds to wait at most.

        Returns:
            None when the time is over (``camera.state`` says whether it is lost) or the capture has ended.

        Raises:
            CameraError: the camera gave up; any other error of the capture thread is raised here too.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._slot is not None or self._finished, timeout_s)
            frame, self._slot = self._slot, None
            if frame is None and self._error is not None:
                raise self._error
            return frame

    def close(self) -> None:
        """Stop the thread and close the camera; may be called again. Takes 1 s more than ``Camera.close``."""
        self.camera.close()
        self._thread.join(timeout=1.0)
        with self._changed:
            self._slot = None
            self._finished = True
            self._changed.notify_all()

    def _run(self) -> None:
        error: Exception | None = None
        try:
            while (frame := self.camera.read(paced=self.camera.realtime is not False)) is not None:
                self._put(frame)
        except Exception as caught:  # whatever it is, the consumer gets it
            error = caught
        with self._changed:
            self._error = error
            self._finished = True
            self._changed.notify_all()

    def _put(self, frame: Frame) -> None:
        with self._changed:
            if self._finished:  # closed meanwhile
                return
            self.dropped += self._slot is not None
            self._slot = frame
            self._changed.notify_all()
