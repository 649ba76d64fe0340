"""Every field of a config, with its default and its meaning.

A preset is this config with some fields set anew, and `--config.a.b=c` sets a
field from the command line. The config is locked: no field can be added by a
slip of the pen.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
  """Second-order MAML, 5-way 1-shot, on the embedded `glyphs` data set."""
  config = ConfigDict()

  # Decides initial parameters and training tasks; val and test tasks are fixed.
  config.seed = 0
  # Of the products in convolutions and matrices: float32; tf32, rounded on the
  # fly where the hardware has that (GPU; three bfloat16 passes on TPU; nothing
  # on CPU); bfloat16, images and activations likewise. The rest, sums, batch
  # norm, losses and parameters among it, is float32 always.
  config.precision = 'float32'

  config.data = data = ConfigDict()
  # glyphs, omniglot, mini_imagenet, tiered_imagenet, cifar_fs, fc100, folder,
  # cub, inat2017; or sinusoid: regression, which needs no data
  data.name = 'glyphs'
  # Prepared data; '' = $MAML_JAX_DATA or ~/.cache/maml_jax. Of folder: images.
  data.root = ''
  # Where images lie: device, host (gathered ahead of time; the same tasks), or
  # auto: on the devices if they take at most a third of the memory there.
  data.placement = 'auto'
  data.normalize = False  # by the data set's channel mean and deviation
  # none, or a change of each image on its own, anew whenever it is drawn:
  #   flip     left to right, or not
  #   crop     a shift by up to 8 pixels over black; then flip
  #   color    that shift; brightness, contrast, saturation +-40 %; then flip
  #   resize   a box of 8..100 % of the area, stretched to full size; then flip
  #   enlarge  the centre of the image enlarged by 256/224; not random
  data.augment_support = 'none'  # of training images in support sets
  data.augment_query = 'none'  # of those in query sets

  # What a training task looks like.
  config.task = task = ConfigDict()
  task.ways = 5  # classes
  task.shots = 1  # support images per class
  task.queries = 15  # query images per class

  config.model = model = ConfigDict()
  # convnet4, wide_convnet4, resnet10, wide_resnet10, resnet12, wide_resnet12,
  # resnet18, wide_resnet18; mlp for regression
  model.encoder = 'convnet4'
  model.width = 0  # of convnet and mlp layers; 0 = the encoder's own
  # Whose moments normalise a query image. One word for all layers:
  #   batch       its own batch's, at all times (transductive)
  #   global      running averages over all training tasks
  #   episodic    running averages over the inner steps of its task
  #   cumulative  plain averages over the inner steps of its task
  #   support     its task's support set, under the adapted parameters
  #   tasknorm    episodic ones mixed with its own, in a learned proportion
  # or layer by layer, first match wins: (('conv4', 'support'), ('*', 'global'))
  model.norm = FieldReference('batch', field_type=object)
  model.norm_scale = True  # learn a scale beside the bias
  model.norm_eps = 1e-5  # added to the variance
  # torch (uniform, +-1/sqrt(fan in)) or xavier (uniform, zero biases); the
  # convolutions of resnets are He-normal always.
  model.init = 'torch'
  model.temperature = 1.0  # multiplies the logits
  model.learn_temperature = False  # in the outer loop; never adapted

  # The inner loop: how a task is learned from its support set.
  config.inner = inner = ConfigDict()
  inner.num_steps = 5  # gradient steps in training
  inner.encoder_lr = 0.01  # learning rate of all parameters but the head
  inner.classifier_lr = 0.01  # of the head
  inner.momentum = 0.0  # heavy ball; starts at rest in every task
  inner.weight_decay = 0.0  # L2, added to the gradient
  inner.first_order = False  # FOMAML: inner gradients are taken as constants
  # Parameters that are meta-learned but not adapted: patterns against
  # consecutive parts of paths such as encoder/conv1/bn/bias, for example 'bn',
  # 'encoder', 'encoder/conv[12]'. One that matches nothing is an error.
  inner.frozen = ()
  inner.reset_classifier = False  # begin every task with a zero head
  inner.remat = False  # recompute inner steps: less memory, more time
  # Second derivatives forward over reverse: the same numbers up to rounding,
  # and inner steps store no more than with remat.
  inner.mixed_mode = False

  # The outer loop: how the initialisation is learned.
  config.outer = outer = ConfigDict()
  outer.optimizer = 'adam'  # sgd, rmsprop, adam, adamw
  outer.lr = 1e-3  # learning rate
  outer.momentum = 0.9  # of sgd
  outer.weight_decay = 0.0  # L2, added to the gradient; adamw: decoupled
  outer.clip_value = 10.0  # bound of each gradient component; inf = none
  outer.schedule = 'constant'  # constant, step, cosine; changes between epochs
  # step: epochs after which lr is multiplied by gamma; cosine: its last is the
  # epoch at which lr reaches 0.
  outer.milestones = ()
  outer.gamma = 0.1  # factor of the schedule step
  outer.warmup_epochs = 0  # over which lr rises from 0, step by step

  config.train = train = ConfigDict()
  train.num_epochs = 10  # an epoch ends with validation and a checkpoint
  train.steps_per_epoch = 100  # meta-iterations
  train.meta_batch_size = 4  # tasks per meta-iteration, over all devices
  train.tasks_per_chunk = (
    0  # tasks at once on a device; 0 = what suits the hardware
  )
  train.steps_per_call = 10  # most meta-iterations per jitted call
  # A checkpoint whose parameters to begin with; '' = random ones.
  train.init_from = ''

  # Validation on the val split chooses the best checkpoint.
  config.val = val = ConfigDict()
  val.num_tasks = 200  # distinct, the same every time
  val.ways = task.get_oneway_ref('ways')  # as in training unless set
  val.shots = task.get_oneway_ref('shots')  # likewise
  val.queries = 15  # query images per class
  val.num_steps = inner.get_oneway_ref('num_steps')  # likewise
  val.augment_support = 'none'  # as data.augment_support

  # What --mode=eval measures.
  config.eval = evaluation = ConfigDict()
  evaluation.split = 'test'  # train, val, test
  evaluation.checkpoint = 'best'  # best (on validation), latest
  # Distinct, the same every time; 0 = 10,000, or 600 on CPUs.
  evaluation.num_tasks = 0
  evaluation.ways = task.get_oneway_ref('ways')  # as in training unless set
  evaluation.shots = task.get_oneway_ref('shots')  # likewise
  evaluation.queries = 15  # query images per class; under batch they matter
  evaluation.num_steps = inner.get_oneway_ref('num_steps')  # likewise
  evaluation.augment_support = 'none'  # as data.augment_support
  evaluation.norm = model.get_oneway_ref('norm')  # likewise
  # The first tasks, on which accuracy and loss are measured after every step.
  evaluation.curve_tasks = 100
  # Beside it, on the same tasks: no adaptation at all, the nearest class mean
  # and a linear head, both on the encoder's features.
  evaluation.baselines = False
  # In its place: each norm mode x queries per class x inner steps, on the same
  # tasks.
  evaluation.grid = False
  evaluation.grid_norms = ()  # () = all whose statistics the checkpoint has
  evaluation.grid_queries = (1, 5, 15)  # per class
  evaluation.grid_steps = (0, 1, 5, 10)  # inner steps

  return config.lock()
