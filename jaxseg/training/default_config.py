"""Every key of a config: its default, its meaning and its unit.

A config file starts from `default_config()` and changes what differs:

    from jaxseg.training import default_config

    def get_config():
        config = default_config()
        config.train.steps = 5000
        return config

Any key can also be set on the command line: `--config.schedule.learning_rate=0.01`.
"""

from ml_collections import ConfigDict, config_dict

from jaxseg.utils.files import PREPARED_DIR


def default_config() -> ConfigDict:
    """Returns the defaults: SegNet trained by AdamW on generated shapes.

    Returns:
        A locked config: a key that it does not have is an error. Use
        `with config.unlocked():` to add an entry to one of its dictionaries.
    """
    config = ConfigDict()

    # Seed of the parameters, dropout, the order of the data and the augmentation.
    config.seed = 0

    # Fine-tuning: where to load pretrained weights from before the first step. A
    # workdir of another run, or a weight file of torchvision, Caffe or another library;
    # "" to train from scratch.
    config.init_from = ""
    # "keep" loads all layers. "new" leaves out the layers whose size depends on the
    # number of classes, to fine-tune on other classes.
    config.init_head = "keep"

    # Training in stages, each fine-tuned from the best checkpoint of the one before:
    # ((name, {"key": value, ...}), ...). Each stage has its own folder in the workdir.
    config.stages = ()

    # The model: keyword arguments of `jaxseg.create_model`, where `kwargs` holds those
    # that only some models have.
    config.model = ConfigDict()
    config.model.name = "segnet"  # one of jaxseg.list_models()
    # Type of the computation. "bfloat16" is mixed precision, for TPUs and GPUs:
    # parameters, normalization, loss and metrics stay in float32.
    config.model.dtype = "float32"
    config.model.param_dtype = "float32"  # type of the parameters
    # Recompute activations in the backward pass (gradient checkpointing): slower, but
    # uses less memory.
    config.model.remat = False
    # Extra keyword arguments of the model builder, such as {"width": 32}.
    config.model.kwargs = ConfigDict()

    # The data set, its splits and how it is read. `dataset`, `root`, `prepared_dir` and
    # the content of `options` are keyword arguments of `jaxseg.data.create_source`.
    config.data = ConfigDict()
    config.data.dataset = "shapes"  # shapes (generated), folder (your own) or camvid
    config.data.root = ""  # folder of the images and masks; "" for generated data
    config.data.prepared_dir = PREPARED_DIR  # cache of the prepared data
    # Use prepared data that another user could have written.
    config.data.trust_prepared = False
    # Damaged records of the prepared data: "raise" stops the run; "skip" trains on the
    # next record instead, leaves the record out of evaluations, and logs it.
    config.data.on_error = "raise"
    config.data.options = ConfigDict()  # extra keyword arguments of the data set
    config.data.train_split = "train"  # name of the training split
    config.data.val_split = "val"  # name of the validation split
    # (height, width) in pixels that images are resized to before augmentation, and for
    # evaluation; None keeps their own size. Scores are always computed at the size of
    # the labels.
    config.data.image_size = config_dict.placeholder(tuple)
    config.data.num_threads = 2  # threads that decode and augment; 0: no extra thread

    # Random augmentation of training images: keyword arguments of
    # `jaxseg.data.transforms.augment`, applied in this order.
    config.augment = ConfigDict()
    config.augment.scale = (1.0, 1.0)  # smallest and largest factor of random scaling
    # (height, width) in pixels of random crops; None for no crop.
    config.augment.crop_px = config_dict.placeholder(tuple)
    config.augment.flip = 0.5  # probability of a horizontal flip
    config.augment.brightness = 0.0  # factor drawn from 1 +- this
    config.augment.contrast = 0.0  # factor drawn from 1 +- this
    config.augment.saturation = 0.0  # factor drawn from 1 +- this
    config.augment.hue = 0.0  # largest rotation of the hue, as a fraction of a turn

    # Normalization of images: keyword arguments of
    # `jaxseg.ops.image_normalization.Normalization`, (x - mean) / std for pixels in
    # 0..255, one number per channel. None uses the values of the pretrained weights in
    # `init_from`, or ImageNet's (RGB) without any.
    config.normalization = ConfigDict()
    config.normalization.mean = config_dict.placeholder(tuple)
    config.normalization.std = config_dict.placeholder(tuple)

    # The loss; docs/losses.md describes each. `class_weights`, `denominator` and
    # `label_smoothing` are passed to the losses that have these arguments, and `kwargs`
    # holds those that only other losses have; `logits_dtype` and `chunks` decide how the
    # loss is called.
    config.loss = ConfigDict()
    config.loss.name = "cross_entropy"  # or one that was registered
    config.loss.kwargs = ConfigDict()  # extra keyword arguments of the loss
    # In place of name and kwargs, a sum of losses, each as (name, weight, kwargs):
    # (("cross_entropy", 1.0, {}), ("dice", 0.5, {"per": "batch"})).
    config.loss.terms = ()
    # Weights of the classes: none, median_frequency (from the training labels) or
    # segnet_camvid (the SegNet authors' weights for CamVid).
    config.loss.class_weights = "none"
    # What the sum over pixels is divided by: pixels (Caffe), weights (sum of the class
    # weights, PyTorch) or none.
    config.loss.denominator = "pixels"
    # Part of the target that is spread over all classes, 0 to 1.
    config.loss.label_smoothing = 0.0
    # Type of the logits that the loss receives; it computes in float32 in any case.
    # "bfloat16" halves their memory.
    config.loss.logits_dtype = "float32"
    # Number of groups of columns that the loss is computed for, one at a time, to save
    # memory; a divisor of the images' width.
    config.loss.chunks = 1

    # The learning rate: keyword arguments of
    # `jaxseg.training.optimizer.create_schedule`. Its `steps` are the optimizer updates
    # of the whole run, train.steps / optimizer.accumulate_steps.
    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # constant, step, poly or cosine
    config.schedule.learning_rate = 1e-3  # the highest learning rate of the run
    config.schedule.warmup_steps = 0  # updates of linear warmup
    config.schedule.power = 0.9  # exponent of poly
    config.schedule.boundaries = ()  # of step: updates at which the rate decays
    config.schedule.every = 0  # of step, in place of boundaries: updates between decays
    config.schedule.decay = 0.1  # of step: factor of each decay

    # The optimizer: keyword arguments of `jaxseg.training.optimizer.create_optimizer`,
    # without the schedule.
    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # sgd or adamw
    config.optimizer.momentum = 0.9  # momentum of SGD, beta 1 of AdamW
    config.optimizer.weight_decay = 1e-4  # of kernels (weights of convolutions)
    config.optimizer.decay_all = False  # weight decay of BatchNorm and biases as well
    # Factors of the learning rate by parameter name, ((pattern, factor), ...), such as
    # (("*/bias", 2.0), ("encoder/*", 0.0)). A factor of 0 freezes the parameters.
    config.optimizer.lr_multipliers = ()
    # Largest global norm of the gradient (gradient clipping); None for no clipping.
    config.optimizer.clip_norm = config_dict.placeholder(float)
    # Gradient accumulation: batches whose gradients are averaged into one update.
    config.optimizer.accumulate_steps = 1

    # Where metrics and images are recorded, besides metrics.jsonl: names out of
    # tensorboard, wandb, mlflow and registered ones, or pairs (name, {"key": value, ...})
    # with keyword arguments of the tracker.
    config.trackers = ("tensorboard",)

    # The training loop.
    config.train = ConfigDict()
    config.train.steps = 1000  # batches of the whole run
    config.train.batch_size = 32  # global batch size: images per step on all devices
    # Decay of the exponential moving average (EMA) of the parameters, which is then used
    # for evaluation; 0 for no average.
    config.train.ema_decay = 0.0
    # Layers whose BatchNorm is frozen (uses its running statistics and does not update
    # them), as patterns of names such as ("encoder/*",).
    config.train.freeze_batch_stats = ()
    # Steps between two log lines, evaluations and checkpoints; 0 for only at the end.
    # Each evaluation also saves a checkpoint.
    config.train.log_every_steps = 50
    config.train.eval_every_steps = 250
    config.train.save_every_steps = 250
    # Early stopping: the number of evaluations in a row without a better mIoU after
    # which training stops; 0 to never stop early.
    config.train.early_stopping_patience = 0

    # Evaluation on the validation split.
    config.eval = ConfigDict()
    config.eval.batch_size = 32  # global batch size of evaluations
    # Classes that do not occur in labels or predictions: exclude them from the mean IoU,
    # or count them as zero, as SegNet's authors do.
    config.eval.absent = "exclude"
    # Recompute the BatchNorm statistics over the training set before each evaluation, as
    # SegNet's authors do.
    config.eval.recompute_batch_stats = False
    config.eval.overlays = 4  # validation images drawn at each evaluation

    # Resuming: keyword arguments of
    # `jaxseg.checkpoints.manager.CheckpointManager.restore_latest`.
    config.checkpoint = ConfigDict()
    # If the latest checkpoint is damaged, resume from the one before it.
    config.checkpoint.fallback = False
    # Resume even if the global batch size has changed.
    config.checkpoint.accept_batch_size = False

    # Devices: keyword arguments of `jaxseg.parallel.mesh.create_parallel`.
    config.parallel = ConfigDict()
    config.parallel.backend = "jit"  # jit, shard_map or pmap; the losses are the same
    config.parallel.data = -1  # devices that the batch is split over; -1 for all
    # Devices that the rows of each image are split over (spatial partitioning), for
    # images that do not fit one device; needs jit.
    config.parallel.space = 1
    # Split parameters and optimizer state over the devices of `data` (FSDP) to save
    # memory; needs jit.
    config.parallel.fsdp = False

    return config.lock()
