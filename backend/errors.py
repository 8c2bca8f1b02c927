"""What can go wrong, as one tree. Pages and the command line catch ``BackendError`` alone.

Every message is one or two clear sentences: what is wrong, and the next step.

- BackendError
  - ConfigError            a TOML record or a setting is wrong
  - InputError             what the user gave cannot be used
    - ContextLengthError   a prompt is longer than the model can read
  - WeightsError           weights are not usable
    - WeightsMissingError  they are not on this machine; ``command`` brings them
    - AdapterMismatchError an adapter does not fit its base model
  - DownloadError          a download failed or was not what was expected
  - DiskError              the disk is full or not writable
  - MemoryBudgetError      a model or a request does not fit
  - JudgeError             a judge cannot judge at all: wrong key, no such model, no server
  - ResultMissingError     a stored result is not there; ``command`` makes it
"""


class BackendError(Exception):
    """Any fault a user can be told about."""


class ConfigError(BackendError):
    """A TOML record or a setting is wrong."""


class InputError(BackendError):
    """What the user gave cannot be used."""


class ContextLengthError(InputError):
    """A prompt is longer than the model can read."""


class WeightsError(BackendError):
    """Weights are not usable."""


class WeightsMissingError(WeightsError):
    """Weights are not on this machine."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command
        """The shell command that brings them."""


class AdapterMismatchError(WeightsError):
    """An adapter does not fit its base model."""


class DownloadError(BackendError):
    """A download failed or was not what was expected."""


class DiskError(BackendError):
    """The disk is full or not writable."""


class MemoryBudgetError(BackendError):
    """A model or a request does not fit into the memory budget."""


class JudgeError(BackendError):
    """A judge cannot judge at all."""


class ResultMissingError(BackendError):
    """A stored result is not there."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command
        """The shell command that makes it."""
