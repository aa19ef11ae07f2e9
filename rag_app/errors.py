"""What can go wrong while answering, each with the remedy in its message.

RagError (index.errors)
├── ModelNotFound         no model file at the path, or the bundled one is not installed
├── ModelInvalid          the file is not a GGUF, is cut, or lacks a chat template
├── SettingInvalid        a setting, strategy or tool is unknown, out of range, or one that the engine lacks
├── ServerFailed          the model's server is down, slow, refuses, or breaks off
├── PromptTooLong         the question alone does not fit the model's window
├── WorkerDied            the process that runs the model ended in the middle of an answer
├── AdapterNotFound       no adapter has that name
├── AdapterInvalid        an adapter is damaged, or of another base model, prompt version or kind
├── AdapterWorse          an adapter answers worse than what is in use
├── ChatNotFound          no conversation has that id, or no answer that number; or several begin with it
└── ChatsUnusable         conversations cannot be read or kept: a full disk, a damaged or foreign file
"""

from index.errors import RagError


class ModelNotFound(RagError):
    """No model file where one was expected."""


class ModelInvalid(RagError):
    """The model file cannot be served."""


class SettingInvalid(RagError):
    """A setting, strategy, tool or file of settings is unknown, out of range, or one that the engine lacks."""


class ServerFailed(RagError):
    """The server that runs the model is down, slow, refuses, or broke off; retries did not help."""


class PromptTooLong(RagError):
    """The question alone does not fit the model's context window."""


class WorkerDied(RagError):
    """The process that runs the model ended; the next question starts a new one."""


class AdapterNotFound(RagError):
    """No adapter has that name."""


class AdapterInvalid(RagError):
    """An adapter is damaged, or of another base model, prompt version or kind than what it is wanted for."""


class AdapterWorse(RagError):
    """An adapter answers worse than what is in use, and was not put in its place."""


class ChatNotFound(RagError):
    """No conversation has that id or no answer that number, or several conversations begin with it."""


class ChatsUnusable(RagError):
    """Conversations cannot be read or kept."""
