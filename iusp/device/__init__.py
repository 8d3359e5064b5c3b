"""Students on devices: export, packages, releases, and the runtime for ONNX files."""
