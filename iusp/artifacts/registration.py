"""`reports/registration.json`: what the registration step did."""

from iusp.artifacts.base import Artifact


class Promotion(Artifact):
    """Outcome of the automatic promotion of the challenger."""

    promoted: bool
    """Whether the challenger is the champion now."""
    reasons: list[str]
    """Reasons of the gate against it."""


class Registration(Artifact):
    """Versions of the registered model that this execution registered."""

    model_name: str
    """Name of the registered model."""
    versions: dict[str, int]
    """Version of each student, by name."""
    challenger: str
    """Student that has the alias `challenger`."""
    run_id: str
    """MLflow run of the whole execution."""
    promotion: Promotion | None = None
    """Outcome of the automatic promotion, if `registration.auto_promote` is set."""
