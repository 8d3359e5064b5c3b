"""How a step reports while it runs; the library never prints."""

from collections.abc import Mapping


class Reporter:
    """Receives the progress of a step and the epochs of a training. This one ignores both.

    The command line has a subclass that draws progress bars and logs epochs to MLflow.
    """

    def progress(self, task: str, done: int, total: int, message: str = "") -> None:
        """Receive how much of a task is done.

        Args:
            task: name of the task, for people.
            done: units that are done.
            total: units of the whole task.
            message: a line worth keeping in a log, or an empty text.
        """

    def warning(self, message: str) -> None:
        """Receive something that the user should know and that does not stop the step.

        Args:
            message: one line.
        """

    def epoch(self, network: str, row: Mapping[str, float], epochs: int) -> None:
        """Receive the training record of an epoch that has ended.

        Args:
            network: `teacher`, or `<student>-seed-<n>`.
            row: epoch (from 1), learning rate, mean of each loss, micro-averaged AUPRC on validate.
            epochs: largest number of epochs of this training.
        """
