"""An RTSP camera, made of GStreamer's own server: a ball that moves, at rtsp://127.0.0.1:PORT/live.

    /usr/bin/python3 rtsp_server.py PORT WIDTH HEIGHT jpeg|h264

The system's Python runs it, because what it imports comes from apt alone. It says "listening" once it does, or why it
cannot, and is told by lines: "freeze" shows a picture that stands still, "move" the ball again. It ends with its stdin.
"""

from __future__ import annotations

import sys
from typing import Any

FPS = 15
ENCODERS = {
    "jpeg": "jpegenc ! rtpjpegpay",
    # A key frame a second, so that nobody waits long for the first one. At a constant quantizer the same picture is
    # compressed alike each time; an encoder that controls its rate goes on changing it a little.
    "h264": f"x264enc tune=zerolatency speed-preset=ultrafast threads=1 pass=quant quantizer=24 key-int-max={FPS} "
    "! rtph264pay config-interval=-1",
}


def main() -> int:
    """Serve until the end of stdin, or until it is killed."""
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    port, width, height, codec = sys.argv[1:]
    Gst.init(None)
    launch = (
        f"videotestsrc name=picture is-live=true ! video/x-raw,format=I420,width={width},height={height},"
        f"framerate={FPS}/1 ! {ENCODERS[codec]} name=pay0 pt=96"
    )
    elements = [part.split()[0] for part in launch.split("!")]
    missing = [name for name in elements if "/" not in name and Gst.ElementFactory.find(name) is None]
    if missing:
        return say(f"no {', '.join(missing)}")

    pictures: list[Any] = []
    pattern = "ball"

    def configured(_factory: object, media: Any) -> None:
        pictures.append(media.get_element().get_by_name("picture"))
        pictures[-1].set_property("pattern", pattern)

    def told(*_: object) -> bool:
        nonlocal pattern
        line = sys.stdin.readline()
        if not line:
            loop.quit()
            return False
        pattern = "circular" if line.strip() == "freeze" else "ball"
        for picture in pictures:
            picture.set_property("pattern", pattern)
        return True

    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_shared(True)
    factory.set_launch(f"( {launch} )")
    factory.connect("media-configure", configured)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        return say(f"port {port} is taken")
    loop = GLib.MainLoop()
    GLib.io_add_watch(sys.stdin.fileno(), GLib.PRIORITY_DEFAULT, GLib.IO_IN | GLib.IO_HUP, told)
    say("listening")
    loop.run()
    return 0


def say(line: str) -> int:
    """For whoever started it; 1, as the exit status of a refusal."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    return 1


if __name__ == "__main__":
    sys.exit(main())
