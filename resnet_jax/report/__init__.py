"""A report on runs: one page with curves, results, recipes and mistakes."""

from resnet_jax.report.make import Report, make_report

__all__ = ["Report", "make_report"]
