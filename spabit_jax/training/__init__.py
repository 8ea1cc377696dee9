"""Training: pure jitted steps, a loop that scans over epochs, Orbax checkpoints."""
