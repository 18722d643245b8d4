"""FCN-8s on VGG16 on CamVid: the last stage.

    python train.py --config configs/fcn8s_vgg16_camvid.py --workdir runs/fcn8s \
        --config.data.root=/path/to/camvid --config.model.dtype=bfloat16 \
        --config.init_from=runs/fcn16s

As `fcn16s_vgg16_camvid.py`. Trained on its own rather than from FCN-16s it takes
`--config.schedule.learning_rate=1e-4`.
"""

import fcn16s_vgg16_camvid


def get_config():
    """See above."""
    config = fcn16s_vgg16_camvid.get_config()
    config.model.name = "fcn8s"
    return config.lock()
