"""A small model that takes pictures of several sizes, and its engine."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from edge_ravlm.engines import host_platform
from edge_ravlm.manifest import Engine, Model

CAPABILITY = "8.7"
SPEC = Model(file="models/small.onnx", backend="tensorrt")
OUTPUTS = ("embedding", "grid")
PROFILE = {"image": [(1, 12, 12, 3), (1, 16, 16, 3), (3, 16, 16, 3)]}
TEXT = """<ir_version: 10, opset_import: ["" : 19]>
g (uint8[n, h, w, 3] image) => (float[n, 4] embedding, float16[n, 4, rows, columns] grid)
{
    floats = Cast <to = 1> (image)
    planes = Transpose <perm = [0, 3, 1, 2]> (floats)
    found = Conv <strides = [2, 2]> (planes, weight)
    bright = Relu (found)
    embedding = ReduceMean <keepdims = 0> (bright, sides)
    grid = Cast <to = 10> (bright)
}"""
"""The model without its numbers."""

SMALL = base64.b64decode(
    """
    CAo62AYKIgoFaW1hZ2USBmZsb2F0cyIEQ2FzdCoJCgJ0bxgBoAECOgAKMAoGZmxvYXRzEgZwbGFuZXMiCVRyYW5zcG9zZSoRCgRwZXJtQABAA0AB
    QAKgAQc6AAoxCgZwbGFuZXMKBndlaWdodBIFZm91bmQiBENvbnYqEAoHc3RyaWRlc0ACQAKgAQc6AAoXCgVmb3VuZBIGYnJpZ2h0IgRSZWx1OgAK
    OQoGYnJpZ2h0CgVzaWRlcxIJZW1iZWRkaW5nIgpSZWR1Y2VNZWFuKg8KCGtlZXBkaW1zGACgAQI6AAohCgZicmlnaHQSBGdyaWQiBENhc3QqCQoC
    dG8YCqABAjoAEgFnKsUDCAQIAwgDCAMQAUIGd2VpZ2h0SrADAADgPQAAQD0AAAAAAACAvQAAgL0AABC+AAAAvgAAEL4AAMC9AADAPQAAQD0AAAA+
    AAAAAAAAAD0AABA+AACAPQAAQD0AAIA8AACAPAAAAD4AAIC9AADAPQAAQD0AABC+AAAAvQAA4D0AAIA8AAAQvgAAoD0AAIA9AADgPQAAwL0AAAC+
    AADgPQAAEL4AAIA8AAAAvgAAgL0AAAAAAACAvAAAAL0AABC+AAAQvgAA4L0AABC+AABAPQAAAAAAAEA9AACgvQAAAD0AAKA9AAAAvQAAgLwAABA+
    AADAPQAAED4AAAC9AACAPQAAED4AAEA9AADAPQAAgD0AAIA9AAAAvQAA4D0AAOC9AACAPAAAgD0AAOA9AAAAAAAAAL0AAIC9AACAvAAAAAAAAIA9
    AADgPQAAAL4AAAA+AACAPAAAQL0AAEA9AACAPAAAoL0AAEC9AACAPQAAAD0AAAAAAABAvQAAoD0AAAC9AABAvQAA4D0AAIC9AACgvQAAgD0AAAA9
    AAAQvgAAAL4AAAC9AADAPQAAAL0AAKA9AABAvQAAoL0AAMA9AADgPQAAAL4AAAC+Kh0IAhAHQgVzaWRlc0oQAgAAAAAAAAADAAAAAAAAAFoiCgVp
    bWFnZRIZChcIAhITCgMSAW4KAxIBaAoDEgF3CgIIA2IcCgllbWJlZGRpbmcSDwoNCAESCQoDEgFuCgIIBGIqCgRncmlkEiIKIAgKEhwKAxIBbgoC
    CAQKBhIEcm93cwoJEgdjb2x1bW5zQgQKABAT
    """
)
"""The same as a file, so that no test needs onnx; ``test_fake_gpu`` compares them."""


def entry(flavor: str = "tensorrt", version: str = "10.3.0", capability: str = CAPABILITY, **other: Any) -> Engine:
    """The manifest's entry of an engine for the small model."""
    fields = {
        "file": f"engines/small.{flavor}.engine",
        "model": SPEC.file,
        "model_sha256": hashlib.sha256(SMALL).hexdigest(),
        "flavor": flavor,
        "library_version": version,
        "compute_capabilities": (capability,),
        "platform": host_platform(),
        "seconds": 1.0,
        "io": (),
    }
    return Engine(**{**fields, **other})
