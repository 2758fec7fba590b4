"""Distillation against timm's task: logits of the teacher, loss and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from timm.models.resnet import BasicBlock, ResNet
from timm.task.distillation import DistillationTeacher, LogitDistillationTask

from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Data, Distill
from resnet_jax.tasks.losses import cross_entropy
from resnet_jax.training.distillation import Teacher, distilled, teacher_logits
from resnet_jax.training.step import make_objective
from resnet_jax.weights.load import match_tensors
from resnet_jax.weights.names import to_state_dict
from resnet_jax.weights.state_dict import TensorFile

OURS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
THEIRS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def network(depths, randomize, seed, numbers):
    """One of timm, in double precision, and ours with its variables."""
    theirs = randomize(ResNet(BasicBlock, depths, channels=(8, 16, 32, 64), num_classes=5), seed).double()
    theirs.pretrained_cfg = numbers
    model = MODELS["resnet18"].clone(depths=depths, width=8, stem_features=64, num_classes=5)
    tensors = {name: tensor.float().numpy() for name, tensor in theirs.state_dict().items()}
    variables = match_tensors(model, TensorFile("timm", tensors)).variables
    return theirs, model.clone(dtype=jnp.float64), jax.tree.map(lambda x: np.asarray(x, np.float64), variables)


def test_logits_loss_and_gradients_are_those_of_timm(randomize):
    student, model, variables = network((1, 1, 1, 1), randomize, 0, OURS)
    teacher, its_model, its_variables = network((2, 1, 1, 1), randomize, 1, THEIRS)
    random = np.random.default_rng(0)
    images, targets = random.normal(size=(6, 32, 32, 3)), random.integers(0, 5, 6)
    task = LogitDistillationTask(
        student,
        DistillationTeacher(teacher, dtype=torch.float64),
        torch.nn.CrossEntropyLoss(),
        task_loss_weight=0.3,
        temperature=4.0,
        dtype=torch.float64,
        verbose=False,
    )
    task.train()
    pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    expected = task(pixels, torch.tensor(targets))
    expected["loss"].backward()
    with torch.no_grad():
        expected_logits = teacher(task.teacher.normalize_input(pixels, task.student_mean, task.student_std)).numpy()
    with jax.enable_x64(True):
        ours = Teacher(its_model, its_variables, *THEIRS.values(), digest="")
        logits = partial(teacher_logits, ours, Data(**OURS), its_variables)
        np.testing.assert_allclose(logits(jnp.asarray(images)), expected_logits, atol=1e-6)
        objective = distilled(
            make_objective(model, cross_entropy), logits, Distill(teacher="timm", temperature=4.0, weight=0.7)
        )
        batch = Batch(jnp.asarray(images), jnp.asarray(targets), None, rows=jnp.arange(6))

        def mean_loss(params):
            losses, _ = objective(params, variables["batch_stats"], batch, {})
            return losses.mean()

        loss, grads = jax.jit(jax.value_and_grad(mean_loss))(variables["params"])
        np.testing.assert_allclose(loss, expected["loss"].item(), rtol=1e-6)
        found = to_state_dict(model, {"params": grads, "batch_stats": variables["batch_stats"]})
    for name, parameter in student.named_parameters():
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), atol=1e-6, err_msg=name)
