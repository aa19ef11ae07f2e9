"""What can go wrong in making examples and training on them, each with the remedy in its message.

RagError (index.errors)
├── ConfigInvalid         a key is unknown, a value out of range, or two settings contradict each other
├── RecordInvalid         a record of a dataset cannot be used; the message names file and line
├── DatasetEmpty          no examples are left to train, validate or evaluate on
├── CheckpointInvalid     a checkpoint or adapter is incomplete, or of another base model, method or prompt version
├── DoesNotFit            the run needs more memory than there is; the message names the setting to change
├── TrainingFailed        the loss is no number any more, or the run cannot go on
├── MethodInvalid         a method cannot do what is asked of it, such as being merged
├── ExportInvalid         a model cannot be written as a GGUF file
└── ProofFailed           what was exported is not the model that it was made of; nothing is published
"""

from index.errors import RagError


class ConfigInvalid(RagError):
    """A key is unknown, a value out of range, or two settings contradict each other."""


class RecordInvalid(RagError):
    """A record of a dataset cannot be used; the text begins with its file and line."""


class DatasetEmpty(RagError):
    """No examples are left to train, validate or evaluate on."""


class CheckpointInvalid(RagError):
    """A checkpoint or adapter is incomplete, or of another base model, method or prompt version."""


class DoesNotFit(RagError):
    """The run needs more memory than there is."""


class TrainingFailed(RagError):
    """The loss is no number any more, or the run cannot go on."""


class MethodInvalid(RagError):
    """A method cannot do what is asked of it."""


class ExportInvalid(RagError):
    """A model cannot be written as a GGUF file."""


class ProofFailed(RagError):
    """What was exported is not the model that it was made of; nothing is published."""
