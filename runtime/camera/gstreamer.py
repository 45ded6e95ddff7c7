"""GStreamer pipelines: by OpenCV where it was built with GStreamer, else by ``gst-launch-1.0`` and a pipe."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile

import cv2

from edge_ravlm.runtime.camera.sources import OpenFailed, Source, VideoSource

_RTSP = re.compile(r"\brtsp(src\b|s?://)", re.IGNORECASE)


class GStreamerSource(VideoSource):
    """A GStreamer pipeline run by an OpenCV that was built with GStreamer."""

    def _connect(self) -> cv2.VideoCapture:
        sink = "" if "appsink" in self._address else " ! videoconvert ! appsink max-buffers=1 sync=false"
        return cv2.VideoCapture(self._address + sink, cv2.CAP_GSTREAMER)

    def _why(self) -> str:
        return "a pipeline that does not start"


class PipelineSource(VideoSource):
    """A GStreamer pipeline run by ``gst-launch-1.0``; raw frames (YUY2 in Matroska) come through a pipe."""

    _TAIL = "! videoconvert ! video/x-raw,format=YUY2 ! matroskamux streamable=true ! fdsink sync=false fd="

    def __init__(self, address: str, timeout_s: float) -> None:
        super().__init__(address, timeout_s)
        try:
            self._arguments = shlex.split(address)
        except ValueError as error:
            raise OpenFailed(str(error).lower()) from None
        self._resources = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def _connect(self) -> cv2.VideoCapture:
        self._errors = self._resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
        reader, writer = os.pipe()
        self._resources.callback(os.close, reader)
        os.set_blocking(reader, False)  # FFmpeg checks its timeouts only where a read does not block
        command = ["gst-launch-1.0", "-q", *self._arguments, *f"{self._TAIL}{writer}".split()]
        try:
            self._process = subprocess.Popen(
                command,
                pass_fds=[writer],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        finally:
            os.close(writer)
        return self._by_ffmpeg(f"pipe:{reader}")

    def _why(self) -> str:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").splitlines()
        named = [line.partition(": ")[2] for line in said if line.startswith(("ERROR: ", "WARNING: "))]
        return named[0] if named else f"no frame within {self._timeout_s:g} s"

    def at_end(self) -> bool:
        """gst-launch exits with 0 at the end of the stream, and with an error when it is lost.

        An RTSP server that dies is an end of the stream to GStreamer, too.
        """
        if _RTSP.search(self._address):
            return False
        try:
            return self._process is not None and self._process.wait(timeout=1.0) == 0
        except subprocess.TimeoutExpired:
            return False

    def close(self) -> None:
        """Close the pipe, then end the process as Ctrl-C would, so that it gives its camera back."""
        super().close()
        self._resources.close()
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def gstreamer(address: str, timeout_s: float) -> Source:
    """The GStreamer source that this machine can run; raises OpenFailed if it can run none."""
    pipeline = address.partition(":")[2].strip()
    if re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        return GStreamerSource(pipeline, timeout_s)
    if shutil.which("gst-launch-1.0"):
        return PipelineSource(pipeline, timeout_s)
    raise OpenFailed(
        "an OpenCV without GStreamer (as pip's wheels are) and no gst-launch-1.0",
        do="install gstreamer1.0-tools and gstreamer1.0-plugins-good, or JetPack's OpenCV, which has it",
    )
