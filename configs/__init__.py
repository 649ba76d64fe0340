"""Presets: `python main.py --config=configs/NAME.py`."""
