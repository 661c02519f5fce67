"""Errors that are reported in one line, without a traceback. The line names the file, the key or the utterance."""

from __future__ import annotations


class NgsgdError(Exception):
    """Base class of the project's errors; the programs print the message and exit with status 1."""


class ConfigError(NgsgdError):
    """A setting is unknown, of the wrong type, out of range or inconsistent with others."""


class DataError(NgsgdError):
    """A corpus or an archive of examples is malformed, inconsistent or empty."""


class UtteranceError(DataError):
    """One utterance cannot be used; it is dropped and counted."""


class ModelError(NgsgdError):
    """A model file is truncated, of another format, or does not match its use."""


class TrainingError(NgsgdError):
    """An iteration cannot continue, because the models of its jobs are unusable."""


class ClusterError(NgsgdError):
    """A cluster's scheduler does not respond or rejects a request."""
