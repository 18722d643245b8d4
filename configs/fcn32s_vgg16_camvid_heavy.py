"""FCN-32s by the released recipe: heavy momentum, one image at a time, a summed loss.

    python train.py --config configs/fcn32s_vgg16_camvid_heavy.py --workdir runs/heavy \\
        --config.data.root=/path/to/camvid \\
        --config.init_from=VGG_ILSVRC_16_layers.caffemodel --config.init_head=new

The authors' solver: learning rate 1e-10, momentum 0.99, weight decay 5e-4, the loss
summed over pixels, images whole, pad 100 and its crops. What the numbers amount to:

* The sum over 360x480 pixels is 172,800 times the mean, so the rate is 1.7e-5 for a mean
  (and 1.9e-5 on their 500x375 images); with momentum 0.99 a gradient that stays is
  followed at 100 times that, 1.7e-3.
* The decay is multiplied by the rate as well, so 5e-4 does nothing: in 100,000 steps a
  weight shrinks by half a millionth (with momentum's factor 100). Changing to a mean
  loss, divide it by the pixels too, or it begins to regularize.
"""

import fcn32s_vgg16_camvid


def get_config():
    """See above."""
    config = fcn32s_vgg16_camvid.get_config()
    with config.unlocked():
        config.model.kwargs.geometry = "released"
    config.augment.flip = 0.0
    config.loss.denominator = "none"
    config.schedule.learning_rate = 1e-10
    config.optimizer.momentum = 0.99
    config.train.batch_size = 1
    config.parallel.data = 1
    config.train.steps = 100_000
    config.train.eval_every_steps = 4_000
    config.train.save_every_steps = 4_000
    return config
