import streamlit as st
st.title("PersonaScope")
