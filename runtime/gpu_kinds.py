"""The words of `--gpu`. Imports nothing, so that reading flags stays light."""

KINDS = ("auto", "nvidia", "amd", "opencl", "disable")
ALIASES = {
    "cuda": "nvidia",
    "cublas": "nvidia",
    "rocm": "amd",
    "rocblas": "amd",
    "hip": "amd",
    "cpu": "disable",
    "disabled": "disable",
    "none": "disable",
}
