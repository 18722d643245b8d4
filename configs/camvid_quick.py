"""CamVid in 20 minutes on two cores: a narrow ResNet-18 U-Net at half size.

    python train.py --config configs/camvid_quick.py --workdir runs/camvid \
        --config.data.root=/path/to/camvid

Fed at 176x240, scored at the labels' own 360x480: 51.9 mIoU on the validation images
(docs/results/camvid_quick.md). On two cores a network spends most of
its time at the image's own resolution; this one starts at half of it and has the last
factor of two from bilinear interpolation, which buys five times the channels.
"""

from jaxseg.training import default_config


def get_config():
    """See above."""
    config = default_config()
    config.model.name = "encoder_decoder"
    config.model.kwargs = {
        "encoder": "resnet18",
        "encoder_kwargs": {"width": 32},
        "skip": "concat",
        "upsampler": "bilinear",
        "widths": (128, 64, 32, 32),
    }

    config.data.dataset = "camvid"
    config.data.image_size = (176, 240)
    config.augment.scale = (0.8, 1.25)
    config.augment.crop_px = (176, 240)

    # By natural frequencies the thin classes are not found at all in so short a time.
    config.loss.class_weights = "median_frequency"
    config.loss.denominator = "weights"

    config.schedule.learning_rate = 3e-3
    config.schedule.warmup_steps = 20
    config.train.batch_size = 8
    config.train.steps = 1000
    config.train.log_every_steps = 20
    config.eval.batch_size = 8
    return config.lock()
