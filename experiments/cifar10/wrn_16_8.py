"""WRN-16-8 on CIFAR-10 (Zagoruyko and Komodakis 2016), trained like WRN-28-10.

resnet-jax train experiments/cifar10/wrn_16_8.py --data-dir FOLDER
"""

from dataclasses import replace
from pathlib import Path

from resnet_jax.recipe import load_recipe

wider = load_recipe(Path(__file__).with_name("wrn_28_10.py"))
recipe = replace(wider, model=replace(wider.model, name="wrn_16_8"))
