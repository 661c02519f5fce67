"""What goes wrong through the user's input: one clear line that names the file, the key or the utterance."""

from __future__ import annotations


class NgsgdError(Exception):
    """The base of the project's own errors: the programs print its text and end with exit status 1."""


class ConfigError(NgsgdError):
    """A setting is unknown, of the wrong type, out of range, or does not go with the others."""


class DataError(NgsgdError):
    """A corpus or an archive of examples is malformed, inconsistent or empty."""


class UtteranceError(DataError):
    """One utterance cannot be used: it is left out, and counted."""


class ModelError(NgsgdError):
    """A model file is truncated, foreign or does not fit what it is used for."""


class TrainingError(NgsgdError):
    """An iteration cannot go on: what its jobs made is of no use."""


class ClusterError(NgsgdError):
    """A cluster's scheduler does not answer, or refuses."""
