"""What the machine at hand does at best, and what a bundle takes on it: one thread, best or median of several runs."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import UsageError
from edge_ravlm.export.roofline import FRAME, SEARCH, Rates
from edge_ravlm.frames import Frame
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends import open_session
from edge_ravlm.runtime.encoders import ImageEncoder, TextEncoder
from edge_ravlm.runtime.memory.index import SCAN_ROWS
from edge_ravlm.runtime.memory.ranking import cosines
from edge_ravlm.targets import Target

_SIDE = 256
"""Of the square matrices whose product is timed: as fast as any size, and too short to be interrupted often."""

_ROUNDS = 50
_MIN_BUFFER, _MAX_BUFFER = 1_000_000, 256_000_000

_QUESTION = "is the door of the garage at the end of the yard open or is it closed"
"""At least ``QUESTION_TOKENS`` long in any vocabulary."""


class Product:
    """A matrix product in ONNX Runtime: float32, or uint8 by int8 into int32, which is what `cpu-u8` models do.

    Args:
        kind: of the right matrix.
        shape: rows of the left matrix, columns of the left one and rows of the right one, columns of the right one.
        threads: CPU threads.

    Attributes:
        left, right: the matrices. Bytes on the right take seven bits, as in a bundle's weights: pairs of full ones
            saturate on processors without VNNI.
        operations: of the product; a multiply-add is two.
    """

    def __init__(self, kind: type[np.float32 | np.int8], shape: tuple[int, int, int], threads: int) -> None:
        rows, inner, columns = shape
        random = np.random.default_rng(0)
        self.operations = 2 * rows * inner * columns
        self.left: NDArray[Any] = random.integers(0, 256, (rows, inner), np.uint8)
        self.right: NDArray[Any] = random.integers(-64, 64, (inner, columns), np.int8)
        if kind is np.float32:
            self.left, self.right = self.left.astype(kind), self.right.astype(kind)
        operator, made = ("MatMul", TensorProto.FLOAT) if kind is np.float32 else ("MatMulInteger", TensorProto.INT32)
        graph = helper.make_graph(
            [helper.make_node(operator, ["left", "right"], ["product"])],
            "product",
            [helper.make_tensor_value_info("left", helper.np_dtype_to_tensor_dtype(self.left.dtype), (rows, inner))],
            [helper.make_tensor_value_info("product", made, (rows, columns))],
            [numpy_helper.from_array(self.right, "right")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)  # any runtime's
        self._session = open_session(model.SerializeToString(), Model(file="product"), threads)

    def run(self) -> NDArray[Any]:
        """The product, float32 or int32 [rows, columns]."""
        return self._session.run({"left": self.left}, ("product",))[0]


def check_machine(target: Target) -> None:
    """Raise UsageError unless this is a machine of the target's kind, so that measuring it says something."""
    here = f"{platform.system().lower()}-{platform.machine()}"
    if here != target.platform:
        raise UsageError(
            f"target '{target.name}'",
            expected=f"a {target.platform} machine to measure",
            got=here,
            do="run the estimate on the device itself",
        )


def memory_mb() -> float:
    """Physical memory in 1e6 bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure_rates(touched_bytes: int) -> Rates:
    """Best rates of one thread: matrix products in ONNX Runtime, copying and scoring in numpy.

    Args:
        touched_bytes: what one answer reads. A buffer of that size is timed, so that caches help it as much.
    """
    fp32 = 2 * _SIDE**3 / _best_seconds(Product(np.float32, (_SIDE,) * 3, threads=1).run)
    int8 = 2 * _SIDE**3 / _best_seconds(Product(np.int8, (_SIDE,) * 3, threads=1).run)
    # Nothing here runs in FP16; where a processor has it, it is at best twice as fast.
    return Rates(int8, 2 * fp32, fp32, _bandwidth(touched_bytes))


def measure_stages(bundle: Bundle, flavor: str, entries: int) -> dict[str, float]:
    """Median ms by name of stage in ``roofline``; a search through a graph is left out, as building one is slow."""
    numbers = np.random.default_rng(0)
    image, text = ImageEncoder(bundle, flavor, threads=1), TextEncoder(bundle, flavor)
    frame = Frame.of(numbers.integers(0, 256, (*FRAME, 3), np.uint8))
    pixels = image.preprocess(frame)
    spent = {
        "preprocess": _median_ms(lambda: image.preprocess(frame, out=pixels)),
        "image encoder": _median_ms(lambda: image.embed(pixels)),
        "text encoder": _median_ms(lambda: text.embed([_QUESTION])),
    }
    if entries <= SCAN_ROWS:
        rows = numbers.standard_normal((entries, text.space.dim)).astype(np.float16)
        query = rows[:1].astype(np.float32).sum(0)
        spent[SEARCH] = _median_ms(lambda: cosines(rows, query))
    image.close()
    text.close()
    return spent


def _bandwidth(touched_bytes: int) -> float:
    """Bytes per second, the better of copying and of scoring rows."""
    rows = np.ones((min(max(touched_bytes, _MIN_BUFFER), _MAX_BUFFER) // 1024, 256), np.float32)
    scores, half = np.empty(len(rows), np.float32), len(rows) // 2
    scoring = rows.nbytes / _best_seconds(lambda: np.vecdot(rows, rows[0], out=scores))
    copying = 2 * rows[:half].nbytes / _best_seconds(lambda: np.copyto(rows[:half], rows[half : 2 * half]))
    return max(scoring, copying)


def _best_seconds(run: Callable[[], object]) -> float:
    return min(_seconds(run) for _ in range(_ROUNDS))


def _median_ms(run: Callable[[], object]) -> float:
    run()
    return statistics.median(_seconds(run) for _ in range(_ROUNDS // 2)) * 1e3


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
