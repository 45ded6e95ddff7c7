"""Pictures among texts: a small head that reads the frozen image encoder's tokens as a point of the text space.

``head`` (the network and its ONNX form) · ``classes`` (what an ImageNet classifier knows, in words) · ``fit``
(learning) · ``evaluation`` (how often a caption finds its picture).
"""
