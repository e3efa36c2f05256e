"""No tensor of a step is on the wrong device, and the host runs ahead of the GPU: without a GPU.

On a CPU machine every tensor is on the one device there is: other tests cannot see a mask that was
made on the CPU for hidden states on the GPU, nor a number that is read from the device amid a
schedule, which leaves the GPU without work.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.dist.whole_runs import ROOT

LIBRARY = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>

namespace at {
struct Pretended : CUDAHooksInterface {
  explicit Pretended(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex deviceCount() const override { return 1; }
  long versionRuntimeCuDNN() const override { return 91900; }
};
// Before that of a torch that is built for CUDA.
static const bool is_registered = [] {
  const auto create = [](CUDAHooksArgs args) -> std::unique_ptr<CUDAHooksInterface> {
    return std::make_unique<Pretended>(args);
  };
  CUDAHooksRegistry()->Register("CUDAHooks", create, c10::REGISTRY_PREFERRED);
  return true;
}();
}  // namespace at

static c10::impl::FakeGuardImpl<c10::DeviceType::CUDA> guard;
static c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);
"""
"""Tells a CPU build of torch that there is a GPU: what the backward pass asks before it begins."""

MEMORY = ["memory.num_mem_tokens=4", "memory.max_n_segments=3"]
TENSOR, SEQUENCE, PIPELINE, CONTEXT = (
    f"parallel.{name}"
    for name in (
        *("tensor_model_parallel_size=2", "sequence_parallel=true"),
        *("pipeline_model_parallel_size=2", "context_parallel_size=2"),
    )
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if torch.cuda.device_count():
        pytest.skip("there is a GPU: run `make test-gpu`")
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler (apt-get install g++)")
    folder, root = tmp_path_factory.mktemp("pretended"), Path(torch.__file__).parent
    (folder / "pretended.cpp").write_text(LIBRARY)
    command = ["c++", "-std=c++20", "-shared", "-fPIC", f"-I{root}/include", "pretended.cpp"]
    command += [f"-L{root}/lib", f"-Wl,-rpath,{root}/lib", "-ltorch_cpu", "-lc10"]
    subprocess.run([*command, "-o", "pretended.so"], cwd=folder, check=True)
    return folder / "pretended.so"


@pytest.mark.parametrize(
    ("rank", "world_size", "num_segments", "overrides"),
    [
        (0, 1, 1, []),
        (0, 1, 3, [*MEMORY, "memory.update=binary", "train.recompute_granularity=selective"]),
        (3, 4, 1, [TENSOR, SEQUENCE, PIPELINE, "model.global_attn_every_n_layers=2"]),
        (3, 4, 3, [*MEMORY, CONTEXT, PIPELINE, "train.precision=fp32"]),
        (7, 8, 3, [*MEMORY, TENSOR, SEQUENCE, PIPELINE, "train.recompute_granularity=full"]),
    ],
)
def test_a_step_stays_on_the_device(
    library: Path, rank: int, world_size: int, num_segments: int, overrides: list[str]
) -> None:
    """One wait for the sums and one for the norm; Megatron-Core 0.16 has one between them."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.dist.pretended_cuda"),
            *map(str, (rank, world_size, num_segments)),
            *overrides,
        ],
        cwd=ROOT,
        env=os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    if found["train"][0] == "finalize_model_grads":  # all gradients are there
        del found["train"][0]
    assert found == {
        "devices": ["cuda:0"],
        "train": ["run_step"],
        "update": ["get_grad_norm_fp32"],
        "evaluate": ["run_step"],
    }
