"""Whether PyTorch can use the GPU that the driver knows."""

import shutil
import subprocess
from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckResult, CheckTarget

_QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader")


def check(site: CheckTarget) -> Iterator[CheckResult]:
    """One finding; PyTorch is loaded only where there is a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        sentence = "there is no NVIDIA driver: runs take place on the CPU"
        yield CheckResult(check="gpu", level="skipped", sentence=sentence)
        return
    asked = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=60)
    names = ", ".join(asked.stdout.split("\n")).strip(", ")
    if asked.returncode or not names:
        sentence = "nvidia-smi names no GPU: check the driver with `nvidia-smi`"
        yield CheckResult(check="gpu", level="warning", sentence=sentence)
        return
    import torch

    if torch.cuda.is_available():
        yield CheckResult(check="gpu", level="ok", sentence=f"PyTorch can use {names}")
    else:
        built = torch.version.cuda or "the CPU only"
        sentence = (
            f"the driver knows {names}, but PyTorch {torch.__version__}, built for {built}, cannot "
            "use it: update the driver, or install PyTorch for its version of CUDA"
        )
        yield CheckResult(check="gpu", level="broken", sentence=sentence)
