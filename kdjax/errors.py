"""The one error class for mistakes that a user can mend."""


class KdjaxError(ValueError):
  """A mistake in a config, a file or an argument, told in one message.

  The message names the field or path, the value found, the value wanted and the remedy. The
  programs under `launch/` print it without a traceback and exit with status 2.
  """
