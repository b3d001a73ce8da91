"""The CUDA engine: kernels of our own through cuda-python, compiled for the model; it needs neither torch nor nvcc."""
