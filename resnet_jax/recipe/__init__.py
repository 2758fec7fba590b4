"""A recipe: every choice that changes the mathematics of a run, each with its unit, and nothing about hardware.

Devices, hosts, folders and how often one looks belong to the command line. The same recipe gives the same curve.
"""

from resnet_jax.recipe.check import check as check
from resnet_jax.recipe.fields import Augment as Augment
from resnet_jax.recipe.fields import Data as Data
from resnet_jax.recipe.fields import Distill as Distill
from resnet_jax.recipe.fields import Loss as Loss
from resnet_jax.recipe.fields import Model as Model
from resnet_jax.recipe.fields import Recipe as Recipe
from resnet_jax.recipe.leaves import differences as differences
from resnet_jax.recipe.leaves import fields_of as fields_of
from resnet_jax.recipe.leaves import nearest_fields as nearest_fields
from resnet_jax.recipe.load import from_json as from_json
from resnet_jax.recipe.load import load_recipe as load_recipe
from resnet_jax.recipe.load import to_json as to_json
from resnet_jax.recipe.optimization import Optimizer as Optimizer
from resnet_jax.recipe.optimization import Schedule as Schedule
from resnet_jax.recipe.times import TIMES as TIMES
from resnet_jax.recipe.times import in_steps as in_steps
from resnet_jax.recipe.times import total_steps as total_steps
