"""python main.py --config=configs/fc100_5w5s.py

mini_5w5s on FC100, 32 pixels wide. Expected: no published number of this
setting. Hardware: one GPU. Time: not measured."""

from configs import mini_5w5s


def get_config():
  config = mini_5w5s.get_config()
  config.data.name = 'fc100'
  return config
