"""Students on devices: what an ONNX file needs beside it, and what runs it."""
