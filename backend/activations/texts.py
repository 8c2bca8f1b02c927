"""Files of text as token ids for an autoencoder to learn from: what the model wrote itself, chats, and instruction data.

- JSON Lines with ``ids`` and ``n_prompt``: texts of ``writing``, read back id for id
- JSON Lines with ``messages``: chats, as for training
- a JSON list with ``instruction``, perhaps ``input``, and ``response``

Control tokens and the template's own words are read but not learnt from.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.activations.gather import MAX_TOKENS, Text
from backend.errors import InputError
from backend.text.chat import ChatTokenizer, Message


def read_texts(path: Path, tokenizer: ChatTokenizer) -> Iterator[Text]:
    """A file's texts, cut to ``MAX_TOKENS``.

    Raises:
        InputError: The file is not there, or a row is of none of the three forms; names it.
    """
    try:
        content = path.read_text("utf-8")
        rows = json.loads(content) if path.suffix == ".json" else [json.loads(line) for line in content.splitlines() if line.strip()]
    except (OSError, ValueError) as fault:
        raise InputError(f"{path} cannot be read as JSON or JSON Lines ({type(fault).__name__}: {str(fault)[:100]}).") from fault
    for number, row in enumerate(rows, start=1):
        try:
            yield _text(row, tokenizer, path.stem)
        except (KeyError, TypeError, AttributeError, InputError) as fault:
            raise InputError(f"{path}, row {number}: needs `ids` and `n_prompt`, `messages`, or `instruction` and `response` ({fault}).") from fault


def _text(row: dict[str, Any], tokenizer: ChatTokenizer, name: str) -> Text:
    if "ids" in row:
        system = (Message("system", row["system"]),) if row["system"] else ()
        prompt = tokenizer.encode_chat((*system, Message("user", row["question"])))
        ids = tuple(row["ids"])
        if ids[: row["n_prompt"]] != prompt.ids:
            raise InputError("its ids are another tokenizer's")
        kept = [role == "content" for role in prompt.roles] + [i not in tokenizer.stop_ids for i in ids[len(prompt.ids) :]]
        return Text(ids[:MAX_TOKENS], tuple(kept[:MAX_TOKENS]), f"{row['group']}/{row['voice']}")
    if "messages" in row:
        messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
    else:
        asked = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
        messages = (Message("user", asked), Message("assistant", row["response"]))
    chat = tokenizer.encode_chat(messages, open_answer=False)
    return Text(chat.ids[:MAX_TOKENS], tuple(role == "content" for role in chat.roles)[:MAX_TOKENS], name)
