"""Benchmarks of the data pipeline, of a training step and of an evaluation step."""

from resnet_jax.tools.bench.data import Speed, measure_data, rate
from resnet_jax.tools.bench.step import BenchTarget, MeasureFor, StepBenchmark, bench_target, measure_step

__all__ = [
    "BenchTarget",
    "MeasureFor",
    "Speed",
    "StepBenchmark",
    "bench_target",
    "measure_data",
    "measure_step",
    "rate",
]
