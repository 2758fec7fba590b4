"""Cats against dogs: the recipe of resnet50.py on Kaggle's or Microsoft's archive, read as they are.

Kaggle's dogs-vs-cats.zip holds train.zip, whose files are train/cat.0.jpg to train/dog.12499.jpg:

    resnet-jax train experiments/finetune/cats_dogs.py --data-dir FOLDER_OF_TRAIN_ZIP

Microsoft's kagglecatsanddogs_5340.zip has the classes as folders, a Thumbs.db in each, and files that are no images,
such as Cat/666.jpg. In training they are named, and each is replaced by the next image:

    resnet-jax train experiments/finetune/cats_dogs.py --data-dir FOLDER
        --data.name 'files:kagglecatsanddogs_5340.zip/PetImages/{class}/*.jpg'

Either archive may also be unpacked: 'files:train/{class}.*.jpg'. A tenth of the images of each class is held out and
evaluated; if one of these is no image, the run names it and stops, for an evaluation is of all images: `zip -d
ARCHIVE NAME` removes it. Not measured: neither the archives nor ImageNet weights were available; a test reads archives
that are made up.
"""

from dataclasses import replace
from pathlib import Path

from resnet_jax.recipe import load_recipe

photos = load_recipe(Path(__file__).with_name("resnet50.py"))
recipe = replace(
    photos,
    data=replace(photos.data, name="files:train.zip/train/{class}.*.jpg", num_validation=0.1, stratify=True),
    epochs=3,
)
