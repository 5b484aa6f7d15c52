"""Whether PyTorch can use the GPU that the driver lists."""

import shutil
import subprocess
from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckResult, CheckTarget

_QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader")


def check(target: CheckTarget) -> Iterator[CheckResult]:
    """One result; PyTorch is imported only if there is a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        sentence = "no NVIDIA driver: runs use the CPU"
        yield CheckResult(check="gpu", level="skipped", sentence=sentence)
        return
    listing = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=60)
    names = ", ".join(listing.stdout.split("\n")).strip(", ")
    if listing.returncode or not names:
        sentence = "nvidia-smi lists no GPU: check the driver with `nvidia-smi`"
        yield CheckResult(check="gpu", level="warning", sentence=sentence)
        return
    import torch

    if torch.cuda.is_available():
        yield CheckResult(check="gpu", level="ok", sentence=f"PyTorch can use {names}")
    else:
        built = torch.version.cuda or "the CPU only"
        sentence = (
            f"the driver lists {names}, but PyTorch {torch.__version__}, built for {built}, cannot "
            "use it: update the driver, or install PyTorch for its version of CUDA"
        )
        yield CheckResult(check="gpu", level="broken", sentence=sentence)
