"""Where weights are found: files, folders, the hub's cache, published names."""

import hashlib
import json
import sys

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from resnet_jax.data.image import Preprocessing
from resnet_jax.errors import InputError
from resnet_jax.models.zoo import MODELS
from resnet_jax.weights.config import describe, network_of
from resnet_jax.weights.entries import WEIGHTS, best_entry, class_names
from resnet_jax.weights.locate import Weights, locate

CONFIG = {
    "architecture": "resnetv2_50",
    "num_classes": 12,
    "pretrained_cfg": {
        "tag": "mine",
        "input_size": [3, 96, 96],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 1, 1],
        "license": "mit",
    },
}


def folder(home, config=CONFIG, file="model.safetensors"):
    """A folder in the layout of the hub."""
    home.mkdir()
    (home / file).write_bytes(b"weights")
    (home / "config.json").write_text(json.dumps(config))
    return home


def test_a_file_and_a_folder_with_its_config(tmp_path):
    home = folder(tmp_path / "mine")
    for where in (home, home / "model.safetensors"):
        file, entry = locate(str(where))
        assert file == home / "model.safetensors"
        assert (entry.model, entry.tag, entry.classes, entry.license) == ("resnet50v2", "mine", 12, "mit")
        assert entry.preprocessing == Preprocessing(
            image_size=96, crop_pct=0.9, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(1, 1, 1)
        )
    assert locate(str(folder(tmp_path / "old", file="pytorch_model.bin"))).file.name == "pytorch_model.bin"


@pytest.mark.parametrize("config", [{}, {"architecture": "vit"}, {**CONFIG, "num_classes": "many"}, [], "x", None])
def test_a_config_of_something_else_says_nothing(tmp_path, config):
    assert locate(str(folder(tmp_path / "mine", config))).entry is None
    (tmp_path / "mine" / "config.json").write_bytes(b"{")
    assert describe(tmp_path / "mine" / "config.json", "here") is None


def entry_of(tmp_path, arguments=None, cfg=None, **values):
    config = {**CONFIG, **values, "pretrained_cfg": CONFIG["pretrained_cfg"] | (cfg or {})}
    (tmp_path / "config.json").write_text(json.dumps(config | ({"model_args": arguments} if arguments else {})))
    return describe(tmp_path / "config.json", "here")


def test_what_a_config_says_of_the_network_is_taken(tmp_path):
    assert entry_of(tmp_path, global_pool="avg", cfg={"crop_mode": "center"})[6:9] == ((), (), "")
    assert entry_of(tmp_path, global_pool="max").fields == (("pool", "max"),)
    assert entry_of(tmp_path, {"global_pool": "max", "act_layer": "swish"}, global_pool="avg").fields == (
        ("act", "silu"),
        ("pool", "max"),
    )
    neutral = {"num_classes": 12, "in_chans": 3, "drop_path_rate": 0.1, "act_layer": "relu", "output_stride": 32}
    assert entry_of(tmp_path, neutral)[6:9] == ((), (), "")


def test_names_of_a_config_are_taken_also_for_a_thousand_classes(tmp_path):
    names = [f"thing {i}" for i in range(1000)]
    for values in ({"label_names": names}, {"cfg": {"label_names": names}}):
        entry = entry_of(tmp_path, num_classes=1000, **values)
        assert class_names(1000, entry) == tuple(names)
        with pytest.raises(InputError, match="here: config.json names 1,000 classes, and the weights have 12; correct"):
            class_names(12, entry)


@pytest.mark.parametrize(
    ("arguments", "cfg", "refused"),
    [
        ({"act_layer": "gelu"}, {}, "act_layer 'gelu'"),
        ({"output_stride": 8}, {}, "output_stride '8'"),
        ({"stem_width": 64, "aa_layer": "blurpool"}, {}, "aa_layer 'blurpool' and stem_width '64'"),
        ({"global_pool": "catavgmax"}, {}, "global_pool 'catavgmax'"),
        ({"global_pool": ["max"]}, {}, "global_pool \"['max']\""),
        ({}, {"crop_mode": "squash"}, "crop_mode 'squash'"),
        ({}, {"interpolation": "lanczos"}, "interpolation 'lanczos'"),
        ({}, {"input_size": [3, 96, 128]}, "input_size '[96, 128]'"),
        ({}, {"label_offset": 1}, "label_offset '1'"),
    ],
)
def test_what_a_config_says_and_is_not_understood_is_named(tmp_path, arguments, cfg, refused):
    assert entry_of(tmp_path, arguments, cfg).refused == refused


