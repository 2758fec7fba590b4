"""ResNet-50 from ImageNet, fine-tuned on a folder of photos: FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg.

    resnet-jax train experiments/finetune/resnet50.py --data.name folder:hymenoptera

The weights are fetched from the hub once (`pip install -e '.[hub]'`); a folder that holds their model.safetensors does
as well: `--model.pretrained FOLDER`. For other published weights, `resnet-jax list --weights`. Other ways to fine-tune
are a flag away: `--optimizer.freeze stem 'stage*' --model.norm_frozen` for the head alone, `--optimizer.layer-decay
0.8` for rates that fall from the head to the stem; experiments/transfer.py compares them. Not measured: there were no
weights from ImageNet at hand.
"""

from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(name="resnet50", pretrained="hf:timm/resnet50.a1_in1k"),
    data=Data(  # as these weights expect it: `resnet-jax list --weights resnet50`
        name="folder:hymenoptera",
        size=224,
        crop=0.95,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    augment=Augment(pad=0, crop=True, crop_from="original", crop_area=(0.25, 1.0), flip=True),
    optimizer=Optimizer(lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, decay_scope="kernels", head_rate=10),
    schedule=Schedule(name="cosine", warmup=1),
    batch_size=32,
    epochs=12,
)
