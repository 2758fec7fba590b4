"""Training: state, step, optimiser, devices, checkpoints and the loop."""
