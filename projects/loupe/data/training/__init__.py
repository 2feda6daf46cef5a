"""What a training loop takes: the mapper, samplers, loaders."""
