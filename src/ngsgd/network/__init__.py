"""Network: components, topology, the acoustic model and its file; conversion to Kaldi and ONNX."""
