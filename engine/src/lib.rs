//! Muse on ONNX Runtime, as a library.
