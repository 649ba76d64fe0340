"""The one exception whose message is meant for the person at the terminal."""


class UserError(ValueError):
  """Bad input: `main.py` prints the message alone, without a traceback."""
