"""FCN-32s, then 16s from it, then 8s from that, on CamVid: the three configs as one.

    python train.py --config configs/fcn_vgg16_camvid_staged.py --workdir runs/fcn \
        --config.data.root=/path/to/camvid --config.model.dtype=bfloat16 \
        --config.init_from=vgg16-397923af.pth --config.init_head=new

The stages are in runs/fcn/fcn32s, fcn16s and fcn8s. The first starts from the file, each
other from the best checkpoint of the one before. What else is set on the command line
holds for all of them, but for the keys below.
"""

import fcn32s_vgg16_camvid

REFINED = {"model.kwargs.learned": True, "schedule.learning_rate": 1e-6}


def get_config():
    """See above."""
    config = fcn32s_vgg16_camvid.get_config()
    config.stages = (
        ("fcn32s", {}),
        ("fcn16s", {"model.name": "fcn16s"} | REFINED),
        ("fcn8s", {"model.name": "fcn8s"} | REFINED),
    )
    return config
