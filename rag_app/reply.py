"""An answer as far as it has come, from the events that have come; what is kept of it, whole or not."""

from dataclasses import dataclass

from rag_app.answer import Answer, Done, Event, Found, Query, StepTaken, Token
from rag_app.chats import Turn


@dataclass
class Reply:
    """An answer as far as it has come."""

    so_far: Answer
    done: bool = False
    error: str = ""

    def take(self, event: Event) -> None:
        """Takes in what an event tells."""
        match event:
            case Query():
                self.so_far.query = event.text
            case Found():
                self.so_far.hits = event.hits
            case StepTaken():
                self.so_far.steps.append(event.step)
            case Token():
                self.so_far.answer += event.text
            case Done():
                self.so_far, self.done = event.answer, True

    def turn(self) -> Turn:
        """What is kept of it."""
        stopped = not self.done and not self.error
        details = {**self.so_far.as_dict(), "error": self.error, "stopped": stopped}
        return Turn("assistant", self.so_far.answer, details)
