"""Say what a recording sounds like, then reason about it in words."""
__version__ = "0.1.0"

from importlib import import_module

_HOME = dict(describe='captioner.describe', Description='captioner.describe', Captioner='captioner.model',
             Reasoner='reasoner.model', Task='reasoner.tasks', TASKS='reasoner.tasks',
             load_encoder='encoder.audio_encoder', AudioEncoder='encoder.audio_encoder',
             Setup='pipeline.scales', reproduce='pipeline.report')
__all__ = list(_HOME)


def __getattr__(name):
    "A short name is loaded when it is asked for: `from logocentric import describe` does not import the reasoner."
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOME[name]}'), name)


def __dir__(): return sorted([*globals(), *_HOME])
