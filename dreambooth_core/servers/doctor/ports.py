"""The stack's ports: free, or used by the stack itself."""

from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckResult, CheckTarget
from dreambooth_core.servers.process import is_free
from dreambooth_core.servers.stack import state
from dreambooth_core.servers.stack.settings import FIRST_PORT, ports_in_use


def check(target: CheckTarget) -> Iterator[CheckResult]:
    """One result per port used by another program, else one."""
    import psutil

    if target.settings is None:
        sentence = f"chosen by the first `dreambooth up`: from {FIRST_PORT}, if free"
        yield CheckResult(check="ports", level="skipped", sentence=sentence)
        return
    own = {
        connection.laddr.port
        for pid in state.marked(target.folder)
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    ports = ports_in_use(target.settings)
    used = [port for port in ports if port not in own and not is_free(port)]
    for port in used:
        sentence = (
            f"port {port} of 127.0.0.1 is used by another program: end it (`lsof -i :{port}` "
            "lists it), or use a new --folder with another --port"
        )
        yield CheckResult(check="ports", level="broken", sentence=sentence)
    if not used:
        sentence = f"{ports[0]} to {ports[-1]} are free or used by the stack"
        yield CheckResult(check="ports", level="ok", sentence=sentence)
