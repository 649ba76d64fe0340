"""Names of directories with characters that programs tend to misread."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CHARACTERS = 'ab .-~[]{}()*?!$%#&@\'"\\|;:,=<>^`\t\u00e9\u6f22'
NAMES = st.text(CHARACTERS, min_size=1, max_size=8).filter(
  lambda name: name not in ('.', '..')
)
SETTINGS = settings(
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=list(HealthCheck),
)


def as_argument(name: str) -> str:
  """Returns a name as a user writes it: a leading ~ is the home directory."""
  return f'./{name}' if name.startswith('~') else name
