"""Every key with its default, meaning and unit. Other configs are differences from it.

Each section holds the keyword arguments of one builder, named beside it, whose
docstring says more. On the command line: `--config.schedule.learning_rate=0.01`.
"""

from ml_collections import ConfigDict, config_dict

from jaxseg.utils.files import PREPARED_DIR


def get_config() -> ConfigDict:
    """The defaults: SegNet, by AdamW, on drawn shapes."""
    config = ConfigDict()
    config.seed = 0  # of parameters, dropout, order and augmentation
    config.init_from = ""  # workdir, or file of weights, to take parameters from
    config.init_head = "keep"  # new: leave the layers that depend on the classes
    config.stages = ()  # ((folder, {key: value, ...}), ...): runs, each from the last

    # jaxseg.create_model
    config.model = ConfigDict()
    config.model.name = "segnet"  # see jaxseg.list_models()
    config.model.dtype = "float32"  # of the computation; bfloat16 on TPU and GPU
    config.model.param_dtype = "float32"  # of the parameters
    config.model.remat = False  # recompute activations for the gradient: less memory
    config.model.kwargs = ConfigDict()  # what else the model takes: width, dropout, ...

    # jaxseg.data.create_source
    config.data = ConfigDict()
    config.data.dataset = "shapes"  # shapes, folder or camvid
    config.data.root = ""  # folder of the source images; none for shapes
    config.data.prepared_dir = PREPARED_DIR  # prepared once, kept here
    config.data.options = ConfigDict()  # what else the data set takes
    config.data.train_split = "train"
    config.data.val_split = "val"
    config.data.image_size = config_dict.placeholder(tuple)  # (H, W) fed; None: own
    config.data.num_threads = 2  # that decode and augment

    # jaxseg.data.transforms.augment, in this order
    config.augment = ConfigDict()
    config.augment.scale = (1.0, 1.0)  # least and largest random factor
    config.augment.crop_px = config_dict.placeholder(tuple)  # (H, W); None: no crop
    config.augment.flip = 0.5  # probability of mirroring left and right
    config.augment.brightness = 0.0  # half-width of the random factor around 1
    config.augment.contrast = 0.0  # likewise
    config.augment.saturation = 0.0  # likewise
    config.augment.hue = 0.0  # largest turn, share of the colour circle

    # jaxseg.training.step.Normalization: (x - mean) / std on pixels in 0..255, one a channel.
    # None: as the weights of init_from had it, or else ImageNet's, RGB.
    config.normalization = ConfigDict()
    config.normalization.mean = config_dict.placeholder(tuple)
    config.normalization.std = config_dict.placeholder(tuple)

    # jaxseg.losses.cross_entropy
    config.loss = ConfigDict()
    config.loss.class_weights = "none"  # none, median_frequency or segnet_camvid
    config.loss.denominator = "pixels"  # pixels (caffe-segnet), weights (PyTorch), none
    config.loss.label_smoothing = 0.0
    config.loss.logits_dtype = "float32"  # that it is given; bfloat16: half the memory
    config.loss.chunks = 1  # of the columns, one at a time: less memory for its float32

    # jaxseg.training.optimizer.create_schedule; its `steps` are those of config.train
    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # constant, step, poly or cosine
    config.schedule.learning_rate = 1e-3  # at the top
    config.schedule.warmup_steps = 0  # linear, from almost 0
    config.schedule.power = 0.9  # of poly
    config.schedule.boundaries = ()  # of step: where it decays
    config.schedule.every = 0  # of step: updates between decays, instead
    config.schedule.decay = 0.1  # of step: factor of each decay

    # jaxseg.training.optimizer.create_optimizer
    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # sgd or adamw
    config.optimizer.momentum = 0.9  # of SGD; beta 1 of AdamW
    config.optimizer.weight_decay = 1e-4  # of kernels
    config.optimizer.decay_all = False  # BatchNorm and biases as well
    config.optimizer.lr_multipliers = ()  # (("*/bias", 2.0), ("encoder/*", 0.0)), ...
    config.optimizer.clip_norm = config_dict.placeholder(float)  # None: no clipping
    config.optimizer.accumulate_steps = 1  # batches averaged into one update

    config.train = ConfigDict()
    config.train.steps = 1000  # batches, over all of the run
    config.train.batch_size = 32  # images, over all devices
    config.train.ema_decay = 0.0  # of parameters averaged for evaluation; 0: none
    config.train.freeze_batch_stats = ()  # ("encoder/*",): BatchNorm as in inference
    config.train.log_every_steps = 50  # these three: 0 for never but at the end
    config.train.eval_every_steps = 250  # each evaluation is saved
    config.train.save_every_steps = 250

    config.eval = ConfigDict()
    config.eval.batch_size = 32  # images, over all devices
    config.eval.absent = "exclude"  # absent classes; "zero" is SegNet's mean over all K
    config.eval.recompute_batch_stats = (
        False  # BatchNorm by the training set, as SegNet
    )
    config.eval.overlays = 4  # validation images shown as training goes

    # jaxseg.checkpoints.manager.CheckpointManager.restore_latest
    config.checkpoint = ConfigDict()
    config.checkpoint.fallback = False  # go on from the one before a corrupt latest
    config.checkpoint.accept_batch_size = False  # go on with another than it had

    # jaxseg.parallel.mesh.create_parallel
    config.parallel = ConfigDict()
    config.parallel.backend = "jit"  # jit, shard_map or pmap: same losses
    config.parallel.data = -1  # devices that share a batch; -1: all
    config.parallel.space = 1  # devices that share each image, by rows; needs jit
    config.parallel.fsdp = False  # split the state over data, not copy it; needs jit

    return config.lock()
