"""MLflow: runs, registered versions, the promotion gate, serving; never how a network is trained."""
