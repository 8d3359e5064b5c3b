"""Files, archives, tables, S3, HTTP and processes. It knows nothing of audio, networks or MLflow."""
