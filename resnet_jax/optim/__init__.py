"""Optimisers, learning rate schedules and parameter masks."""
