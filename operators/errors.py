"""The errors that a user can do something about; everything else is a bug or a broken machine.

InputError     the config or an input is wrong: the first line says what to do     exit code 2
GateMissed     the work is done, but a promise was missed (too many rejected rows)  exit code 3
"""


class InputError(ValueError):
    """The config or an input is wrong and nothing was written; the first line of the message says what to do."""


class GateMissed(Exception):
    """A gate of the config was missed; the message says whether the output is in place."""
