"""The Kubeflow pipeline: its graph, and the commands that compile, run and submit it."""
