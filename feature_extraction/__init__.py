"""Image features of spots: section image to cache file. PyTorch, and never jax."""
