"""The device half: cameras, encoders, memory and answers, without torch or onnx."""
