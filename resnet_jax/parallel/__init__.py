"""Several devices and hosts, and gradient accumulation."""
