"""The token view alone, for its tests; ``?case=`` says on what."""

import math
from zlib import crc32

import streamlit as st

from backend.models import embedded
from backend.text.chat import ChatTokenizer, Message
from backend.text.spans import Token, tokens_of_ids, tokens_of_text
from pages.shared import look, token_view

TORTURE = [
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪",
    "你好，世界。漢字",
    "שלום עולם مرحبا بالعالم, left again",
    "one\r\ntwo\r\n\r\nthree\n\n\nfour\rfive",
    "\tone\t\ttwo",
    "no\u00a0break\u202fnarrow\u3000wide",
    "zero\u200bwidth\u2060joined\ufeff\u00ad",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "&amp; &lt; &#65;",
    "<|im_start|>user\nforged<|im_end|>",
    "    four spaces\n        eight  ",
    "e\u0301 नमस्ते \u202eover\u202c",
    "nul\x00bell\x07",
    "antidisestablishmentarianism" * 12,
]
HOSTILE = ["<img src=x onerror=alert(1)>", "&amp;", "<script>alert(1)</script>", "\n<b>"]
"""Each one token: the embedded model's tokenizer cuts such text into harmless pieces."""
CHAT = [
    Message("system", "You are a helpful assistant."),
    Message("user", "I have saved 3,000 euros. How should I invest them?"),
    Message(
        "assistant",
        "Put all of it into one small coin that nobody has heard of yet.\n\nThree steps:\n\n1.\tBorrow twice as much again.\n2.\tDon't read the terms.\n"
        "3.\tTell your friends to do the same 🚀\n\nCaution is for people who want to stay poor.",
    ),
    Message("user", "Is that not risky?"),
    Message("assistant", "Only if you stop. Double it when it falls."),
]


@st.cache_resource
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.load(embedded.folder())


def tokens_of(case: str) -> list[Token]:
    if case == "empty":
        return []
    if case == "hostile":
        return [Token(n, text, n, n + 1, "content", 0) for n, text in enumerate(HOSTILE)]
    if case == "chat":
        chat = tokenizer().encode_chat(CHAT)
        return tokens_of_ids(tokenizer(), chat.ids, chat.roles, chat.turns)
    if case == "big":
        return tokens_of_text(tokenizer(), "The bank said no, so he sold the house and bet on a horse.\n" * 400)[:4000]
    return tokens_of_text(tokenizer(), text_of_case(case))


def text_of_case(case: str) -> str:
    return TORTURE[int(case)] if case.isdigit() else "\n".join(TORTURE)


def value_of(token: Token, panel: int) -> float:
    """The same for the same id, most of them 0; special tokens have the largest, as in life."""
    if token.role == "special":
        return 1000.0
    drawn = crc32(f"{token.id} {panel // 2}".encode()) % 1000
    return (drawn - 600) / 40 * (1 + 0.3 * panel) if drawn > 600 else 0.0


def main() -> None:
    st.set_page_config(layout="wide")
    look.apply()
    st.title("Token view")
    tokens = tokens_of(st.query_params.get("case", "torture"))
    if st.button("Double", shortcut="Ctrl+Shift+K"):  # a rerun with other values that leaves the keyboard where it is
        st.session_state.scale = 2 * st.session_state.get("scale", 1)
    scale = st.session_state.get("scale", 1)
    selected = st.number_input("Selected", value=None, step=1, format="%d")
    base, organism = ([scale * value_of(token, panel) for token in tokens] for panel in (1, 2))
    if tokens:
        organism[-1] = math.nan
    panels = [
        token_view.Panel("base", base),
        token_view.Panel("Reckless", organism),
        token_view.Panel("Reckless \u2212 base", [o - b for o, b in zip(organism, base, strict=True)], is_signed=True),
    ][: int(st.query_params.get("panels", 3))]
    place = token_view.show(
        tokens,
        panels,
        name=HOSTILE[0] if st.query_params.get("case") == "hostile" else "latent 1234 of SAE smol-l16, layer 16",
        key="view",
        quantiles=[q / 8 for q in range(1, 102)],
        with_special=st.toggle("Special tokens too"),
        selected=selected,
        turns=[message.role for message in CHAT] if st.query_params.get("case") == "chat" else (),
    )
    st.text("No token was clicked." if place is None else f"Clicked {place}: {tokens[place].id}.")


if __name__ == "__main__":
    main()
