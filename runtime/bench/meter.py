"""What answering takes beside time: processor seconds, memory, and energy where the machine tells it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

POWERCAP = Path("/sys/class/powercap")

_MICRO = 1e-6
_UNREAD = "no energy counter that this process may read"


class Spent(msgspec.Struct, frozen=True):
    """What a piece of work took.

    Attributes:
        seconds: on the clock.
        cpu_seconds: of all threads of this process.
        rss_mb: memory held at the end, in millions of bytes; of it ``anonymous_mb`` that no file backs.
        energy_j: of the whole machine, or of its part that ``energy_source`` names; None where nothing tells.
    """

    seconds: float
    cpu_seconds: float
    rss_mb: float
    anonymous_mb: float
    energy_j: float | None
    energy_source: str


class Meter:
    """``with Meter() as meter: …`` and then ``meter.spent``."""

    spent: Spent

    def __enter__(self) -> Meter:
        self._gauge = energy_gauge()
        self._began, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        rss, anonymous = resident_mb()
        joules, source = (None, _UNREAD) if self._gauge is None else (self._gauge.joules(), self._gauge.source)
        self.spent = Spent(seconds, cpu, rss, anonymous, joules, source)


def resident_mb(status: Path = Path("/proc/self/status")) -> tuple[float, float]:
    """Memory that this process holds now, and of it what no file backs, in millions of bytes."""
    lines = (line.partition(":") for line in status.read_text(encoding="utf-8").splitlines())
    kilobytes = {name: value.split()[0] for name, _, value in lines if name in ("VmRSS", "RssAnon")}
    return int(kilobytes["VmRSS"]) * 1.024e-3, int(kilobytes["RssAnon"]) * 1.024e-3


@dataclass
class Gauge:
    """An energy counter, from now on.

    Attributes:
        source: what is counted, and by what.
        read: joules since some moment.
        wraps_at: joules after which the counter begins again.
    """

    source: str
    read: Callable[[], float]
    wraps_at: float = float("inf")

    def __post_init__(self) -> None:
        self._start = self.read()

    def joules(self) -> float:
        """Since this was made; right as long as the counter wrapped once at most."""
        passed = self.read() - self._start
        return passed if passed >= 0 else passed + self.wraps_at


def energy_gauge(powercap: Path = POWERCAP) -> Gauge | None:
    """The best that this machine has: a GPU's counter (NVML), else the processor's (RAPL); None without any."""
    return _nvml() or _rapl(powercap)


def _rapl(powercap: Path) -> Gauge | None:
    """Linux's powercap interface: ``energy_uj`` of each package; only root may read it on most systems."""
    zones = sorted(powercap.glob("*-rapl:?")) if powercap.is_dir() else []
    try:
        most = sum(_number(zone / "max_energy_range_uj") for zone in zones)
        gauge = Gauge("processor packages, RAPL", lambda: _total(zones), most * _MICRO)
    except (OSError, ValueError):
        return None
    return gauge if zones else None


def _total(zones: Iterable[Path]) -> float:
    return sum(_number(zone / "energy_uj") for zone in zones) * _MICRO


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _nvml() -> Gauge | None:
    """NVIDIA's counter of the first GPU, through nvidia-ml-py where that is installed; unverified on hardware."""
    try:
        import pynvml  # noqa: PLC0415  # absent on most machines
    except ImportError:
        return None
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        return Gauge("GPU 0, NVML", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3)
    except nvml.NVMLError:
        return None
