"""python main.py --config=configs/sinusoid.py --mode=demo

Regression of sine waves from 10 points (MAML paper, section 5.1): two hidden
layers of 40 units, one inner step. Expected: see RESULTS.md. Hardware: one
CPU core. Time: one minute."""

from maml_jax import default_config


def get_config():
  config = default_config.get_config()
  config.data.name = 'sinusoid'
  config.task.update(ways=1, shots=10, queries=10)
  config.model.encoder = 'mlp'
  config.inner.update(num_steps=1, encoder_lr=0.01, classifier_lr=0.01)
  config.train.update(num_epochs=70, steps_per_epoch=1000, meta_batch_size=25)
  config.train.update(tasks_per_chunk=25, steps_per_call=1000)
  config.val.update(num_tasks=600, queries=100)
  config.eval.update(num_steps=10, queries=100)
  return config
