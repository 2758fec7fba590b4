"""Residual networks as linen modules."""
