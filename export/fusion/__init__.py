"""The fusion decoder: model, episodes, training, and its way into ONNX."""
