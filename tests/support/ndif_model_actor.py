"""The model actor of the NDIF server of the tests: float32 weights on the CPU.

Its module is imported by the server's processes, in an environment without this package and its tests.
"""

from __future__ import annotations

import gc

import ray
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel


class CpuModelDeployment(BaseModelDeployment):
    """NDIF's own deployment without its calls of CUDA, which fail where there is none."""

    CACHEABLE = False

    def load_from_disk(self) -> HuggingFaceModel:
        """Load the weights; as on a GPU, no parameter takes a gradient."""
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    def cleanup(self) -> None:
        """Forget the request that was served."""
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


@ray.remote(num_cpus=1, max_restarts=-1)
class CpuModelActor(CpuModelDeployment):
    """What the controller deploys."""
