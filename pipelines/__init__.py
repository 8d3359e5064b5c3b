"""The Kubeflow graph, and the command line that compiles, runs and submits it."""
