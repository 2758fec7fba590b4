"""Export a trained network to ONNX, LiteRT and StableHLO."""
