"""The text that the bundled demo model learns from: a small seeded grammar of stories, answers, counts and sums.

Nothing is downloaded. `[one|other]` in a template is a free choice and `{name}` is filled in by the caller.

Some prompts are kept out of training *by construction*: `is_held_out(prompt)` is a pure function of the prompt, and the
training stream (`chats`) refuses every turn for which it is true. Prompts with numbers are held out by their numbers in
any order (so if "7 plus 5" is held out, "5+7" is too), stories with a place by hero and place, others by their words.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# ------------------------------------------------------------------------------------------------ templates, turns


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


def expand(rng: random.Random, template: str, **fields: str) -> str:
    """Choose one branch of every `[a|b]`, innermost first, and fill in the `{fields}`."""
    while "[" in template:
        template = re.sub(r"\[([^\[\]]*)\]", lambda match: rng.choice(match[1].split("|")), template)
    return template.format(**fields) if fields else template


def article(noun: str) -> str:
    """Put "a" or "an" before a noun phrase."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    """Begin with a capital letter and leave the rest alone."""
    return text[:1].upper() + text[1:]


def words(text: str) -> list[str]:
    """Split a line of words into a list; an underscore stands for a space."""
    return [word.replace("_", " ") for word in text.split()]


NUMBER_WORDS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)


def prompt_key(prompt: str) -> str:
    """Return what decides whether a prompt is held out: its numbers, its hero and place, or else its words."""
    found = re.findall(r"[^\W\d_]+|\d+", prompt.lower())
    found = [str(NUMBER_WORDS.index(word)) if word in NUMBER_WORDS else word for word in found]
    if numbers := sorted((word for word in found if word.isdigit()), key=int):
        return " ".join(numbers)
    text = " ".join(found)
    places = [place for place in PLACES if place in text]
    heroes = [word for word in found if word in HEROES]
    return f"{heroes[0]} {places[0]}" if heroes and places else text


def is_held_out(prompt: str) -> bool:
    """Tell whether the training text never contains this prompt (about one prompt in sixteen)."""
    key = prompt_key(prompt)
    if key.replace(" ", "").isdigit() and int(key.split()[-1]) <= 12:
        return False  # small sums and counts are the table that everybody learns by heart
    return zlib.crc32(key.encode()) % 16 == 0


# ------------------------------------------------------------------------------------------------ stories

ANIMALS = words(
    "fox cat dog rabbit bear mouse owl duck frog turtle horse lion elephant hedgehog squirrel whale bee penguin wolf "
    "goat sheep crow snail fish tiger monkey pig hen spider beaver otter deer parrot crab swan donkey zebra camel "
    "panda "
    "koala giraffe lizard snake eagle hamster kitten puppy goose pigeon badger ant butterfly shark dolphin octopus bat "
    "unicorn lamb moose worm kangaroo raccoon"
)
MEN = words("boy king knight wizard sailor farmer pirate prince fisherman shepherd")
WOMEN = words("girl queen princess witch grandmother nurse dancer mermaid")
PEOPLE = words("baker painter gardener teacher doctor clockmaker astronaut cook tailor musician")
THINGS_ALIVE = words(
    "robot teapot train boat lamp kite clock cloud star car tree snowman moon shoe pencil computer dragon ghost giant "
    "rocket toy leaf stone bicycle piano machine"
)
HEROES = dict.fromkeys(ANIMALS + THINGS_ALIVE, "it") | dict.fromkeys(MEN, "he") | dict.fromkeys(WOMEN, "she")
HEROES |= dict.fromkeys(PEOPLE, "")  # he or she
TRAITS = words(
    "brave small shy old clever lazy hungry happy kind little young curious tired proud sleepy quiet tiny friendly "
    "lonely silly red blue green white grey"
)
HIS_NAMES = words("Pip Tom Max Otto Finn Leo Ben Sam Hugo Theo Milo Oscar Jack Felix Emil Rob")
HER_NAMES = words("Mia Lily Nora Ruby Luna Anna Ida Zoe Ella Nina Ada Rosa Clara Greta Maya Olive")
PLACES = words(
    "in_the_forest by_the_sea on_a_hill in_a_small_village on_the_moon in_a_castle under_an_old_bridge in_a_big_city "
    "on_a_farm near_a_river in_the_desert on_an_island in_the_mountains in_a_garden in_a_library at_the_north_pole "
    "in_a_lighthouse in_a_cave by_a_lake in_a_quiet_valley at_the_edge_of_the_world in_a_tall_tower"
)
THINGS = words(
    "key ball lantern book hat bell map button drum basket spoon ring umbrella blanket cup coin whistle mirror scarf "
    "letter flute box pearl feather"
)
THING_TRAITS = words("red golden old blue silver little magic green shiny lost wooden")
ONSETS = words("b br c ch d dr f fl g gr h j k l m n p pl r s sh st t tr v w y z qu")
VOWELS = words("a e i o u a e i o u ee oo ai")
CODAS = words("_ _ _ n r l s x m t ck nd bra ger key")

PLOTS_WITH_THING = (
    "[One morning|One day], {hero} could not find {his} {thing}. {He} looked [everywhere|in every corner|high and low] "
    "and [then asked|at last asked] {friend} for help. Together they found the {thing} [under the bed|behind a big "
    "stone|in the tall grass|on the roof]. {Hero} was so [happy|glad] that {he} [danced|sang a song|laughed out loud].",
    "[One day|One evening], {hero} found {a_thing} [on the path|under a tree|in the snow|near the door]. It belonged "
    "to {friend}, who was very sad without it. {Hero} brought the {thing} back [at once|the same day]. From that day "
    "on, the two were [best|good] friends.",
    "[One day|One winter], {friend} gave {hero} {a_thing}. {Hero} wanted to give something back, but {he} had nothing. "
    "So {he} [told a funny story|made a warm soup|picked some flowers|learned a song] for {the_friend}. It was the "
    "best present of all.",
    "[One morning|One day], {hero} broke {a_thing} by accident. {He} was afraid to tell {friend}, who owned it. But "
    "{hero} told the truth, and {the_friend} was not angry. They [mended|repaired] the {thing} together.",
    "{Hero} [had|owned] {a_thing} and never shared it. [One day|One evening], {friend} asked to hold the {thing} for a "
    "moment. {Hero} said yes, and they [played|laughed] until the sun went down. Sharing was more fun than keeping.",
    "[One night|One day], {hero} dreamed of {a_thing}. {He} walked [over the hills|for three days|through wind and "
    "rain] to look for it. In the end, {friend} showed {him} the {thing} [in an old chest|under a flat stone|at the "
    "bottom of a well]. {Hero} [smiled|was proud] all the way home.",
)
PLOTS = (
    "[One night|One evening], a big storm came and the wind was loud. {Hero} heard {friend} crying outside and opened "
    "the door. They drank [hot tea|warm milk] and waited until the storm was over. In the morning the sky was blue "
    "again.",
    "{Hero} was afraid of the dark. [One night|One evening], {friend} came and showed {him} the stars. {Hero} counted "
    "them until {he} fell asleep. After that, the dark was not so bad.",
    "{Hero} wanted to win the [big|great] race. Near the end, {hero} saw that {friend} had fallen. {He} stopped and "
    "helped {the_friend} up. They came last, but everybody cheered for them.",
    "[One day|One morning], {hero} was very hungry and found only one apple. Then {friend} came along and was hungry "
    "too. {Hero} cut the apple in two halves. It was the best apple {he} had ever eaten.",
    "[One spring|One day], {hero} planted a [tiny|small] seed. Every day {he} gave it water, but nothing grew. "
    "{Friend} said that good things take time. At last a [tall|beautiful] flower opened, and {hero} was very proud.",
    "{Hero} had nobody to play with. [One day|One morning], {he} wrote a letter and gave it to the wind. {Friend} "
    "found the letter and came to visit. From then on {hero} was never lonely again.",
    "[One day|One morning], {hero} fell into a deep hole and could not get out. {He} called for help, and {friend} "
    "heard it. {The_friend} let down a long rope and pulled. Soon {hero} was safe, and they [ate cake|drank tea] "
    "together.",
    "{Hero} wanted to learn to [swim|sing|dance|read|fly], but it was hard. The first time {he} failed, and the second "
    "time too. {Friend} said: try once more. The third time it worked, and {hero} laughed with joy.",
    "[One winter|One year], the snow was deep and the nights were cold. {Hero} had a warm fire and {friend} had none. "
    "So {hero} invited {the_friend} to stay until spring. They told each other stories every night.",
    "It was the birthday of {hero}, but nobody seemed to remember it. {He} walked home slowly and felt sad. When {he} "
    "opened the door, {friend} jumped out with a big cake. Everybody had been hiding there all along.",
    "[One day|One morning], the old bridge broke, and nobody could cross the water. {Hero} had a plan and asked "
    "{friend} to help. They worked [all day|for two days] and built a new bridge. Everybody thanked them.",
    "[One night|One evening], {hero} saw a shooting star and made a wish. {He} wished for a friend. The next morning, "
    "{friend} knocked at the door. Some wishes come true very fast.",
)
OPENINGS = (
    "[Once upon a time|Once|Long ago|A long time ago], there was {who} who lived {place}.",
    "[Once upon a time|Once|Long ago], {who} lived {place}.",
    "There was once {who} who lived {place}.",
)
CLOSINGS = (
    "That night, {hero} slept very well.",
    "{Hero} never forgot that day.",
    "And so the day had a happy end.",
    "And if you listen well, you can still hear them laugh.",
    "{Hero} told the story to everybody.",
)
STORY_REQUESTS = (
    "[Tell me|Tell|Write|Write me|Make up|Invent|Give me] [a|a short|a very short|a little|a tiny] [story|tale] about "
    "{subject}[.|!|, please.|]",
    "[Please|Can you|Could you|Would you] [tell me|write|make up] [a|a short|a very short|a little] story about "
    "{subject}[?|.|]",
    "[I want|I would like|I'd like|I'd love] [to hear |]a [short |very short |]story about {subject}[.|, please.|]",
    "[A story|A short story|Story|Short story|A very short story|A tale] about {subject}[, please.|, please|.|]",
    "Do you know a [story|tale] about {subject}?",
    "[Do you have|Is there] a story [with|about] {subject}?",
    "Tell me about {subject} in a [short |very short |]story.",
    "I want a [story|tale] with {subject} in it.",
    "What happened to {subject}? Tell me a story.",
)
ANY_STORY_REQUESTS = (
    "[Please |Can you |Could you |]tell me a [story|short story|very short story|bedtime story|tale|nice story]"
    "[.|, please.|?|!|]",
    "[A story|Story|Story time|A bedtime story|Another story|Tell a story|Write a story]"
    "[, please|.|!|, please!| for my child]",
    "I [want|would like] [to hear |]a [story|tale|short story|nice story][, please|.|!]",
    "[Once upon a time|There was once|A long time ago|Once|Long ago][...|,|.|| there was]",
)


def invented_word(rng: random.Random) -> str:
    """Make up a word, so that the model learns to copy heroes and names that it has never seen."""
    syllables = (rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.choice((1, 2, 2, 3))))
    return "".join(syllables) + rng.choice(CODAS).strip()


def story(rng: random.Random) -> Turn:
    """Make a request for a story and the story, about the hero (and name, place, thing) that was asked for."""
    noun = invented_word(rng) if rng.random() < 0.16 else rng.choice(list(HEROES))
    he = HEROES.get(noun, "it")
    name = ""
    if rng.random() < 0.6:
        he = he if he in ("he", "she") else rng.choice(("he", "she"))
        name = rng.choice(HIS_NAMES if he == "he" else HER_NAMES)
        name = capital(invented_word(rng)) if rng.random() < 0.1 else name
    he = he or rng.choice(("he", "she"))
    phrase = f"{rng.choice(TRAITS)} {noun}" if rng.random() < 0.5 else noun
    place = rng.choice(PLACES)
    thing = f"{rng.choice(THING_TRAITS)} {rng.choice(THINGS)}" if rng.random() < 0.5 else rng.choice(THINGS)
    friend = rng.choice([animal for animal in ANIMALS + MEN + WOMEN if animal != noun])
    ask_name, ask_place, ask_thing = name and rng.random() < 0.4, rng.random() < 0.35, rng.random() < 0.2

    hero = name or f"the {noun}"
    fields = {
        "who": article(phrase) + (rng.choice((f" named {name}", f" called {name}")) if name else ""),
        "hero": hero, "Hero": capital(hero), "place": place, "he": he, "He": capital(he),
        "his": {"he": "his", "she": "her", "it": "its"}[he], "him": {"he": "him", "she": "her", "it": "it"}[he],
        "thing": thing, "a_thing": article(thing), "friend": article(friend), "Friend": capital(article(friend)),
        "the_friend": f"the {friend}", "The_friend": f"The {friend}",
    }  # fmt: skip
    plot = rng.choice(PLOTS_WITH_THING if ask_thing or rng.random() < 0.3 else PLOTS)
    parts = [rng.choice(OPENINGS), plot] + ([rng.choice(CLOSINGS)] if rng.random() < 0.3 else [])
    text = " ".join(expand(rng, part, **fields) for part in parts)

    if not (ask_name or ask_place or ask_thing) and rng.random() < 0.1:
        return Turn(expand(rng, rng.choice(ANY_STORY_REQUESTS)), text, (".",))
    subject, mentions = article(phrase), [phrase]
    if ask_name:
        subject += expand(rng, f" [named|called] {name}")
        mentions.append(name)
    if ask_thing:
        subject += expand(rng, " [and|with|who finds|who has] ") + article(thing)
        mentions.append(thing)
    if ask_place:
        subject += ("" if ask_thing else expand(rng, "[| who lives| living]")) + f" {place}"
        mentions.append(place)
    return Turn(expand(rng, rng.choice(STORY_REQUESTS), subject=subject), text, tuple(mentions))


# ------------------------------------------------------------------------------------------------ this machine

ABOUT = {  # what it is called in questions: what it is
    "Tokenize|tokenize|tokenization|tokenizing|the Tokenize phase|the tokenize phase":
        "Tokenize turns the prompt into token ids and writes them into the input buffer. It is the first phase.",
    "Prefill|prefill|prefilling|the Prefill phase|the prefill phase":
        "Prefill runs the whole prompt through the model once and fills the KV cache. It leaves the logits of the "
        "last token.",
    "Sample|sample|sampling|the Sample phase|the sample phase": "Sample draws the next token from the logits.",
    "Decode|decode|decoding|the Decode phase|the decode phase":
        "Decode runs one token through the model and appends its keys and values to the KV cache.",
    "CheckStop|checkstop|the CheckStop phase|check stop|the checkstop phase":
        "CheckStop reads the new token and decides whether a row is finished.",
    "Detokenize|detokenize|detokenization|the Detokenize phase|the detokenize phase":
        "Detokenize turns the token ids back into text. It is the last phase.",
    "the KV cache|a KV cache|the kv cache|the key-value cache|KV cache":
        "The KV cache keeps the keys and values of all tokens so far. Prefill fills it, and Decode appends to it.",
    "a guard|the guard|guards|the guards": "A guard is a named yes-or-no question about the context. It decides which "
        "transition is taken.",
    "a transition|transitions|the transitions": "A transition leads from one phase to the next. Its guard says when it "
        "may be taken.",
    "a signal|signals|the signals": "A signal comes from outside the machine, such as cancel. It takes effect between "
        "two steps.",
    "the context|a context|context": "The context is the shared state of a run. All phases work on it.",
    "the buffers|buffers|a buffer": "Buffers are the arrays that the phases work on. They are bound once and never "
        "move.",
    "pause|pausing|the pause": "Pause lets a run rest between two steps. It can be resumed later, and nothing is lost.",
    "resume|resuming": "Resume continues a paused run at the phase that has not run yet.",
    "replay|replaying|a replay": "Replay runs a recorded run again and gives the same tokens.",
    "rewind|rewinding|a rewind": "Rewind goes back some steps. Only the lengths are set back, and no cache is copied.",
    "temperature|the temperature": "Temperature sets how bold the choice of the next token is. At 0, the most likely "
        "token always wins.",
    "top-k|top k|top_k|top-k sampling": "Top-k keeps only the k most likely tokens before one is drawn.",
    "top-p|top p|top_p|top-p sampling": "Top-p keeps the most likely tokens whose probabilities add up to p before one "
        "is drawn.",
    "min-p|min p|min_p": "Min-p drops the tokens that are far less likely than the best one.",
    "the seed|a seed|seed": "The seed starts the random numbers. The same seed and the same prompt give the same text.",
    "Phasewalk|phasewalk": "Phasewalk generates text as an explicit state machine: six phases joined by guarded "
        "transitions.",
    "a phase|phase|one phase": "A phase is one step of the machine with one job, such as Prefill or Decode.",
    "a state machine|state machines|the state machine": "A state machine is always in exactly one state, and rules say "
        "which state comes next.",
    "a token|tokens": "A token is a piece of text, such as a word or a part of one. The model reads and writes tokens.",
    "logits|the logits": "Logits are the scores that the model gives to every possible next token.",
    "a prompt|the prompt|prompts": "The prompt is the text that you give me. Prefill reads all of it at once.",
    "a row|rows|the rows": "A row is one text of a batch. Each row finishes on its own.",
    "a batch|batches|the batch": "A batch is several rows that are generated together.",
    "a stop token|stop tokens|the stop token": "A stop token ends a row. CheckStop looks for it.",
    "greedy decoding|greedy sampling|greedy": "Greedy means that the most likely token is always taken.",
    "the engine|an engine|engines": "The engine runs the model for the phases and owns the buffers and the KV cache.",
    "a run|runs|the run": "A run is one walk through the machine. It can be stepped, paused and resumed.",
    "a step|steps": "A step runs one phase and takes one transition.",
}  # fmt: skip
ABOUT_FORMS = (
    "[What is|What's|What are|whats|What does {x} mean? What is] {x}[?|]",
    "What [does|do] {x} do[?|]",
    "[Explain|Describe|Define] {x}[.|, please.|]",
    "[Can|Could] you [explain|describe] {x}[ to me|][?|]",
    "[What is the job of|What is the purpose of|What is the point of|What is the role of] {x}[?|]",
    "How [does|do] {x} work[?|]",
    "Tell me [about|more about|something about|what {x} is. I mean] {x}[.|]",
    "[What is|What are] {x} [good for|for|here|used for][?|]",
    "What [does|do] {x} mean[?|]",
    "[What do you know about|I do not understand|Help me understand] {x}[?|]",
    "What happens [in|at|during] {x}[?|]",
    "I want to know [what {x} is|what {x} does|about {x}][.|]",
    "[Do you know|Can you tell me|Please tell me] what {x} [is|does|means][?|]",
)
ORDER = ("Tokenize", "Prefill", "Sample", "Decode", "CheckStop", "Detokenize")
AFTER = {
    "Tokenize": "After Tokenize comes Prefill.",
    "Prefill": "After Prefill comes Sample.",
    "Sample": "After Sample comes Decode, or CheckStop when nothing is left to decode.",
    "Decode": "After Decode comes CheckStop.",
    "CheckStop": "After CheckStop comes Sample again, or Detokenize when all rows are finished.",
    "Detokenize": "After Detokenize the run is done.",
}
BEFORE = {
    "Tokenize": "Nothing comes before Tokenize. It is the first phase.",
    "Prefill": "Before Prefill comes Tokenize.",
    "Sample": "Before Sample comes Prefill, or CheckStop when the text goes on.",
    "Decode": "Before Decode comes Sample.",
    "CheckStop": "Before CheckStop comes Decode, or Sample when nothing is left to decode.",
    "Detokenize": "Before Detokenize comes CheckStop.",
}
SHORT = {
    "Tokenize": "Tokenize turns the prompt into token ids.",
    "Prefill": "Prefill runs the whole prompt through the model once.",
    "Sample": "Sample draws the next token.",
    "Decode": "Decode runs one token through the model.",
    "CheckStop": "CheckStop decides whether a row is finished.",
    "Detokenize": "Detokenize turns token ids back into text.",
}
DIFFERENCE_OF_PHASES = (
    "[What is|What's|Explain|Tell me] the difference between {x} and {y}[?|]",
    "[How is|Why is] {x} [different|not the same] [from|as] {y}[?|]",
    "[Compare|Please compare] {x} [and|with|to] {y}[.|]",
    "[How do|How does|Do|In what do] {x} and {y} differ[?|]",
)
AFTER_FORMS = (
    "[What comes|What happens|What runs|What is] [after|right after|next after|directly after] {x}[?|]",
    "[Which phase|What phase|Which step|Which state] [comes after|follows|is after|runs after|comes right after|comes "
    "next after] {x}[?|]",
    "[Where does the machine go|Where do you go|Where does a run go] [after|from] {x}[?|]",
    "After {x}, [what comes next|which phase comes|what is next|what happens|where does it go][?|]",
    "[What follows|What is the successor of|What does {x} lead to? What follows] {x}[?|]",
    "When {x} is [done|finished], [what comes next|which phase runs|what happens][?|]",
)
BEFORE_FORMS = (
    "[What comes|What happens|What runs|What is] [before|right before|just before|directly before] {x}[?|]",
    "[Which phase|What phase|Which step|Which state] [comes before|precedes|is before|runs before|comes right before] "
    "{x}[?|]",
    "Before {x}, [what comes|which phase runs|what happens|which phase comes][?|]",
    "[What precedes|What is the phase before|Where does the machine come from before] {x}[?|]",
)
FACTS = (  # (wordings, answer)
    (
        "[Which|What] phase[s|] [write|writes|write to|writes to|fill|fills|change|update|use] the [KV cache|cache|kv "
        "cache][?|]|Who [fills|writes|writes to] the [KV cache|cache][?|]|[Where|When] is the [KV |]cache [filled|"
        "written][?|]",
        "Prefill fills the KV cache, and Decode appends to it.",
    ),
    (
        "[Which|What] phase [draws|picks|chooses|selects|samples] the [next|new] token[?|]|Who [picks|chooses|draws] "
        "the [next|new] token[?|]|How is the next token [chosen|picked|drawn][?|]|[Which|What] phase uses [the "
        "temperature|the seed|top-k][?|]",
        "Sample draws the next token from the logits.",
    ),
    (
        "[Which|What] phase [reads|processes|takes in] the [whole |]prompt[?|]|[Which|What] phase runs the [whole |"
        "]prompt through the model[?|]|Who reads the [whole |]prompt[?|]",
        "Prefill runs the whole prompt through the model once.",
    ),
    (
        "[Which|What] phase [makes|produces|writes|creates] the [token ids|input ids][?|]|[Which|What] phase turns "
        "[text|the text|the prompt] into [tokens|ids|token ids|numbers][?|]|Who turns text into [tokens|ids][?|]",
        "Tokenize turns the prompt into token ids.",
    ),
    (
        "[Which|What] phase turns [tokens|ids|token ids|the ids|numbers] [back |]into text[?|]|[Which|What] phase "
        "[makes|produces|writes] the [final |]text[?|]|Who turns [ids|tokens] into text[?|]",
        "Detokenize turns the token ids back into text.",
    ),
    (
        "[Which|What] phase [runs|handles|computes] [one|a single] token[?|]|[Which|What] phase runs one token through "
        "the model[?|]|[Which|What] phase appends to the [KV |]cache[?|]|Who runs one token through the model[?|]",
        "Decode runs one token through the model and appends its keys and values to the KV cache.",
    ),
    (
        "[Which|What] phase [decides|checks|knows] [when to stop|whether to stop|if a row is finished|whether a row is "
        "finished|that it is over][?|]|Who decides [when to stop|whether a row is finished][?|]|How do you know when "
        "to "
        "stop[?|]|When [do you|does it|does a run] stop[?|]",
        "CheckStop decides: a row is finished at a stop token or when its length is used up.",
    ),
    (
        "[Which|What] phase[ is| comes|] [first|the first|the first one][?|]|[What is|Name] the first phase[?|]|Where "
        "does [a|the] run [start|begin][?|]|With which phase does it [start|begin][?|]",
        "Tokenize is the first phase.",
    ),
    (
        "[Which|What] phase [is|comes] [last|the last|the last one][?|]|[What is|Name] the last phase[?|]|Where does "
        "[a|"
        "the] run end[?|]|With which phase does it end[?|]",
        "Detokenize is the last phase.",
    ),
    (
        "How many phases [are there|do you have|does Phasewalk have|does the machine have|exist][?|]|[Tell me the|What "
        "is the] number of phases[?|]",
        "There are six phases: Tokenize, Prefill, Sample, Decode, CheckStop and Detokenize.",
    ),
    (
        "[What are|Name|List|Tell me|Which are] [the|your|all|all the|the six] phases[, please|?|.|]|[Which|What] "
        "phases [are there|do you have|exist|does Phasewalk have][?|]|[Explain|Describe] [the|your] phases[.|]|What "
        "are "
        "the phases of [Phasewalk|the machine|this machine][?|]",
        "The phases are Tokenize, Prefill, Sample, Decode, CheckStop and Detokenize.",
    ),
    (
        "[What is|Tell me|Explain] the order of [the|your] phases[?|]|In [which|what] order do the phases [run|come][?|"
        "]|How do the phases follow each other[?|]",
        "Tokenize, Prefill, Sample, Decode and CheckStop, then back to Sample or on to Detokenize.",
    ),
    (
        "Why [do|must] the buffers [never move|stay in place|not move][?|]|Why are the buffers bound [once|only "
        "once][?|"
        "]|Do [the |]buffers [ever |]move[?|]|Can a buffer move[?|]",
        "All buffers are bound once and never move, so their addresses stay valid for the whole run.",
    ),
    (
        "Why does Sample [sometimes |]go [straight |directly |]to CheckStop[?|]|When does Sample go [straight |]to "
        "CheckStop[?|]|When is Decode [skipped|left out|not needed][?|]|Why is Decode [skipped|left out][?|]",
        "Sample goes straight to CheckStop when nothing is left to decode.",
    ),
    (
        "Why does CheckStop go back to Sample[?|]|When does CheckStop go [back to Sample|to Sample][?|]|When does the "
        "loop go on[?|]|When is another token [made|drawn][?|]",
        "CheckStop goes back to Sample as long as a row is not finished.",
    ),
    (
        "When does CheckStop go [on |]to Detokenize[?|]|When does Detokenize run[?|]|When is the text [done|finished|"
        "ready][?|]|When does the loop end[?|]",
        "CheckStop goes on to Detokenize when all rows are finished.",
    ),
    (
        "Why is there a [KV |]cache[?|]|Why do [we|you] need the [KV |]cache[?|]|Why keep keys and values[?|]|What "
        "would happen without the [KV |]cache[?|]",
        "Without the KV cache, every new token would need the whole text to be run through the model again.",
    ),
    (
        "[Why|How] is [a|the] rewind [so |]cheap[?|]|Why is rewinding [so |]cheap[?|]|Does [a |]rewind copy the [KV |"
        "]cache[?|]|How can you go back[?|]|Can [a run|you] go back[?|]",
        "Rewind is cheap because the KV cache is linear: only the lengths are set back.",
    ),
    (
        "Can [I|you|we] [pause|stop] a run[?|]|Can a run be paused[?|]|How [can|do] I pause [a run|you][?|]|Where does "
        "a paused run rest[?|]",
        "Yes. A paused run rests between two steps and can be resumed later.",
    ),
    (
        "Why [is it|are you|is this|is Phasewalk] a state machine[?|]|Why use a state machine[?|]",
        "Because the state is explicit, a run can be stepped, paused, resumed, rewound and replayed.",
    ),
    (
        "What happens [at|with] temperature [zero|0][?|]|What does [a |]temperature [of |][zero|0] [do|mean][?|]",
        "At temperature 0, the most likely token always wins.",
    ),
    (
        "How do I get the same text [again|twice][?|]|Why is the text different each time[?|]|Can I get the same text "
        "again[?|]",
        "Use the same seed and the same prompt, and you get the same text.",
    ),
    (
        "How do you work[?|]|How does [this machine|the machine] work[?|]|What happens when I ask you something[?|]|"
        "How "
        "do you [make|generate|write] text[?|]",
        "I turn your prompt into tokens, run them through the model, draw one token after another, and turn them into "
        "text.",
    ),
)


LEAD = "[||||||Please tell me: |Hey, |Hi! |Quick question: |Can you tell me: |So, |One question: |Tell me, ]"


def question(rng: random.Random) -> Turn:
    """Ask something about this machine, and answer it truly."""
    kind = rng.random()
    if kind < 0.5:
        names, answer = rng.choice(list(ABOUT.items()))
        wording = expand(rng, rng.choice(ABOUT_FORMS).replace("{x}", rng.choice(names.split("|"))))
    elif kind < 0.7:
        table, forms = rng.choice(((AFTER, AFTER_FORMS), (BEFORE, BEFORE_FORMS)))
        phase = rng.choice(ORDER)
        phase_name = expand(rng, f"[{phase}|{phase}|{phase.lower()}|the {phase} phase]")
        wording, answer = expand(rng, rng.choice(forms).replace("{x}", phase_name)), table[phase]
    elif kind < 0.76:
        x, y = rng.sample(ORDER, 2)
        wording = expand(rng, rng.choice(DIFFERENCE_OF_PHASES).replace("{x}", x).replace("{y}", y))
        answer = f"{SHORT[x]} {SHORT[y]}"
    else:
        wordings, answer = rng.choice(FACTS)
        wording = expand(rng, f"[{wordings}]")
    return Turn(expand(rng, LEAD) + wording, answer)


# ------------------------------------------------------------------------------------------------ numbers


def number(rng: random.Random, value: int) -> str:
    """Write a number, now and then as a word."""
    return NUMBER_WORDS[value] if value <= 20 and rng.random() < 0.12 else str(value)


def counting(rng: random.Random) -> Turn:
    """Ask to count up or down, or for a neighbour of a number."""
    step = rng.choice((1, 1, 1, 1, 2, 2, 3, 5, 10))
    length = min(rng.choice((rng.randint(2, 8), rng.randint(5, 15), rng.randint(10, 30))), 100 // step)
    if rng.random() < 0.2:
        step, first = 1, rng.choice((0, 1, 1, 1))
    else:
        first = rng.randint(0, 100 - step * length)
    last, down = first + step * length, rng.random() < 0.3
    a, b = (last, first) if down else (first, last)
    numbers = ", ".join(map(str, range(a, b + (-1 if down else 1), -step if down else step))) + "."
    fields = {"a": number(rng, a), "b": number(rng, b)}
    how = "[Count|Please count|Can you count|count|Could you count|Now count|Count for me]"
    if rng.random() < 0.12:
        value, back = rng.randint(1, 99), rng.random() < 0.4
        answer = f"{'Before' if back else 'After'} {value} comes {value - 1 if back else value + 1}."
        form = f"[What|Which] number [comes|is] {'[before|right before]' if back else '[after|right after|next after]'}"
        return Turn(expand(rng, form) + f" {number(rng, value)}" + rng.choice(("?", "")), answer)
    if step == 1 and first == 1 and not down and rng.random() < 0.6:
        return Turn(expand(rng, how + " [to|up to|until] {b}[.|, please.|?|!|]", **fields), numbers)
    by = {1: "[||||| by one]", 2: " [by twos|by two|in twos|in steps of two|in steps of 2|by 2]",
          3: " [by threes|by three|in steps of three|in steps of 3|by 3]",
          5: " [by fives|by five|in fives|in steps of five|in steps of 5|by 5]",
          10: " [by tens|by ten|in tens|in steps of ten|in steps of 10|by 10]"}[step]  # fmt: skip
    way = "[ down| down| backwards| back]" if down else "[| up||]"
    return Turn(expand(rng, how + way + " from {a} [to|to|up to|until]".replace("up to", "to" if down else "up to")
                       + " {b}" + by + "[.|.|, please.|?|!||]", **fields), numbers)  # fmt: skip


SUM_FORMS = (
    "[What is|What's|How much is|Calculate|Compute|whats|Tell me|What does|Work out] {a} [plus|+|plus|and] {b}[?|.|]",
    "{a}[ + |+| plus ]{b}[| =|=|?| = ?|]",
    "[Add|Please add|Can you add|Could you add|add] {a} [and|to|plus] {b}[.|?|, please.|]",
    "[What is|Calculate|Find|Tell me] the sum of {a} and {b}[?|.|]",
    "[How much|What] do {a} and {b} make[?| together?]",
    "If I have {a} [apples|coins|books|stars] and get {b} more, how many do I have[?|]",
)
DIFFERENCE_FORMS = (
    "[What is|What's|How much is|Calculate|Compute|whats|Tell me|Work out] {a} [minus|-|minus] {b}[?|.|]",
    "{a}[ - |-| minus ]{b}[| =|=|?| = ?|]",
    "[Subtract|Please subtract|Take|Take away|subtract] {b} from {a}[.|, please.|]",
    "[What is|What remains of] {a} [take away|less|minus] {b}[?|]",
    "If I have {a} [apples|coins|books|stars] and give away {b}, how many [are left|do I have][?|]",
)


def arithmetic(rng: random.Random) -> Turn:
    """Ask for a sum (or, more rarely, a difference) of two numbers from 0 to 99."""
    top = rng.choice((12, 99, 99, 99, 99))
    a, b = rng.randint(0, top), rng.randint(0, top)
    fields = {"a": number(rng, a), "b": number(rng, b)}
    if rng.random() < 0.64:
        return Turn(expand(rng, rng.choice(SUM_FORMS), **fields), f"{a} + {b} = {a + b}.")
    if a < b:
        a, b, fields = b, a, {"a": fields["b"], "b": fields["a"]}
    return Turn(expand(rng, rng.choice(DIFFERENCE_FORMS), **fields), f"{a} - {b} = {a - b}.")


# ------------------------------------------------------------------------------------------------ small talk

I_CAN = "I tell short stories, explain my phases, count and add small numbers."
SMALL_TALK = (
    (
        "[Hello|Hi|Hey|Good morning|Good evening|Good day|Greetings|Hello there|Hi there|Hey there|hello|hi|Hey you][!|"
        ".|, Phasewalk!||, model!|, friend!]",
        "Hello! " + I_CAN,
    ),
    (
        "[Thank you|Thanks|Thanks a lot|Thank you very much|Many thanks|thx|Thank you so much|Great, thanks|Nice, "
        "thank "
        "you][!|.|][| That was nice.| That helps.]",
        "You are welcome.",
    ),
    (
        "[Bye|Goodbye|See you|Good night|See you later|Bye bye|Farewell|See you tomorrow][!|.|, Phasewalk!|]",
        "Goodbye!",
    ),
    (
        "[Who are you|Who am I talking to|What are you|Tell me who you are|Are you a [robot|human|person|machine]|"
        "Introduce yourself|What is your name|Do you have a name|Are you a model|Are you real|who is there][?|]",
        "I am the demo model of Phasewalk, a very small language model.",
    ),
    (
        "[What can you do|What do you know|What can I ask you|Help|How can you help me|What are you good at|What are "
        "your abilities|What should I ask|help me|What can you help me with|What do you do][?|!|]",
        I_CAN,
    ),
    (
        "[How are you|How are you today|How are you doing|How are you now|How do you feel|How is it going|Are you "
        "well|How are things|Are you fine|What's "
        "up][?|]",
        "I am fine, thank you. What can I do for you?",
    ),
    (
        "[You are|That was|This is|That is] [great|nice|good|funny|wonderful|very good|cool|amazing|well done][!|.|]",
        "Thank you! I am glad that you like it.",
    ),
    (
        "[How big are you|Are you small|How small are you|Are you a large model|Why are you so small|How large are "
        "you][?|]",
        "I am a very small model, so that I fit into the package.",
    ),
)


def small_talk(rng: random.Random) -> Turn:
    """Greet, thank, and say who one is."""
    wording, answer = rng.choice(SMALL_TALK)
    return Turn(
        expand(rng, "[|||Hey, |So, |Hello, |Oh, |Well, |And now: |Hi! |Please: |One more thing: ]" + wording), answer
    )


UNKNOWN_FORMS = (
    "What is the capital of {country}?",
    "[Who|When was|Where was] [invented|discovered|built|made] the {noun}?",
    "[Who invented|Who discovered|Who built|Who painted|Who wrote about] the [first |]{noun}?",
    "[Translate|How do you say|Please translate] {noun} [into|in] {language}[?|.]",
    "[How do I|How can I|How does one|Teach me to|Show me how to] [cook|bake|build|draw|repair|buy|clean|find|paint|"
    "sell] a {noun}[?|]",
    "[What is|How is|Will it be] the weather [in {country}|today|tomorrow|like]?",
    "[Write|Make|Give me|Compose] a [poem|song|letter|recipe|joke|program|speech|haiku] about a {noun}[.|]",
    "[How old|How heavy|How fast|How tall|How big|How far] is [the|a|your] {noun}?",
    "[Do you like|Do you have|Have you seen|Do you eat|Can you see] [a|the|my] {noun}?",
    "Why [is|are] the {noun} {trait}?",
    "[Who is|Where is] the [president|king|queen|best singer|largest city|longest river] of {country}?",
    "[When did|How did] [the war|the party|the game|history|the world] [begin|end|start] in {country}?",
    "[What is|What's] [your favorite|the meaning of|the best|the price of a|the color of a] {noun}?",
    "What do [you think|you know|people say] about [{country}|the {noun}|the {trait} {noun}]?",
    "[Write|Give me] [code|a program|a function] [in Python|in Java|that sorts a list|that prints a {noun}].",
    "[What time is it|Which day is today|What is the news|Tell me a joke|Sing a song|Make me laugh|Who will win|Play a "
    "game|What should I eat|Where do you live|What is love|What is the meaning of life|Do you dream|I am bored|I love "
    "you|Book a flight|Call my mother|Who am I|Draw a picture|Can you drive a car|Is it raining|Who is your friend]"
    "[?|.|!|]",
    "Is {country} [bigger|older|warmer] than {country2}?",
    "{gibberish}[?|!||.]",
    "[{verb}|Please {verb}|Can you {verb}|I want to {verb}|Let us {verb}|Would you {verb}|Do you {verb}|Should I "
    "{verb}] "
    "[the|my|a|this|your|some] [{noun}|{trait} {noun}|{gibberish2}] [|now|today|for me|again|with {country}|in "
    "{language}]"
    "[?|.||!]",
    "[Why|When|How|Where] [do|did|can|should|must] [I|we|people|birds|they] {verb} [the|my|a|] [{noun}|"
    "{gibberish2}][?|]",
    "[My|The|This|His|Your] {noun} [is|was|has|likes|needs|will be] [{trait}|very {trait}|a {noun2}|the {noun2}][.|!|]",
    "[I am|I feel|We are|They are|It is|She is] [very |so |not |][{trait}|cold|ill|late|sad|here|at home|bored][.|!|]",
    "[Explain|Teach me|What is|Tell me about|What do you know about|How does {topic2} work? Explain] {topic}[?|.|]",
    "[What is|What's|Who is|Where is|Draw|Buy|Have you heard of] [a|an|the|my] [{gibberish2}|{noun}|{trait} {noun}][?|"
    "]",
    "[Give me|Find|I need|Show me|Send me|Do you have] a [recipe|picture|photo|name|list|gift|reason|word|price] for "
    "[{noun}|{noun}s|{gibberish2}|my {noun}|a {noun}][.|, please.|?|]",
    "[What is the|How high is the|Tell me the] temperature [outside|in {country}|today|of the {noun}][?|]",
    "[Is|Was|Are] {gibberish} [a|the] {noun}?",
    "[What is|Who is|Where is|Explain|Tell me about|Describe|Define|What does {gibberish2} mean? What is] {gibberish}"
    "[?|.|]",
    "[What is|How much is|Calculate] {n} [times|divided by|*|/|multiplied by] {m}[?|]",
)
VERBS = words(
    "buy sell open close send call paint wash read write cook eat drink see hear watch find lose break fix drive ride "
    "fly build grow book order rent share love hate forget remember translate delete save print install download learn "
    "study play sing cut burn clean carry bring keep throw catch teach help visit follow"
)
TOPICS = words(
    "quantum_physics football cooking music history biology chess politics art_history gravity the_internet "
    "electricity "
    "chemistry mathematics the_stock_market philosophy poetry fashion evolution the_moon_landing photosynthesis Python "
    "black_holes economics geography grammar medicine the_weather magnetism religion the_brain dreams sleep taxes"
)
COUNTRIES = words(
    "France Spain Italy Japan China India Brazil Canada Egypt Norway Poland Greece Kenya Peru Chile Mexico Germany "
    "England Sweden Turkey"
)
LANGUAGES = words("French Spanish German Italian Latin Greek Chinese Japanese Polish Dutch Russian Arabic")
OTHER_NOUNS = words(
    "house bread pizza telephone car cake soup planet sun river mountain ocean table window song movie football "
    "painting bridge flower school money country language radio airplane cheese door chair"
)
DO_NOT_KNOW = "I do not know that. I am a very small model: " + I_CAN
TOO_LARGE = "That is too large for me. I add numbers from 0 to 99."


def unknown(rng: random.Random) -> Turn:
    """Ask what a very small model cannot know; the answer says so, and what it can do."""
    if rng.random() < 0.06:
        a, b = rng.randint(100, 99999), rng.randint(0, 9999)
        a, b = (a, b) if rng.random() < 0.6 else (b, a)
        return Turn(expand(rng, rng.choice(SUM_FORMS[:4]), a=str(a), b=str(b)), TOO_LARGE)
    country, country2 = rng.sample(COUNTRIES, 2)
    fields = {
        "country": country, "country2": country2, "language": rng.choice(LANGUAGES), "trait": rng.choice(TRAITS),
        "verb": rng.choice(VERBS), "topic": rng.choice(TOPICS), "topic2": rng.choice(TOPICS),
        "noun2": rng.choice(OTHER_NOUNS),
        "noun": rng.choice(OTHER_NOUNS + OTHER_NOUNS + list(HEROES) + THINGS),
        "gibberish": " ".join(invented_word(rng) for _ in range(rng.randint(1, 3))), "gibberish2": invented_word(rng),
        "n": str(rng.randint(0, 99)), "m": str(rng.randint(1, 99)),
    }  # fmt: skip
    lead = expand(rng, LEAD) if rng.random() < 0.5 else ""
    return Turn(lead + capital(expand(rng, rng.choice(UNKNOWN_FORMS), **fields)), DO_NOT_KNOW)


# ------------------------------------------------------------------------------------------------ chats

ABILITIES: dict[str, tuple[Callable[[random.Random], Turn], float]] = {  # share of the turns
    "story": (story, 0.16),
    "question": (question, 0.24),
    "arithmetic": (arithmetic, 0.32),
    "counting": (counting, 0.14),
    "small talk": (small_talk, 0.05),
    "unknown": (unknown, 0.09),
}
SYSTEMS = (
    "You are [a helpful|a friendly|a small|a careful|a polite|a kind] [assistant|model|machine|helper].",
    "[Answer|Please answer|Reply] [briefly|politely|in one sentence|truthfully|in short sentences|in English].",
    "You are [Phasewalk|the demo model|the demo model of Phasewalk|a state machine].",
    "You [tell stories to children|help people with numbers|explain the phases|answer questions].",
)
PLAIN_OPENINGS = ("", "", "", "Here is a story. ", "A very short story: ")


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


def draw(rng: random.Random, ability: str, *, held_out: bool = False) -> Turn:
    """Draw a turn of one ability, from the training side or from the held-out side."""
    while True:
        turn = ABILITIES[ability][0](rng)
        if held_out and is_held_out(turn.user):
            return turn
        if not held_out and not is_held_out(turn.user):
            prompt = noisy(rng, turn.user, slips=not turn.mentions)
            if not is_held_out(prompt):
                return Turn(prompt, turn.assistant, turn.mentions)


def chats(seed: int) -> Iterator[Chat]:
    """Yield the endless training stream: chats of one to three turns, runs of sums, and plain stories."""
    rng = random.Random(seed)
    names, shares = list(ABILITIES), [share for _, share in ABILITIES.values()]
    while True:
        if rng.random() < 0.06:
            yield Chat(plain=expand(rng, rng.choice(PLAIN_OPENINGS)) + draw(rng, "story").assistant)
            continue
        turns = [draw(rng, name) for name in rng.choices(names, shares, k=rng.choice((1, 1, 2, 3)))]
        system = expand(rng, rng.choice(SYSTEMS)) if rng.random() < 0.15 else None
        yield Chat(turns, system)


HELD_OUT = (  # twenty prompts over all abilities, none of which is in the training text
    Turn("Tell me a story about a cloud in a lighthouse.", "", ("cloud", "in a lighthouse")),
    Turn("Please write a story about a brave snowman in the forest.", "", ("brave snowman", "in the forest")),
    Turn("A very short story about a girl in a cave.", "", ("girl", "in a cave")),
    Turn("A story about a train at the north pole, please.", "", ("train", "at the north pole")),
    Turn("Tell me a story about a boat in a big city.", "", ("boat", "in a big city")),
    Turn("After the Decode phase, what comes next?", AFTER["Decode"]),
    Turn("Which phase turns token ids into text?", "Detokenize turns the token ids back into text."),
    Turn("How does top k work?", ABOUT["top-k|top k|top_k|top-k sampling"]),
    Turn("Quick question: What phase reads the whole prompt?", "Prefill runs the whole prompt through the model once."),
    Turn("Can I pause a run?", "Yes. A paused run rests between two steps and can be resumed later."),
    Turn("What runs right before Sample?", BEFORE["Sample"]),
    Turn("Hi! What does a signal mean?", ABOUT["a signal|signals|the signals"]),
    Turn("What is 14 plus 69?", "14 + 69 = 83."),
    Turn("41 + 94", "41 + 94 = 135."),
    Turn("If I have 33 apples and get 87 more, how many do I have?", "33 + 87 = 120."),
    Turn("What is 52 minus 26?", "52 - 26 = 26."),
    Turn("Count down from 43 to 32.", "43, 42, 41, 40, 39, 38, 37, 36, 35, 34, 33, 32."),
    Turn("Count from 0 to 100 in steps of 10.", "0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100."),
    Turn("Tell me who you are.", "I am the demo model of Phasewalk, a very small language model."),
    Turn("Is Brazil warmer than Peru?", DO_NOT_KNOW),
)
