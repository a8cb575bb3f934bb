"""Where tensors run: NVIDIA GPUs through NVML, CPU core sets, simulated devices with stated costs."""
