"""A checkpoint as one standard ONNX graph, and the engine that runs it with ONNX Runtime."""
