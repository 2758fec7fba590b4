"""ResNet-50 from ImageNet, fine-tuned on a folder of photos: FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg.

    resnet-jax train experiments/finetune/resnet50.py --data.name folder:hymenoptera

The weights are downloaded from the hub once (`pip install -e '.[hub]'`); or give a folder that holds their
model.safetensors: `--model.pretrained FOLDER`. For other published weights, `resnet-jax list --weights`. Other ways to
fine-tune need only flags: `--optimizer.freeze stem 'stage*' --model.freeze_norm` for the head alone,
`--optimizer.layer-decay 0.8` for learning rates that decrease from the head to the stem; experiments/transfer.py
compares them. Not measured: no ImageNet weights were available.
"""

from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(name="resnet50", pretrained="hf:timm/resnet50.a1_in1k"),
    data=Data(  # as these weights expect it: `resnet-jax list --weights resnet50`
        name="folder:hymenoptera",
        image_size=224,
        crop_pct=0.95,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    augment=Augment(crop_padding=0, random_resized_crop=True, rrc_from="original", rrc_scale=(0.25, 1.0), hflip=True),
    optimizer=Optimizer(
        lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, weight_decay_mask="kernels", head_lr_mult=10
    ),
    schedule=Schedule(name="cosine", warmup=1),
    batch_size=32,
    epochs=12,
)
