"""The stack's ports: free, or its own."""

from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckResult, CheckTarget
from dreambooth_core.servers.process import is_free
from dreambooth_core.servers.stack import state
from dreambooth_core.servers.stack.settings import FIRST_PORT, ports_in_use


def check(site: CheckTarget) -> Iterator[CheckResult]:
    """One finding per port that another program has taken; else one in all."""
    import psutil

    if site.settings is None:
        sentence = f"chosen by the first `dreambooth up`: from {FIRST_PORT} on, if these are free"
        yield CheckResult(check="ports", level="skipped", sentence=sentence)
        return
    ours = {
        connection.laddr.port
        for pid in state.marked(site.folder)
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    ports = ports_in_use(site.settings)
    taken = [port for port in ports if port not in ours and not is_free(port)]
    for port in taken:
        sentence = (
            f"port {port} of 127.0.0.1 is taken by another program: end it (`lsof -i :{port}` "
            "names it), or start a new --folder with another --port"
        )
        yield CheckResult(check="ports", level="broken", sentence=sentence)
    if not taken:
        sentence = f"{ports[0]} to {ports[-1]} are free or our own"
        yield CheckResult(check="ports", level="ok", sentence=sentence)
