"""Use a trained network: open, evaluate, predict, explain, convert."""