TRANSFORMERS = {
    **{"model_type": "resnet", "architectures": ["ResNetForImageClassification"], "layer_type": "bottleneck"},
    **{"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "embedding_size": 64, "hidden_act": "relu"},
    **{"downsample_in_first_stage": False, "id2label": {"0": "ant", "1": "bee"}},
}
PREPROCESSING = {
    **{"crop_pct": 0.875, "do_normalize": True, "do_resize": True, "resample": 3, "size": {"shortest_edge": 224}},
    **{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "image_processor_type": "ConvNextImageProcessor"},
}


def of_transformers(tmp_path, config=None, preprocessing=None):
    (tmp_path / "config.json").write_text(json.dumps(TRANSFORMERS | (config or {})))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING | (preprocessing or {})))
    return describe(tmp_path / "config.json", "here")


def test_a_config_of_transformers(tmp_path):
    entry = of_transformers(tmp_path)
    assert (entry.model, entry.class_names, entry.fields, entry.refused) == ("resnet50", ("ant", "bee"), (), "")
    assert entry.preprocessing == Preprocessing(
        image_size=224, crop_pct=0.875, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(1, 1, 1)
    )
    assert of_transformers(tmp_path, preprocessing={"size": 224}) == entry
    assert of_transformers(tmp_path, {"downsample_in_bottleneck": True}).model == "resnet50_v1"
    small = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
    assert of_transformers(tmp_path, small).model == "resnet18"
    assert of_transformers(tmp_path, {"depths": [1, 1, 1, 1]}) is None
    for config, preprocessing, refused in (
        ({"hidden_act": "gelu"}, {}, "hidden_act 'gelu'"),
        ({"hidden_sizes": [1, 2, 3, 4]}, {}, "hidden_sizes '[1, 2, 3, 4]'"),
        ({"downsample_in_first_stage": True}, {"do_normalize": False}, "do_normalize 'False' and downsample_in_first"),
        ({}, {"size": 384}, "size '384'"),
        ({}, {"resample": 0}, "resample '0'"),
        ({}, {"rescale_factor": 1}, "rescale_factor '1'"),
        ({}, {"image_processor_type": "ViTImageProcessor", "size": {"height": 224}}, "image_processor_type 'ViT"),
    ):
        assert of_transformers(tmp_path, config, preprocessing).refused.startswith(refused)
    (tmp_path / "preprocessor_config.json").unlink()
    assert describe(tmp_path / "config.json", "here").preprocessing == Preprocessing()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nothing.pth", "nothing.pth: no such run or weights; give a run directory"),
        ("resnet50.a1_in2k", "unknown weights 'resnet50.a1_in2k'; nearest: .*resnet50.a1_in1k"),
        ("resnet20.akamaster_cifar10", "not on the hub; download the file from https://github.com/akamaster"),
        ("hf:timm", "hf:timm: not a repository of the hub; write hf:OWNER/NAME"),
        ("hf:a/b/c", "not a repository of the hub"),
        (".", "neither a run .recipe.json. nor weights .model.safetensors, .*, pytorch_model.bin, .*. in this folder"),
    ],
)
def test_what_is_not_there(where, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        locate(where)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub without a network: the files of timm/resnet50.a1_in1k, in the cache."""
    home = folder(tmp_path / "cached")
    asked = []

    def download(name, file, revision, local_files_only):
        asked.append((name, file, revision, local_files_only))
        if name.endswith("a1_in1k") and (home / file).is_file():
            return str(home / file)
        if local_files_only:
            raise LocalEntryNotFoundError(f"{file} is not in the cache")
        if name == "me/empty":
            raise EntryNotFoundError("no such file")
        if name == "me/offline":  # as the hub says it where there is no network
            raise LocalEntryNotFoundError("check your connection")
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return home, asked


def test_the_hub(hub):
    home, asked = hub
    expected = Weights(home / "model.safetensors", WEIGHTS["resnet50.a1_in1k"])
    assert locate("hf:timm/resnet50.a1_in1k") == expected
    assert locate("resnet50.a1_in1k") == expected
    assert locate("hf:timm/resnet50.a1_in1k@main") == expected
    assert asked[-1] == ("timm/resnet50.a1_in1k", "model.safetensors", "main", True)
    assert locate("hf:me/my_a1_in1k").entry.model == "resnet50v2"  # by the config.json there
    with pytest.raises(
        InputError, match="hf:me/gone: cannot be downloaded from the hub .Name or service not known.; without"
    ):
        locate("hf:me/gone")
    with pytest.raises(
        InputError, match="hf:me/offline: cannot be downloaded from the hub .check your connection.; without"
    ):
        locate("hf:me/offline")
    with pytest.raises(InputError, match="hf:me/empty: has no model.safetensors and no .* and no pytorch_model.bin"):
        locate("hf:me/empty")


def test_a_config_of_transformers_on_the_hub(hub):
    home, asked = hub
    (home / "config.json").write_text(json.dumps(TRANSFORMERS))
    assert locate("hf:me/other_a1_in1k").entry.preprocessing == Preprocessing()
    assert asked[-1][1] == "preprocessor_config.json"


def test_shards_on_the_hub(hub):
    home, asked = hub
    index = home / "model.safetensors.index.json"
    (home / "model.safetensors").rename(home / "b.safetensors")
    (home / "a.safetensors").write_bytes(b"weights")
    index.write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}))
    assert locate("hf:timm/resnet50.a1_in1k").file == index
    assert [file for _, file, _, _ in asked[-2:]] == ["a.safetensors", "b.safetensors"]
    index.write_text(json.dumps({"weight_map": {"x": "../b"}}))
    with pytest.raises(InputError, match="hf:timm/resnet50.a1_in1k: no index of weights"):
        locate("hf:timm/resnet50.a1_in1k")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="needs huggingface_hub; pip install huggingface_hub"):
        locate("hf:timm/resnet50.a1_in1k")


def test_entries_are_of_our_networks():
    assert len(WEIGHTS) > 100
    for name, entry in WEIGHTS.items():
        assert entry.model in MODELS
        assert entry.name == name
        assert entry.preprocessing.interpolation in ("bilinear", "bicubic")
        assert 0 < entry.preprocessing.crop_pct <= 1
        # Weights without a head have no classes
        assert bool(entry.classes) == ("linear probe" not in dict(entry.scores))
        assert len(entry.preprocessing.mean) == len(entry.preprocessing.std) == 3
        assert entry.top1 is None or 50 < entry.top1 < 100


def test_a_published_file_is_known_by_its_name_and_checked(tmp_path, monkeypatch):
    data = b"weights"
    digest = hashlib.sha256(data).hexdigest()[:8]
    entry = WEIGHTS["fcn_resnet50.tv_coco_voc"]
    assert entry.score == "mIoU 60.5"
    assert len(entry.class_names) == entry.classes
    monkeypatch.setitem(WEIGHTS, entry.name, entry._replace(source=f"https://example.org/fcn-{digest}.pth"))
    file = tmp_path / f"fcn-{digest}.pth"
    file.write_bytes(data)
    assert locate(file).entry.name == entry.name
    file.write_bytes(data + b"!")
    with pytest.raises(InputError, match=f"its SHA-256 begins with ........, not {digest}; download it again from"):
        locate(file)


def test_the_best_entry():
    known = [entry for entry in WEIGHTS.values() if entry.model == "resnet50"]
    assert best_entry("resnet50").name == max(known, key=lambda entry: entry.top1 or 0).name
    assert best_entry("plain20") is None


def test_names_of_classes():
    names = class_names(1000)
    assert (len(names), names[0], names[207], names[999]) == (1000, "tench", "golden retriever", "toilet tissue")
    assert class_names(10, WEIGHTS["resnet20.akamaster_cifar10"])[3] == "cat"
    assert class_names(3) == ("0", "1", "2")


def test_names_of_networks():
    assert network_of("resnet50d") == "resnet50d"
    assert network_of("resnetv2_50x1_bit") == "resnetv2_50x1_bit"
    with pytest.raises(LookupError):
        network_of("vgg16")
