"""FCN-32s on GoogLeNet on CamVid, at a tenth of the learning rate of VGG16's.

    python train.py --config configs/fcn32s_googlenet_camvid.py --workdir runs/fcn_goog \\
        --config.data.root=/path/to/camvid --config.model.dtype=bfloat16 \\
        --config.init_from=bvlc_googlenet.caffemodel --config.init_head=new

The learning rate is 1e-5, as in common notes on training FCN; the paper prints 5e-5
(`--config.schedule.learning_rate=5e-5`). With torchvision's weights the encoder is
another: `--config.model.kwargs.encoder=googlenet_bn` and googlenet-1378be20.pth.
Otherwise as `fcn32s_vgg16_camvid.py`.
"""

import fcn32s_vgg16_camvid


def get_config():
    """See above."""
    config = fcn32s_vgg16_camvid.get_config()
    config.model.kwargs.encoder = "googlenet"
    config.schedule.learning_rate = 1e-5
    return config
