"""What can go wrong for a user. Each message says what, why and the remedy.

    RollforceError
    ├── ConfigError (ValueError)     a setting, an override, a prompt or an argument cannot be used
    │   └── ShapeError               a size does not fit the model's geometry
    ├── DoesNotFit (MemoryError)     the device has not the memory for what was asked
    ├── CheckpointError              weights are missing, of another kind, or of another size
    ├── SnapshotError                a saved stream does not belong to this model or version
    ├── SessionClosed                a session was used after it was closed
    └── TrainingError                training cannot go on: numbers that are not finite, a checkpoint of another run
"""


class RollforceError(Exception):
    """Root of every error that rollforce raises for a user's mistake."""


class ConfigError(RollforceError, ValueError):
    """A setting, an override, a prompt or an argument cannot be used."""


class ShapeError(ConfigError):
    """A size does not fit the model's geometry."""


class DoesNotFit(RollforceError, MemoryError):
    """The device has not the memory for what was asked."""


class CheckpointError(RollforceError):
    """Weights are missing, of another kind, or of another size."""


class SnapshotError(RollforceError):
    """A saved stream does not belong to this model or version."""


class SessionClosed(RollforceError):
    """A session was used after it was closed."""


class TrainingError(RollforceError):
    """Training cannot go on: numbers that are not finite, or a checkpoint of another run."""
