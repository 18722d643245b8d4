"""FCN-16s on VGG16 on CamVid: the second stage, at a hundredth of the first's rate.

    python train.py --config configs/fcn16s_vgg16_camvid.py --workdir runs/fcn16s \
        --config.data.root=/path/to/camvid --config.model.dtype=bfloat16 \
        --config.init_from=runs/fcn32s

Otherwise as `fcn32s_vgg16_camvid.py`. The enlargement between the two scores is learned,
as in the paper; in the released nets it is fixed.
"""

import fcn32s_vgg16_camvid


def get_config():
    """See above."""
    config = fcn32s_vgg16_camvid.get_config()
    config.model.name = "fcn16s"
    with config.unlocked():
        config.model.kwargs.learned = True
    config.schedule.learning_rate = 1e-6
    return config.lock()
