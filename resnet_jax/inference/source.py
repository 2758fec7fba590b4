"""Choices of weights: which checkpoint of a run, and the preprocessing of a bare weights file."""

from dataclasses import dataclass

from resnet_jax.data.image import Preprocessing

# Endings of the files with a row for each image
TABLES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class CheckpointChoice:
    """Checkpoint of a run; for runs only."""

    best: bool = False
    """Use the checkpoint with the best evaluation instead of the newest."""
    no_ema: bool = False
    """Use the trained parameters instead of their EMA, if the recipe keeps one."""
    network: str | None = None
    """Your own network, `package.module:network`, if the run uses one; it is imported only if you name it."""


@dataclass(frozen=True, kw_only=True)
class WeightsInfo(Preprocessing):
    """Model name and preprocessing for a bare weights file; runs and published weights record their own."""

    model: str | None = None
    """Network, or published weights with the same preprocessing; `resnet-jax list --weights` shows them."""
    data: str | None = None
    """Data set to evaluate on."""
