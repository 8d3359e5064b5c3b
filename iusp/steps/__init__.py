"""The steps of the pipeline: paths and a config in, files and a summary out."""
