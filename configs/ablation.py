"""What unpooling and skips contribute, on CamVid at reduced size.

All runs have the same budget. Does unpooling by the encoder's pooling indices beat
interpolation? Three upsamplers, no skips:

    python train.py --config configs/ablation.py:unpool ...
    python train.py --config configs/ablation.py:bilinear ...
    python train.py --config configs/ablation.py:transposed ...

What do skips bring? Three skips, bilinear interpolation:

    python train.py --config configs/ablation.py:none ...
    python train.py --config configs/ablation.py:sum ...
    python train.py --config configs/ablation.py:concat ...

(`bilinear` and `none` are the same network.) Each with `--workdir runs/ablation_...`,
`--config.data.root=/path/to/camvid` and `--config.seed=0`, 1 and 2; or all of them and
the table by `python benchmarks/ablation.py --data-root /path/to/camvid`. The encoder is
the same narrow VGG16-BN everywhere and the decoder its mirror image; only the named
component changes. Under ten minutes a run on two cores.
"""

from jaxseg.training import default_config

COMPONENTS = {
    "unpool": {"upsampler": "unpool", "skip": "none"},
    "bilinear": {"upsampler": "bilinear", "skip": "none"},
    "transposed": {"upsampler": "transposed", "skip": "none"},
    "none": {"upsampler": "bilinear", "skip": "none"},
    "sum": {"upsampler": "bilinear", "skip": "sum"},
    "concat": {"upsampler": "bilinear", "skip": "concat"},
}


def get_config(name: str = "concat"):
    """See above; `name` is the text after the colon."""
    if name not in COMPONENTS:
        raise ValueError(f"Unknown ablation {name!r}. Known: {', '.join(COMPONENTS)}.")
    config = default_config()
    config.model.name = "encoder_decoder"
    config.model.kwargs = {
        "encoder": "vgg16_bn",
        "encoder_kwargs": {"widths": (16, 32, 64, 128), "depths": (2, 2, 2, 2)},
        **COMPONENTS[name],
    }

    config.data.dataset = "camvid"
    config.data.image_size = (144, 192)
    config.augment.crop_px = (144, 192)
    config.augment.scale = (0.8, 1.25)

    config.schedule.learning_rate = 3e-3
    config.schedule.warmup_steps = 20
    config.train.batch_size = 8
    config.train.steps = 400
    config.train.log_every_steps = 20
    config.train.eval_every_steps = 0  # but after the last step
    config.train.save_every_steps = 100
    config.eval.batch_size = 8
    return config.lock()
