"""The kernels' sources and the built native library; floor 0, imported by the backends alone."""
