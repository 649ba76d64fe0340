"""python main.py --config=configs/cifar_fs_5w5s.py

mini_5w5s on CIFAR-FS, 32 pixels wide. Expected: 71.5 +-1.0 % (MAML in
Bertinetto et al. 2019). Hardware: one GPU. Time: not measured."""

from configs import mini_5w5s


def get_config():
  config = mini_5w5s.get_config()
  config.data.name = 'cifar_fs'
  return config
