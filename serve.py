"""Serve the dashboard on this machine: ``python serve.py [PORT]``. ``make run`` calls it."""

import os
import socket
import sys
from pathlib import Path


def main() -> int:
    """Check the port, then hand over to Streamlit."""
    text = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PORT") or "8501"
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        print(f"PORT is {text!r}; give a number from 1 to 65535, such as PORT=8600.", file=sys.stderr)
        return 1
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(text)))
        except OSError as fault:
            print(f"Port {text} cannot be used ({fault.strerror}). Choose another: make run PORT={int(text) % 65000 + 1}", file=sys.stderr)
            return 1
    os.chdir(Path(__file__).parent)

    from streamlit.runtime.pages_manager import PagesManager
    from streamlit.web import cli

    # Streamlit would take the folder `pages/` for its old kind of multipage app and tell the first visitor of a fresh
    # server that a deep link's page is not found. `st.navigation` switches this off too, but only after that visit.
    PagesManager.uses_pages_directory = False
    print(f"PersonaScope: http://127.0.0.1:{text}", flush=True)
    sys.argv = ["streamlit", "run", "app.py", "--server.port", text]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
