"""What is called of TensorRT and CUDA exists in them, and the tests' stand-ins are like them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import gpu_machine
from kosine.backends import gpu as cuda_module
from kosine.backends.tensorrt import engine as trt_engine
from kosine.bundle.plans import TensorRTPlan
from kosine.errors import BackendError


class TestNames:
    """What is called really exists in the libraries, where they are installed."""

    @pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
    def test_of_tensorrt(self, name):
        module = pytest.importorskip(name, reason=f"{name} is not installed")
        for owner, names in {
            module: "Runtime ICudaEngine IExecutionContext ILogger TensorIOMode nptype "
            "ExecutionContextAllocationStrategy __version__",
            module.Runtime: "deserialize_cuda_engine",
            module.ICudaEngine: "num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype "
            "num_optimization_profiles device_memory_size_v2 "
            "create_execution_context",
            module.IExecutionContext: "set_device_memory set_optimization_profile_async "
            "set_input_shape set_tensor_address execute_async_v3",
            module.ExecutionContextAllocationStrategy: "USER_MANAGED",
            module.TensorIOMode: "INPUT OUTPUT",
        }.items():
            assert [each for each in names.split() if not hasattr(owner, each)] == []
        assert module.nptype(module.int64) is np.int64
        if hasattr(module, "DynamicShapesKernelSpecializationStrategy"):
            for each in (
                "set_execution_context_allocation_strategy",
                "create_runtime_cache",
                "set_runtime_cache",
                "dynamic_shapes_kernel_specialization_strategy",
            ):
                assert hasattr(module.IRuntimeConfig, each)
            assert hasattr(module.ICudaEngine, "create_runtime_config")

    def test_a_logger_keeps_the_last_error(self):
        module = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
        logger = trt_engine._logger(module)
        logger.log(module.ILogger.Severity.ERROR, "bad plan\nmore")
        logger.log(module.ILogger.Severity.WARNING, "a remark")
        assert logger.last == "bad plan"

    def test_of_cuda_python(self):
        if importlib.util.find_spec("cuda") is None:
            pytest.skip("cuda-python is not installed")
        runtime = cuda_module.cuda_runtime()
        source = Path(cuda_module.__file__).read_text(encoding="utf-8")
        called = set(re.findall(r"\bcuda[A-Z]\w*", source))
        assert {"cudaMalloc", "cudaGraphLaunch", "cudaMemcpyAsync"} <= called
        modes = {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"}
        assert modes <= set(dir(runtime.cudaMemcpyKind))
        assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
        modes |= {"cudaStreamCaptureModeThreadLocal", "cudaSuccess"}
        assert [name for name in called - modes if not hasattr(runtime, name)] == []
        assert hasattr(runtime.cudaDeviceProp(), "major")

    def test_the_stand_ins_have_the_methods_of_the_real_ones(self):
        for real, fake in (
            (cuda_module.Cuda, gpu_machine.FakeCuda),
            (trt_engine.PlanEngine, gpu_machine.FakeEngine),
            (trt_engine.PlanContext,
             gpu_machine.FakeContext),
        ):  # fmt: skip
            public = [name for name in vars(real) if not name.startswith("_")]
            assert [name for name in public if not hasattr(fake, name)] == []


def test_what_is_no_plan_is_a_typed_error():
    module = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    plan = TensorRTPlan(
        "x.plan", "tensorrt-rtx", module.__version__, ("8.6",), gpu_machine.PROFILES
    )
    with pytest.raises(BackendError, match=r"cannot load x\.plan: ") as caught:
        trt_engine.PlanEngine(module, b"no plan" * 100, plan, gpu_machine.FakeCuda(0))
    assert "no reason given" not in str(caught.value)
    assert "\n" not in str(caught.value)
