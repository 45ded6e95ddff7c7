"""The devices that bundles are made for, as data: ``targets.toml`` holds the profiles, each figure with its source."""

from __future__ import annotations

from importlib.resources import files as package_files
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge_ravlm.errors import UsageError

Positive = Annotated[float, Meta(gt=0)]
Dotted = Annotated[str, Meta(pattern=r"^\d+\.\d+$")]
DottedOrNone = Annotated[str, Meta(pattern=r"^(\d+\.\d+)?$")]

FIGURES = ("int8_tops", "fp16_tflops", "fp32_tflops", "bandwidth_gb_s", "memory_mb")
"""Fields of a ``Target`` that the maker publishes, or that are measured where ``Target.measured`` is set."""


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One profile.

    Attributes:
        name: what ``--target`` takes.
        description: the family of devices, for people.
        device: the very device that the figures are for.
        platform: operating system and processor of the device.
        flavor: quantization flavour that suits it.
        engine: library that its engines are built with; "" where ONNX Runtime runs the models as they are.
        compute_capability: of the device, such as "8.9"; "" without a GPU.
        engine_compute_capabilities: those that a bundle for this target holds engines for.
        tensorrt, cuda: version lines that the device's system ships, such as "10.3"; "" where it brings none.
        python: oldest version that the device runs.
        measured: whether the figures are missing here and measured on the machine at hand instead.
        int8_tops, fp16_tflops, fp32_tflops: dense peaks in 1e12 operations per second, a multiply-add being two.
        bandwidth_gb_s: of the main memory, in 1e9 bytes per second.
        memory_mb: nominal size in 1e6 bytes.
        discrete: whether that is a GPU's own memory, so that frames, texts and the index stay with the host.
        estimated: the figures among these that were derived, not published.
        budget_ms: default latency budget, from the frame's capture to the answer.
        verified: whether the project's tests run on such a device.
    """

    name: str
    description: str
    device: str
    platform: Literal["linux-x86_64", "linux-aarch64"]
    flavor: Literal["cpu-u8", "trt-s8"]
    engine: Literal["", "tensorrt", "tensorrt_rtx"] = ""
    compute_capability: DottedOrNone = ""
    engine_compute_capabilities: tuple[Dotted, ...] = ()
    tensorrt: DottedOrNone = ""
    cuda: DottedOrNone = ""
    python: Dotted
    measured: bool = False
    int8_tops: Positive | None = None
    fp16_tflops: Positive | None = None
    fp32_tflops: Positive | None = None
    bandwidth_gb_s: Positive | None = None
    memory_mb: Positive | None = None
    discrete: bool = False
    estimated: tuple[Literal["int8_tops", "fp16_tflops", "fp32_tflops", "bandwidth_gb_s", "memory_mb"], ...] = ()
    budget_ms: Positive
    verified: Literal["tests in CI", "unverified on hardware"]

    def __post_init__(self) -> None:
        """Reject profiles that contradict themselves."""
        figures = [getattr(self, figure) is not None for figure in FIGURES]
        if any(figures) if self.measured else not all(figures):
            raise ValueError(f"{self.name}: either measured, or all of {', '.join(FIGURES)}")
        on_gpu = bool(self.engine)
        if (self.flavor == "trt-s8") != on_gpu or bool(self.compute_capability) != on_gpu:
            raise ValueError(f"{self.name}: engine, compute_capability and flavor trt-s8 come together")
        if on_gpu and self.compute_capability not in self.engine_compute_capabilities:
            raise ValueError(f"{self.name}: no engine for its own compute capability {self.compute_capability}")
        if bool(self.tensorrt) != (self.engine == "tensorrt"):
            raise ValueError(f"{self.name}: tensorrt says which line its system ships, if its engine is tensorrt")


def targets() -> dict[str, Target]:
    """All profiles by name, in the order of the file."""
    data = (package_files("edge_ravlm") / "targets.toml").read_bytes()
    profiles = msgspec.toml.decode(data, type=dict[str, dict[str, Any]])
    return {name: msgspec.convert({"name": name, **profile}, Target) for name, profile in profiles.items()}


def target(name: str) -> Target:
    """One profile; raises UsageError with the names there are."""
    known = targets()
    if name not in known:
        raise UsageError(
            f"target '{name}'",
            expected=f"one of {', '.join(known)}",
            got="an unknown name",
            do="choose the one that is nearest to your device",
        )
    return known[name]
