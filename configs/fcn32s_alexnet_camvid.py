"""FCN-32s on AlexNet on CamVid, at ten times the learning rate of VGG16's.

    python train.py --config configs/fcn32s_alexnet_camvid.py --workdir runs/fcn_alexnet \\
        --config.data.root=/path/to/camvid --config.model.dtype=bfloat16 \\
        --config.init_from=bvlc_alexnet.caffemodel --config.init_head=new

With torchvision's weights the encoder is another:
`--config.model.kwargs.encoder=alexnet_torchvision` and alexnet-owt-7be5be79.pth.
Otherwise as `fcn32s_vgg16_camvid.py`.
"""

import fcn32s_vgg16_camvid


def get_config():
    """See above."""
    config = fcn32s_vgg16_camvid.get_config()
    config.model.kwargs.encoder = "alexnet"
    config.schedule.learning_rate = 1e-3
    return config
