"""Exceptions. Every error Deepwell raises on purpose is a DeepwellError; each kind is also the builtin that code which
does not know Deepwell would catch."""


class DeepwellError(Exception):
    """Base of every error that Deepwell raises."""


class InvalidArgumentError(DeepwellError, ValueError):
    """An argument breaks its documented contract; the text says what was expected."""


class UnsupportedError(DeepwellError, NotImplementedError):
    """A sensible request that nothing here serves: this version, this machine or this build lacks it."""


class OutOfMemoryError(DeepwellError, MemoryError):
    """An allocation failed."""


class SelftestError(DeepwellError, RuntimeError):
    """A kernel disagreed with the scalar reference."""


class DeviceError(DeepwellError, RuntimeError):
    """The GPU driver reported an error; the text carries its words."""
