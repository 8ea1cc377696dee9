"""Weights and files of the PyTorch reference. Torch is imported here alone in the library, when a file is read."""
