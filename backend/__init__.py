"""PersonaScope's library: everything the pages and the command line do. It never imports Streamlit."""

__version__ = "0.1.0"
