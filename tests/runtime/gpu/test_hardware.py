"""The TensorRT backend on a real GPU: numbers, graphs, threads and closing. The project itself has not run these."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from small_model import OUTPUTS, SMALL, SPEC

from edge_ravlm.engines import TITLES, compute_capability, engine_cache, store
from edge_ravlm.runtime.backends.tensorrt import TensorRtSession
from edge_ravlm.targets import Target, targets

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(compute_capability() is None, reason="needs an NVIDIA GPU and its driver"),
]

Reference = Callable[[NDArray[np.uint8]], list[NDArray[Any]]]


@pytest.fixture(params=TITLES)
def session(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TensorRtSession]:
    """The small model in each library that is installed, its engine built here."""
    library, capability = request.param, compute_capability()
    for needed in (library, "pycuda.driver", "cuda.bindings.driver"):
        try:
            import_module(needed)
        except (ImportError, OSError) as error:  # noqa: PERF203
            pytest.skip(f"{needed}: {error}")
    from edge_ravlm.export.engines import Batch, build

    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path_factory.mktemp("cache")))
    for other in TITLES:
        if other != library:
            monkeypatch.setitem(sys.modules, other, None)
    profile = next(one for one in targets().values() if one.engine == library)
    here: Target = msgspec.structs.replace(
        profile, compute_capability=capability, engine_compute_capabilities=(capability,)
    )
    for engine, plan in build(SMALL, SPEC.file, here, batch=Batch(most=3, sides=(12, 16))):
        store(engine_cache(), engine, plan)
    opened = TensorRtSession.open(SMALL, SPEC, 1)
    yield opened
    opened.close()


def check(session: TensorRtSession, images: NDArray[np.uint8], reference: Reference) -> float:
    """The largest difference to ONNX Runtime, which has to be small."""
    found, wanted = session.run({"image": images}, OUTPUTS), reference(images)
    for one, other in zip(found, wanted, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), rtol=2e-2, atol=1.0)
    return max(
        float(np.abs(a.astype(np.float32) - b.astype(np.float32)).max()) for a, b in zip(found, wanted, strict=True)
    )


def test_numbers_and_times(
    session: TensorRtSession, pictures: Any, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["", f"{'pictures':>8} {'side':>4} {'first ms':>9} {'second ms':>9} {'then ms':>9} {'difference':>10}"]
    for count in (1, 2, 3):
        for side in (12, 14, 16):
            spent, furthest = [], 0.0
            for seed in range(12):  # the first warms up, the second captures, the others launch
                images = pictures(count, side, seed)
                start = time.perf_counter()
                session.run({"image": images}, OUTPUTS)
                spent.append((time.perf_counter() - start) * 1e3)
                furthest = max(furthest, check(session, images, reference) if seed > 8 else 0.0)
            first, second, *rest = spent
            rows.append(f"{count:8} {side:4} {first:9.3f} {second:9.3f} {np.median(rest):9.3f} {furthest:10.4f}")
    with capsys.disabled():
        sys.stdout.write("\n".join(rows) + "\n")


def test_several_threads(session: TensorRtSession, pictures: Any, reference: Reference) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [pictures(1 + seed % 3, (12, 16)[seed % 2], seed) for seed in range(40)]
        list(pool.map(lambda images: check(session, images, reference), jobs))


def test_it_opens_again_after_closing(session: TensorRtSession, pictures: Any, reference: Reference) -> None:
    for _ in range(3):
        again = TensorRtSession.open(SMALL, SPEC, 1)
        check(again, pictures(2, 16), reference)
        again.close()
    with ThreadPoolExecutor(1) as pool:  # closing in another thread than it was opened in
        other = TensorRtSession.open(SMALL, SPEC, 1)
        check(other, pictures(1, 16), reference)
        pool.submit(other.close).result()
    check(session, pictures(1, 12), reference)
