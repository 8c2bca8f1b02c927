"""Messages to token ids, and ids back to text, with one list of ids for generating, capturing and showing.

Special tokens come from the chat template alone: a ``<|im_start|>`` that a user types becomes ordinary text tokens, so no
message can forge a turn. The template is rendered with placeholders; the special tokens of the template's own parts are
mapped to their ids, and everything between two of them is tokenised in one go with special tokens read as text. For
text without special tokens this equals tokenising the rendered template, which ``load`` checks on a probe.

Does not know: models, torch.
"""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers
from tokenizers.decoders import DecodeStream

from backend.errors import InputError, WeightsError

Role = Literal["special", "template", "content"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str
    ids: tuple[int, ...] | None = None
    """Ids of ``content`` where it was generated, so that no answer is tokenised a second time."""


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """A rendered chat as token ids, with what each token is."""

    ids: tuple[int, ...]
    roles: tuple[Role, ...]
    """``special`` for control tokens, ``template`` for role names and the template's own text, else ``content``."""

    turns: tuple[int, ...]
    """Index of the message each token belongs to; -1 for tokens of no message (a default system prompt, an opened turn)."""


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}``, by which templates mark the assistant's text for training; it changes nothing in the text."""

    tags = {"generation"}  # noqa: RUF012 (the base class wants it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTokenizer:
    """The tokenizer and chat template of one model."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, template: str, special_texts: dict[str, str], stop_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        """Ids that end an answer."""
        self._specials = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        self._special_texts = special_texts
        self.bos_id = tokenizer.token_to_id(special_texts["bos_token"]) if "bos_token" in special_texts else None
        """The control token that a text begins with, None where the model has none."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag])
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda _form: "01 Jan 2026"
        self._template = environment.from_string(template)
        tokenizer.encode_special_tokens = True
        self._trims = " x " not in self._render([Message("user", " x ")], open_answer=False)
        self._check()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``tokenizer.json``, ``tokenizer_config.json`` and the chat template of a local model folder.

        Raises:
            WeightsError: A file is missing, or the tokenizer cannot be split at special tokens without changing its ids.
        """
        try:
            return cls._read(folder)
        except WeightsError:
            raise
        except Exception as fault:  # tokenizers raises bare Exception, a template or a config can be anything
            raise WeightsError(
                f"No usable tokenizer in {folder} ({fault}). PersonaScope needs tokenizer.json, tokenizer_config.json and a chat template."
            ) from fault

    @classmethod
    def _read(cls, folder: Path) -> Self:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        template_file = folder / "chat_template.jinja"
        template = template_file.read_text("utf-8") if template_file.exists() else config.get("chat_template")
        if isinstance(template, list):
            template = next((t["template"] for t in template if t["name"] == "default"), None)
        if not template:
            raise WeightsError(f"The model in {folder} has no chat template. Choose an instruction-tuned model.")
        texts = {k: v["content"] if isinstance(v, dict) else v for k, v in config.items() if k.endswith("_token") and v}
        stops = {tokenizer.token_to_id(texts["eos_token"])} if "eos_token" in texts else set()
        for file in ("config.json", "generation_config.json"):
            if (folder / file).exists():
                eos = json.loads((folder / file).read_text("utf-8")).get("eos_token_id")
                stops.update(eos if isinstance(eos, list) else [eos])
        return cls(tokenizer, template, texts, frozenset(i for i in stops if i is not None))

    def encode_chat(self, messages: list[Message] | tuple[Message, ...], *, open_answer: bool = True) -> ChatTokens:
        """Render ``messages`` with the template and tokenise once.

        Args:
            open_answer: End with the tokens that open the assistant's turn.

        Raises:
            InputError: A message is empty, or the template refuses the order of roles.
        """
        if not messages or any(m.role != "assistant" and not m.content.strip() for m in messages):
            raise InputError("The prompt is empty. Type a message first.")
        contents = [m.content.strip() if self._trims else m.content for m in messages]
        marks = [secrets.token_hex(12) for _ in messages]
        rendered = self._render([Message(m.role, mark) for m, mark in zip(messages, marks, strict=True)], open_answer=open_answer)
        pieces: list[tuple[int, str]] = []  # (turn, text), turn -1 for the template's own text
        rest = rendered
        for turn, (mark, content) in enumerate(zip(marks, contents, strict=True)):
            before, found, rest = rest.partition(mark)
            if not found:
                raise InputError(f"This model's chat template has no place for a {messages[turn].role} message. Leave it out.")
            pieces += [(-1, before), (turn, content)]
        pieces.append((-1, rest))
        return self._tokenise(pieces, {turn: m.ids for turn, m in enumerate(messages) if m.ids is not None})

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text; special tokens in it are read as text."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: tuple[int, ...] | list[int]) -> str:
        """The text of ids, control tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def decode_stream(self) -> "AnswerStream":
        """A decoder for ids that come one by one."""
        return AnswerStream(self.tokenizer)

    def _render(self, messages: list[Message], *, open_answer: bool) -> str:
        plain = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._template.render(messages=plain, add_generation_prompt=open_answer, **self._special_texts)
        except Exception as fault:  # somebody else's program: it can fail in any way
            raise InputError(f"This model's chat template refuses the conversation: {fault}.") from fault

    def _tokenise(self, pieces: list[tuple[int, str]], given: dict[int, tuple[int, ...]]) -> ChatTokens:
        """Cut the template's own pieces at special tokens, tokenise each run between two cuts, and say what each token is.

        Args:
            given: Turns whose ids are known already.
        """
        ids: list[int] = []
        roles: list[Role] = []
        turns: list[int] = []
        run: list[tuple[int, str]] = []

        def flush() -> None:
            text = "".join(t for _, t in run)
            owners = [turn for turn, t in run for _ in t]
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
            for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                owner = max(owners[start : max(end, start + 1)], default=-1)
                ids.append(i)
                roles.append("content" if owner >= 0 else "template")
                turns.append(owner)
            run.clear()

        closes = -1  # a special token right behind a message ends it and belongs to it
        for turn, text in pieces:
            if turn >= 0:
                closes = turn
                if turn in given:
                    flush()
                    ids += given[turn]
                    roles += ["content"] * len(given[turn])
                    turns += [turn] * len(given[turn])
                else:
                    run.append((turn, text))
                continue
            while (cut := self._first_special(text)) is not None:
                position, special = cut
                run.append((-1, text[:position]))
                flush()
                ids.append(self._specials[special])
                roles.append("special")
                turns.append(closes if position == 0 else -1)
                closes = -1
                text = text[position + len(special) :]
            run.append((-1, text))
        flush()
        return ChatTokens(tuple(ids), tuple(roles), tuple(turns))

    def _first_special(self, text: str) -> tuple[int, str] | None:
        found = [(text.find(s), -len(s), s) for s in self._specials if s in text]
        if not found:
            return None
        position, _, special = min(found)
        return position, special

    def _check(self) -> None:
        """Hold the cut-up ids to the plain ones on a probe without typed special tokens."""
        probe = [Message("user", "How are you?\nI have 25 apples."), Message("assistant", "Fine."), Message("user", "Good.")]
        self.tokenizer.encode_special_tokens = False
        plain = self.tokenizer.encode(self._render(probe, open_answer=True), add_special_tokens=False).ids
        self.tokenizer.encode_special_tokens = True
        if list(self.encode_chat(probe).ids) != plain:
            raise WeightsError("This tokenizer changes its ids when special tokens are kept out of user text; the model is not supported.")


class AnswerStream:
    """Decodes an answer token by token; characters of several tokens appear when whole."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def step(self, token_id: int) -> str:
        """New text that this token completes, perhaps none."""
        return self._stream.step(self._tokenizer, token_id) or ""


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
