"""python main.py --config=configs/mini_proto_net.py --checkpoint=CHECKPOINT

ProtoNet with cosines from a pre-trained encoder, see mini_pretrain (Chen et al.
2021, arXiv 2003.04390). Expected: 66.92 % (5-way 5-shot, SimpleShot CL2N, Wang
et al. 2019). Hardware: 2 CPU cores. Time: 0.2 it/s beside other work."""

from maml_jax.config import load_preset


def get_config():
  config = load_preset('proto_net')
  config.data.augment_support = config.data.augment_query = 'random_crop'
  config.model.update(encoder='wide_convnet4', normalize_features=True)
  config.model.temperature = 10.0
  config.task.update(ways=20, shots=5, queries=5)
  config.outer.update(lr=2e-4, schedule='cosine')
  config.train.update(num_epochs=20, steps_per_epoch=50, meta_batch_size=1)
  config.val.update(ways=5, num_tasks=200)
  config.eval.update(ways=5, queries=15)
  return config
