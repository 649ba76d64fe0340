"""Every field of a config, with its default and its meaning.

A preset changes some of these fields; `--config.a.b=c`, or `--a.b=c`, sets a
field from the command line. The config is locked: fields cannot be added.
"""

from ml_collections import ConfigDict, FieldReference

__all__ = ['get_config']


def get_config() -> ConfigDict:
  """Returns the config of second-order MAML, 5-way 1-shot, on `glyphs`."""
  config = ConfigDict()

  # Seed of initial parameters and training tasks. The tasks of validation and
  # evaluation are fixed.
  config.seed = 0
  # Precision of convolutions and matrix products: float32; tf32 (on GPU; three
  # bfloat16 passes on TPU; no effect on CPU); bfloat16, also for images and
  # activations. Sums, batch norm, losses and parameters are always float32.
  config.precision = 'float32'

  config.data = data = ConfigDict()
  # glyphs, omniglot, mini_imagenet, tiered_imagenet, cifar_fs, fc100, folder,
  # cub, inat2017; or sinusoid: regression, which needs no data.
  data.name = 'glyphs'
  # Directory of prepared data; '' = $MAML_JAX_DATA or ~/.cache/maml_jax. For
  # `folder`, the directory of the images.
  data.root = ''
  # Where images are stored: device; host, with prefetching; or auto: on the
  # devices if they need at most a third of the memory. The tasks are the same.
  data.placement = 'auto'
  data.normalize = False  # by the channel mean and deviation of the data set
  # Random augmentation of each training image:
  #   none
  #   flip                 horizontal flip
  #   random_crop          shift by up to 8 pixels over black; flip
  #   color_jitter         random_crop; brightness, contrast, saturation +-40 %
  #   random_resized_crop  a box of 8..100 % of the area, resized; flip
  #   resize_center_crop   resize by 256/224, center crop (not random)
  data.augment_support = 'none'  # of support images in training
  data.augment_query = 'none'  # of query images in training

  # Training tasks.
  config.task = task = ConfigDict()
  task.ways = 5  # classes
  task.shots = 1  # support images per class
  task.queries = 15  # query images per class

  config.model = model = ConfigDict()
  # convnet4, wide_convnet4, resnet10, wide_resnet10, resnet12, wide_resnet12,
  # resnet18, wide_resnet18; mlp for regression.
  model.encoder = 'convnet4'
  model.width = 0  # channels of convnets, units of the mlp; 0 = the default
  # Statistics that normalize a query image. One mode for all layers:
  #   batch       moments of the query set (transductive)
  #   global      running averages over all training tasks
  #   episodic    running averages over the inner steps of the task
  #   cumulative  plain averages over the inner steps of the task
  #   support     moments of the support set under the adapted parameters
  #   tasknorm    episodic, blended with the moments of each image
  #   tasknorm_global  global, blended with the moments of each image
  # or (pattern, mode) pairs, first match wins, for example
  # (('conv4', 'support'), ('*', 'global')).
  model.norm = FieldReference('batch', field_type=object)
  model.norm_scale = True  # learn a scale in addition to the bias
  model.norm_eps = 1e-5  # added to the variance
  # torch (uniform +-1/sqrt(fan in)) or xavier (uniform, zero biases). The
  # convolutions of ResNets are always He-normal.
  model.init = 'torch'
  model.temperature = 1.0  # multiplies the logits, as in PyTorch-MAML
  model.learn_temperature = False  # learn it in the outer loop
  model.normalize_features = False  # to norm 1: only directions count
  # Numbers of a vector that only the inner loop changes, which conditions the
  # network (CAVIA); for convnets and mlp. Use with inner.zero and inner.frozen.
  model.context_size = 0

  # The inner loop adapts to the support set of a task. Its settings combine
  # freely; docs/methods.md lists those of published methods.
  config.inner = inner = ConfigDict()
  inner.num_steps = 5  # gradient steps in training
  inner.encoder_lr = 0.01  # learning rate of all parameters except the head
  inner.classifier_lr = 0.01  # learning rate of the head
  inner.optimizer = 'sgd'  # sgd, adam, rmsprop
  inner.momentum = 0.0  # heavy ball; the buffer starts at 0 in every task
  inner.b1 = 0.9  # decay of the first moment of adam
  inner.b2 = 0.999  # decay of the second moment of adam and rmsprop
  inner.eps = 1e-8  # added to the square root of the second moment
  # Added to the second moment inside the square root; with 0, second
  # derivatives are NaN where a gradient is exactly 0.
  inner.eps_root = 1e-8
  inner.weight_decay = 0.0  # L2, added to the gradient
  inner.proximal = 0.0  # pull to the initial parameters: lambda of iMAML
  # Patterns of parameters that are meta-learned but not adapted, matched
  # against consecutive parts of paths such as encoder/conv1/bn/bias: 'bn',
  # 'encoder', 'encoder/conv[12]'. '!x' freezes all that no such pattern
  # matches. A pattern without a match is an error.
  inner.frozen = ()
  # How the head starts in every task: learned, by the outer loop; zero; or
  # prototype, from the class means of the support features.
  inner.head = 'learned'
  inner.zero = ()  # patterns of parameters that start at 0 in every task
  # Learning rates that the outer loop learns, starting at those above: none;
  # group (encoder, classifier), tensor, parameter (each entry).
  inner.learn_lr = 'none'
  inner.lr_bounds = ()  # (lowest, highest) learned rate
  # Values of their own in each step: 'lr' for learned rates, and patterns of
  # frozen parameters, such as 'bn'. Further steps use those of the last one.
  inner.per_step = ()
  inner.precondition = 'none'  # kronecker: learned matrices per axis
  inner.rule = 'none'  # alfa: rates and decay from weights and gradients
  inner.class_weights = 'none'  # balanced: same weight for each class
  inner.remat = False  # recompute inner steps: less memory, more time
  # Compile each inner step separately. Without inner.remat and
  # inner.mixed_mode, training does so for up to 10 steps on GPUs, 5 on TPUs.
  inner.unroll = False
  # Second derivatives in forward-over-reverse mode: the same numbers up to
  # rounding, and as little memory as with remat.
  inner.mixed_mode = False

  # The outer loop learns the initialization.
  config.outer = outer = ConfigDict()
  # exact; first_order: inner gradients are constants (FOMAML); reptile: initial
  # minus adapted parameters; implicit: of the minimum with inner.proximal.
  outer.gradient = 'exact'
  outer.first_order_epochs = 0  # with first_order, before exact
  # Query losses that count: last, after the last inner step; all, after each
  # step, with weights that move to the last one over loss_epochs.
  outer.loss_steps = 'last'
  outer.loss_epochs = 0  # of all
  outer.temperature = 1.0  # divides the logits of the outer loss
  outer.cg_steps = 20  # maximum of conjugate gradients, for implicit
  outer.cg_damping = 0.0  # added to the diagonal of their linear system
  outer.optimizer = 'adam'  # sgd, rmsprop, adam, adamw
  outer.lr = 1e-3  # learning rate
  # (pattern, factor) pairs: factors on the learning rate of parameters, the
  # first match wins; 0 = not trained. For example (('inner/lr', 0.1),).
  outer.lr_scale = ()
  outer.momentum = 0.9  # of sgd
  outer.weight_decay = 0.0  # L2, added to the gradient; adamw: decoupled
  outer.clip_value = 10.0  # clip each gradient component; inf = never
  outer.schedule = 'constant'  # constant, step, cosine; changes between epochs
  # step: epochs at which lr is multiplied by gamma; cosine: the last one is the
  # epoch at which lr reaches 0, default the end of the training.
  outer.milestones = ()
  outer.gamma = 0.1  # factor of the step schedule
  outer.warmup_epochs = 0  # linear warmup from 0, per meta-iteration

  config.train = train = ConfigDict()
  train.num_epochs = 10  # each ends with a validation and a checkpoint
  train.steps_per_epoch = 100  # meta-iterations
  train.meta_batch_size = 4  # tasks per meta-iteration, over all devices
  train.tasks_per_chunk = 0  # tasks vectorized at a time; 0 = automatic
  train.steps_per_call = 10  # maximum number of meta-iterations per jitted call
  train.init_from = ''  # checkpoint with initial parameters; '' = random ones

  # What is trained: tasks, by meta-training; classes, a classifier of all
  # training classes (pre-training, see --mode=pretrain).
  train.objective = 'tasks'

  # Pre-training. Each meta-iteration has train.meta_batch_size batches, which
  # are normalized separately, augmented by data.augment_query.
  config.pretrain = pretrain = ConfigDict()
  pretrain.batch_size = 32  # images of a batch
  # cosine: model.temperature times those of features and weights; linear.
  pretrain.head = 'cosine'
  pretrain.label_smoothing = 0.1  # probability spread over all classes

  # Validation selects the best checkpoint.
  config.val = val = ConfigDict()
  val.num_tasks = 200  # distinct tasks, the same every time
  val.ways = task.get_oneway_ref('ways')  # default: as in training
  val.shots = task.get_oneway_ref('shots')  # default: as in training
  val.queries = 15  # query images per class
  val.num_steps = inner.get_oneway_ref('num_steps')  # default: as in training
  val.augment_support = 'none'  # as data.augment_support

  # Evaluation, --mode=eval.
  config.eval = evaluation = ConfigDict()
  # Another data set to evaluate on, as data.name; '' = that of the training.
  # Its images are converted to the size and channels of the model.
  evaluation.data = ''
  # As data.root, for eval.data; '' = as data.root, unless that is a directory
  # of images. Required for `folder` if the training is on another data set.
  evaluation.data_root = ''
  evaluation.split = 'test'  # train, val, test
  evaluation.checkpoint = 'best'  # best (on validation), latest
  # Distinct tasks, the same every time; 0 = 10,000, or 600 on CPUs.
  evaluation.num_tasks = 0
  evaluation.ways = task.get_oneway_ref('ways')  # default: as in training
  evaluation.shots = task.get_oneway_ref('shots')  # default: as in training
  evaluation.queries = 15  # query images per class
  # Inner steps; default: as in training.
  evaluation.num_steps = inner.get_oneway_ref('num_steps')
  evaluation.augment_support = 'none'  # as data.augment_support
  evaluation.norm = model.get_oneway_ref('norm')  # default: as in training
  # Number of tasks on which accuracy and loss are measured after each step.
  evaluation.curve_tasks = 100
  # Also evaluate baselines on the same tasks: no adaptation; nearest centroid,
  # SimpleShot, a linear and a cosine head on the features of the encoder.
  evaluation.baselines = False
  # Evaluate a grid of norm modes x queries per class x inner steps instead.
  evaluation.grid = False
  evaluation.grid_norms = ()  # () = all whose statistics the checkpoint has
  evaluation.grid_queries = (1, 5, 15)  # per class
  evaluation.grid_steps = (0, 1, 5, 10)  # inner steps

  return config.lock()
