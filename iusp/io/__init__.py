"""Files, archives, S3, HTTP and processes; knows nothing of audio, networks or MLflow."""
