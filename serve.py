"""Serve the dashboard: ``python serve.py [PORT]`` for this machine alone, as ``make run`` does; ``--address 0.0.0.0 --expose`` for others too."""

import argparse
import errno
import importlib
import logging
import os
import socket
import sys
from pathlib import Path

from backend.errors import BackendError
from backend.hosting import door, exposure


def _bring_libraries() -> None:
    """What the pages share takes two seconds to import, so it is there before the first visitor is."""
    logging.getLogger("streamlit.runtime.caching.cache_data_api").setLevel(logging.ERROR)  # it warns of functions that are there before the server
    for name in ("duckdb", "pyarrow.parquet", *(f"pages.shared.{path.stem}" for path in Path("pages/shared").glob("[!_]*.py"))):
        importlib.import_module(name)


def main() -> int:
    """Check address and port, say what is opened, then hand over to Streamlit."""
    parser = argparse.ArgumentParser(description="Serve PersonaScope on this machine.")
    parser.add_argument("port", nargs="?", default=os.environ.get("PORT") or "8501", help="a number from 1 to 65535; default: the variable PORT, else 8501")
    parser.add_argument("--address", default=exposure.LOOPBACK, help="where to listen; 0.0.0.0 stands for all addresses of this machine")
    parser.add_argument("--expose", action="store_true", help="let other machines in, where the address is one that they can reach")
    options = parser.parse_args()
    text, address = options.port, options.address
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        print(f"PORT is {text!r}; give a number from 1 to 65535, such as PORT=8600.", file=sys.stderr)
        return 1
    os.chdir(Path(__file__).parent)
    try:
        exposure.check_address(address, is_exposed=options.expose)
        is_hosted, said = exposure.is_hosted(), exposure.said_of(address, int(text), door.said_of_sign_in())
    except BackendError as fault:
        print(fault, file=sys.stderr)
        return 1
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, int(text)))
        except OSError as fault:
            if isinstance(fault, socket.gaierror) or fault.errno == errno.EADDRNOTAVAIL:
                print(f"This machine has no address {address!r} ({fault.strerror}). Give one of its own; 0.0.0.0 stands for all.", file=sys.stderr)
                return 1
            print(f"Port {text} cannot be used ({fault.strerror}). Choose another: make run PORT={int(text) % 65000 + 1}", file=sys.stderr)
            return 1
    os.environ |= {exposure.SERVED: "1", "STREAMLIT_SERVER_PORT": text, "STREAMLIT_SERVER_ADDRESS": address}
    if not exposure.is_loopback(address):
        os.environ |= {"STREAMLIT_BROWSER_SERVER_ADDRESS": exposure.space_host() or address, "STREAMLIT_SERVER_ALLOWED_HOSTS": "*"}
    if is_hosted:
        exposure.close_for_visitors()

    import click
    from streamlit.web import cli

    _bring_libraries()
    print(said, flush=True)
    sys.argv = ["streamlit", "run", "app.py"]
    try:
        cli.main(standalone_mode=False)
    except click.Abort:  # Ctrl-C
        print("Stopped.")
    except click.ClickException as fault:  # an option of Streamlit's in the environment that is none
        fault.show()
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
