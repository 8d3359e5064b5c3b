"""MLflow: runs, registered versions, the promotion gate, and serving. Independent of training."""
