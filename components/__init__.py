"""The steps as Kubeflow sees them: typed artifacts around the functions of `iusp.steps`."""

from functools import partial

from kfp.dsl import component

# The graph gives every task its true image; nothing is installed when a task starts.
step = partial(component, base_image="iusp", install_kfp_package=False)
