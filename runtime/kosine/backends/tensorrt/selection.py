"""Which of a bundle's TensorRT plans runs on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from kosine.backends.device import first_line
from kosine.bundle.plans import FLAVOURS, TensorRTPlan
from kosine.errors import BackendUnavailable, MissingExtra, MissingTarget, PlanMismatch

__all__ = ["choose_plan", "find_flavours", "installed_flavours"]

TARGET = "tensorrt-fp16"
INSTALL = "pip install 'kosine[tensorrt]'"


def installed_flavours(plans: Sequence[TensorRTPlan], bundle_name: str) -> dict[str, Any]:
    """The TensorRT modules, by flavour, that `plans` need and this machine has; at least one.

    Raises:
        MissingTarget, MissingExtra: As `find_flavours`.
        BackendUnavailable: One is installed and cannot be imported.
    """
    found = {}
    for flavour in find_flavours(plans, bundle_name):
        try:
            found[flavour] = import_module(FLAVOURS[flavour])
        except (ImportError, OSError) as error:
            raise BackendUnavailable(
                f"the module {FLAVOURS[flavour]} cannot be imported: {first_line(error)}",
                remedy=f"reinstall it: {INSTALL}",
            ) from error
    return found


def find_flavours(plans: Sequence[TensorRTPlan], bundle_name: str) -> list[str]:
    """The flavours that `plans` need and this machine has, none of them imported; at least one.

    Raises:
        MissingTarget: There are no plans.
        MissingExtra: None of the modules is installed.
    """
    if not plans:
        raise MissingTarget(
            f"{bundle_name} has no TensorRT plan",
            limit=f"backend 'tensorrt' needs target {TARGET}",
            remedy=f"export it again with --target {TARGET}, on this machine",
        )
    wanted = list(dict.fromkeys(plan.flavour for plan in plans))
    found = [name for name in wanted if importlib.util.find_spec(FLAVOURS[name]) is not None]
    if not found:
        raise MissingExtra(
            f"backend 'tensorrt' needs {' or '.join(FLAVOURS[name] for name in wanted)}, "
            "which is not installed",
            limit=f"the bundle's plans are for {', '.join(wanted)}",
            remedy=INSTALL,
        )
    return found


def choose_plan(
    plans: Sequence[TensorRTPlan], versions: Mapping[str, str], architecture: str, gpu: str
) -> TensorRTPlan:
    """The first plan for this machine.

    Args:
        plans: The bundle's.
        versions: Version of each flavour that is installed.
        architecture: Compute capability of the GPU, for example "8.6".
        gpu: The GPU's name, for the message.

    Raises:
        PlanMismatch: None was built for this version and this GPU.
    """
    for plan in plans:
        if versions.get(plan.flavour) == plan.version and architecture in plan.architectures:
            return plan
    here = " and ".join(f"{flavour} {version}" for flavour, version in versions.items())
    built = "; ".join(
        f"{plan.flavour} {plan.version} on {', '.join(plan.architectures)}" for plan in plans
    )
    raise PlanMismatch(
        f"no TensorRT plan of the bundle fits {here} on {gpu} (compute capability {architecture})",
        limit=f"it has plans for {built}",
        remedy=f"run `kosine export CHECKPOINT BUNDLE --target {TARGET}` on this machine, or use "
        "backend='onnx' with device='cuda'",
    )
