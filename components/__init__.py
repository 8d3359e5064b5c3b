"""The Kubeflow components: functions of `iusp.steps` with typed artifacts as inputs and outputs."""

from functools import partial

from kfp.dsl import component

# The graph sets the image of every task. Nothing is installed when a task starts.
step = partial(component, base_image="iusp", install_kfp_package=False)
