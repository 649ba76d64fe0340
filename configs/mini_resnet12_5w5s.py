"""python main.py --config=configs/mini_resnet12_5w5s.py

As MAML of the ALFA paper. Expected: 69.76 +-0.46 % (Baik et al. 2020;
transductive, 600 tasks). Hardware: one GPU (theirs: above 27 GB). Time: not
measured."""

from configs import mini_resnet12_5w1s


def get_config():
  config = mini_resnet12_5w1s.get_config()
  config.task.shots = 5
  return config
