"""PersonaScope's entry: run it with ``make run`` or ``streamlit run app.py``."""

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from streamlit.file_util import get_static_dir

from backend.hosting.preload import Preload

app = st.App("pages/router.py", middleware=[Middleware(Preload, static=Path(get_static_dir()))])
