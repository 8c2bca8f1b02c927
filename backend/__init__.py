"""PersonaScope's library: everything the pages and the command line do. It never imports Streamlit."""

import os

# OpenMP threads that wait for each other spin for milliseconds by default. Beside a browser or another program that keeps one
# of two cores busy, a token then takes up to twenty times as long; with short spinning it takes twice as long, and no longer
# than before on an idle machine. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

__version__ = "0.1.0"
