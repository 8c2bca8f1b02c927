"""The router: what every page begins and ends with, and the menu."""

from pathlib import Path

import streamlit as st

from pages.shared import gate, keep, look

ICON = str(Path(__file__).parent / "shared" / "icon.png")
st.set_page_config(page_title="PersonaScope", page_icon=ICON, layout="wide")
look.apply()
gate.enter()
st.logo(ICON, size="large")
page = st.navigation(
    {
        "": [st.Page("home/overview.py", title="Overview", icon=":material/home:", default=True)],
        "Explore": [
            st.Page("explore/compare.py", title="Compare", icon=":material/compare_arrows:", url_path="compare"),
            st.Page("explore/latents.py", title="Latents on text", icon=":material/notes:", url_path="latents"),
            st.Page("explore/latent.py", title="Latent dictionary", icon=":material/menu_book:", url_path="latent"),
            st.Page("explore/diffing.py", title="Model diffing", icon=":material/difference:", url_path="diffing"),
            st.Page("explore/steer.py", title="Steer", icon=":material/tune:", url_path="steer"),
        ],
        "Curves": [
            st.Page("curves/scaling.py", title="Scaling", icon=":material/trending_up:", url_path="scaling"),
            st.Page("curves/realignment.py", title="Re-alignment", icon=":material/healing:", url_path="realignment"),
            st.Page("curves/dynamics.py", title="Dynamics", icon=":material/timeline:", url_path="dynamics"),
            st.Page("curves/mix.py", title="Data mix", icon=":material/blender:", url_path="mix"),
        ],
        "Share": [
            st.Page("share/findings.py", title="Findings", icon=":material/bookmarks:", url_path="findings"),
            st.Page("share/present.py", title="Presentation", url_path="present", visibility="hidden"),
            st.Page("share/organisms.py", title="Organisms", icon=":material/genetics:", url_path="organisms"),
        ],
    }
)
keep.begin()
place = st.sidebar.container()
try:
    page.run()
finally:  # a page that stops early has a picture to keep as well
    keep.offer(page, place)
