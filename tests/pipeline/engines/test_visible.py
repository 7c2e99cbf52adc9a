"""A process uses the GPUs that are its own."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from pipeline.engines import gpus_visible


@pytest.mark.parametrize("given", [[], [1]])
def test_a_worker_of_ray_uses_the_gpus_that_it_was_given_and_the_command_all_that_it_sees(
    local_ray: None, given: list[int]
) -> None:
    import ray

    def seen() -> int:
        with patch("torch.cuda.device_count", return_value=2), patch("ray.get_gpu_ids", return_value=given):
            return gpus_visible()

    assert seen() == 2
    assert ray.get(ray.remote(num_cpus=0)(seen).remote()) == len(given)
