"""The text that the bundled demo model learns from: stories, answers, counts and sums, drawn from a seeded grammar.

Nothing is downloaded: the grammar is `demo_text.toml`.

Some prompts are kept out of training *by construction*: `is_held_out(prompt)` is a pure function of the prompt, and the
training stream (`chats`) refuses every turn for which it is true. Prompts with numbers are held out by their numbers in
any order (so if "7 plus 5" is held out, "5+7" is too), stories with a place by hero and place, others by their words.
"""

import random
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from demo_grammar import GRAMMAR, WORDS, Drawing

ABILITIES: dict[str, float] = GRAMMAR["abilities"]  # the share of the turns
OPENING = re.compile(r"(?:Once|Long ago|A long time ago|There was once)\b[^.]* lived [^.]*")
HEROES = {noun for kind in ("animal", "living_thing", "man", "woman", "person") for noun in WORDS[kind]}


@dataclass(frozen=True, slots=True)
class Turn:
    """One request, its answer, and what a good answer must contain (an exact answer has no such list)."""

    user: str
    assistant: str
    mentions: tuple[str, ...] = ()


@dataclass(slots=True)
class Chat:
    """One training text: chat turns, or with no turns a plain text that stands alone."""

    turns: list[Turn] = field(default_factory=list)
    system: str | None = None
    plain: str = ""

    def messages(self) -> list[dict[str, str]]:
        """Return the chat in the form that chat templates take."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.user})
            messages.append({"role": "assistant", "content": turn.assistant})
        return messages


HELD_OUT = [  # twenty prompts over all abilities, none of which is in the training text
    Turn(turn["ask"], turn.get("answer", ""), tuple(turn.get("mentions", ()))) for turn in GRAMMAR["held_out"]
]


def prompt_key(prompt: str) -> str:
    """Return what decides whether a prompt is held out: its numbers, its hero and place, or else its words."""
    found = re.findall(r"[^\W\d_]+|\d+", prompt.lower())
    found = [str(WORDS["number"].index(word)) if word in WORDS["number"] else word for word in found]
    if numbers := sorted((word for word in found if word.isdigit()), key=int):
        return " ".join(numbers)
    text = " ".join(found)
    places = [place for place in WORDS["place"] if place in text]
    heroes = [word for word in found if word in HEROES]
    return f"{heroes[0]} {places[0]}" if heroes and places else text


def is_held_out(prompt: str) -> bool:
    """Tell whether the training text never contains this prompt (about one prompt in sixteen)."""
    key = prompt_key(prompt)
    if key.replace(" ", "").isdigit() and int(key.split()[-1]) <= 12:
        return False  # small sums and counts are the table that everybody learns by heart
    return zlib.crc32(key.encode()) % 16 == 0


def turn_of(rng: random.Random, ability: str) -> Turn:
    """Draw a turn of one ability."""
    drawing = Drawing(rng)
    drawing.choose(ability)
    return Turn(drawing.value("ask"), drawing.value("answer"), drawing.texts("mentions"))


def draw(rng: random.Random, ability: str, *, held_out: bool = False) -> Turn:
    """Draw a turn of one ability, from the training side or from the held-out side."""
    while True:
        turn = turn_of(rng, ability)
        if held_out and is_held_out(turn.user):
            return turn
        if not held_out and not is_held_out(turn.user):
            prompt = noisy(rng, turn.user, slips=not turn.mentions)
            if not is_held_out(prompt):
                return Turn(prompt, turn.assistant, turn.mentions)


def noisy(rng: random.Random, prompt: str, *, slips: bool) -> str:
    """Write as people write: lower case, no question mark, now and then a slip of the finger."""
    if rng.random() < 0.25:
        prompt = prompt.lower()
    if rng.random() < 0.12:
        prompt = prompt.rstrip("?.! ")
    if slips and rng.random() < 0.06 and len(prompt) > 12:
        at = rng.randrange(1, len(prompt) - 2)
        if prompt[at : at + 2].isalpha():
            swapped = prompt[at + 1] + prompt[at]
            prompt = prompt[:at] + rng.choice((prompt[at], prompt[at] * 2 + prompt[at + 1], swapped)) + prompt[at + 2 :]
    return prompt


def chats(seed: int) -> Iterator[Chat]:
    """Yield the endless training stream: chats of one to three turns, runs of sums, and plain stories."""
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.06:
            yield Chat(plain=Drawing(rng).fresh("plain_opening") + draw(rng, "story").assistant)
            continue
        names = rng.choices(list(ABILITIES), list(ABILITIES.values()), k=rng.choice((1, 1, 2, 3)))
        turns = [draw(rng, name) for name in names]
        system = Drawing(rng).fresh("system") if rng.random() < 0.15 else None
        yield Chat(turns, system)


def opening(text: str) -> str:
    """Return the sentence of a story that says who lived where; nothing of a text that is no story."""
    found = OPENING.search(text)
    return found[0] if found else ""


def held_out_stories(count: int, seed: int, trained: Iterable[Chat]) -> list[str]:
    """Draw stories whose hero and place no training prompt names together, and that begin like none in `trained`.

    A prompt that names no place leaves it to its story, so such a hero may have lived there in training all the same.
    """
    told = {opening(text) for chat in trained for text in (chat.plain, *(turn.assistant for turn in chat.turns))}
    rng, stories = random.Random(seed), list[str]()
    while len(stories) < count:
        story = draw(rng, "story", held_out=True).assistant
        if is_held_out(opening(story)) and opening(story) not in told:
            stories.append(story)
    return stories
