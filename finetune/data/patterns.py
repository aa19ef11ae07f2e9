"""Patterns that make a question and its answer of a sentence. English; they know nothing of files, and of a passage its
headings. Each takes a sentence in one line, and gives what it finds in it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finetune.data.english import (
    ABOUT,
    DATE,
    DID,
    DOES,
    NUMBER,
    PARTICIPLE,
    POINTERS,
    SIMPLE,
    THING,
    UNTIL,
    WHO_DID,
    at_head,
    is_person,
    known,
    short,
    thing,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence in one line, and where it stands."""

    text: str
    heading: str
    """The headings above its passage."""
    passage: str

    def thing(self, name: str | None) -> str | None:
        """What a stretch of it names; see `finetune.data.english.thing`."""
        return thing(name.strip(), self.heading, self.passage) if name else None

    def is_(self) -> tuple[str, str, str] | None:
        """A thing, "is" or its like, and what follows."""
        found = re.fullmatch(rf"{THING} (?P<be>is|are|was|were) (?P<rest>.+)", self.text)
        name = self.thing(found["thing"]) if found else None
        return (name, found["be"], found["rest"]) if found and name else None


Pairs = Iterator[tuple[str, str]]
"""Questions and answers."""
TO_DO = frozenset(
    re.findall(
        r"[\w-]+",
        """
        access activate add adjust allow apply avoid build change check choose clean combine compute configure
        control convert create define delete disable download enable ensure evaluate find fine-tune finetune get
        improve increase initialize inspect install keep learn limit list load log make measure merge monitor
        open prevent print push quantize read reduce remove replace reproduce reset restore retrieve run save
        search see select send set share show specify speed start stop store switch target test train unload
        update upload use verify view visualize write
        """,
    )
)
"""Verbs that "to" comes before in "use this to do that"; elsewhere it may be a direction."""
DOING = "Use|Set|Run|Call|Pass|Add|Install|Select|Enable|Disable|Specify|Press|Click|Choose|Open|Type|Import"


def definition(sentence: Sentence) -> Pairs:
    """Oxygen is a chemical element. Oslo is the capital of Norway."""
    if not (parts := sentence.is_()):
        return
    name, be, rest = parts
    answer = short(rest, 16)
    if not answer or name.startswith("the "):
        return
    if re.match(r"the \w[\w -]* of (?:the )?[A-Z]", answer) and re.match("[A-Z]", name) and be in ("is", "was"):
        yield f"{'who' if is_person(answer) else 'what'} {be} {answer}?", name
    elif re.match(r"(?:an?|one of the|the (?:first|only|largest|\w+est)|any) \w", rest) and _tells(answer):
        person = is_person(answer) and name[0].isupper() and be in ("is", "was")
        perhaps = be == "was" and re.search(r"\b(?:he|she|his|her)\b", sentence.passage)
        if person or not perhaps:
            yield f"{'who' if person else 'what'} {be} {name}?", answer


def _tells(answer: str) -> bool:
    """Whether "an excellent choice" would be no answer to what something is."""
    head = re.split(r" (?:of|in|for|to|that|with)\b", answer)[0].split()[-1]
    return len(answer.split()) > 2 and head not in (
        "choice",
        "example",
        "way",
        "option",
        "idea",
        "matter",
        "part",
        "lot",
        "member",
    )


def value(sentence: Sentence) -> Pairs:
    """The capital of France is Paris. The lunch allowance is 14 euros a day."""
    parts = sentence.is_()
    if not parts or not parts[0].startswith("the ") or not known(parts[0][4:], sentence.heading):
        return
    name, be, rest = parts
    answer = short(rest, 8)
    if answer and re.match(rf"{ABOUT}{NUMBER}\b|[A-Z`](?!n? )|(?:a|an|the) [A-Z]", answer):
        yield f"{'who' if is_person(name) else 'what'} {be} {name}?", answer


def measure(sentence: Sentence) -> Pairs:
    """The bridge is 390 metres long."""
    if parts := sentence.is_():
        many = rf"(?P<many>{ABOUT}{NUMBER}(?: [\w()/]+){{1,3}}?) (?P<how>long|high|tall|wide|deep|thick|old)\b"
        if found := re.match(many, parts[2]):
            yield f"how {found['how']} {parts[1]} {parts[0]}?", found["many"]


def when(sentence: Sentence) -> Pairs:
    """The house was built by them in 1933. In 1933, the house was built."""
    done = rf"(?P<done>{PARTICIPLE}(?: {SIMPLE}{{1,50}}?)?)"
    first = re.fullmatch(rf"(?:In|On) (?P<date>{DATE}),? (?P<rest>.+)", sentence.text)
    clause = Sentence(at_head(first["rest"]), sentence.heading, sentence.passage) if first else sentence
    if not (parts := clause.is_()):
        return
    name, be, rest = parts
    found = re.match(done + UNTIL if first else rf"{done} (?:in|on) (?P<date>{DATE}){UNTIL}", rest)
    if found and not re.search(rf" (?:after|before|until|since|for|from|as|{DATE})\b", found["done"]):
        yield f"when {be} {name} {found['done']}?", (first or found)["date"]


def where(sentence: Sentence) -> Pairs:
    """The stadium is located in Santa Clara. The okapi lives in the Ituri rainforest."""
    if parts := sentence.is_():
        name, be, rest = parts
        found = re.match(
            r"(?P<done>located|situated|based|headquartered|born|buried|held) (?P<how>in|at|near|between|on|along) "
            r"(?P<place>(?:the )?[A-Z].*)", rest
        )  # fmt: skip
        if found and (place := _place(found["place"])):
            exact = place if found["how"] in ("in", "at", "on") else f"{found['how']} {place}"
            yield f"where {be} {name} {found['done']}?", exact
    found = re.fullmatch(
        rf"{THING} (?P<do>lives?|stands?|lies?|grows?|takes? place|occurs?) in (?P<place>.+)", sentence.text
    )
    subject = sentence.thing(found["thing"]) if found else None
    if found and subject and (place := _place(found["place"])):
        verb, *more = found["do"].split()
        one = verb.endswith("s")
        yield f"where {'does' if one else 'do'} {subject} {' '.join([verb.removesuffix('s'), *more])}?", place


def _place(text: str) -> str | None:
    place = short(re.split(rf" (?:in|on) {DATE}| for | from | since ", text)[0], 8)
    return place if place and not re.match(DATE, place) else None


def by_whom(sentence: Sentence) -> Pairs:
    """The opera was composed by Verdi."""
    if not (parts := sentence.is_()):
        return
    found = re.match(
        r"(?P<done>written|composed|designed|founded|built|created|directed|painted|invented|discovered|led|ruled"
        r"|developed|proposed|published|coined|commissioned|proved|named) by "
        r"(?P<who>[A-Z][\w.'’-]*(?: (?:(?:of|de|van|von|the) )?[A-Z][\w.'’-]*)*)(?=[.,;]| in | for | and [a-z]|$)",
        parts[2],
    )
    if found:
        yield f"who {parts[1]} {parts[0]} {found['done']} by?", found["who"].rstrip(".")


def purpose(sentence: Sentence) -> Pairs:
    """A lever is used to lift loads. The dialect is known as Geordie. The sky is blue because it scatters light."""
    if not (parts := sentence.is_()):
        found = re.fullmatch(rf"{THING} can be used (?P<to>to .+)", sentence.text)
        name = sentence.thing(found["thing"]) if found else None
        if found and name and (answer := short(found["to"])):
            yield f"what can {name} be used for?", answer
        return
    name, be, rest = parts
    rest = re.sub(r"^(?:mainly|primarily|often|commonly|generally|sometimes|usually|typically) ", "", rest)
    if (found := re.match(r"used (?:(?=to )|for )(.+)", rest)) and (answer := short(found[1])):
        yield f"what {be} {name} used for?", answer
    if (found := re.match(r"(designed|intended|meant) to (.+)", rest)) and (answer := short(found[2])):
        yield f"what {be} {name} {found[1]} to do?", answer
    kinds = (
        "known for|made of|composed of|based on|named after|caused by|part of|responsible for|called|known as|due to"
        "|home to|considered(?= an? | the )|(?:governed|surrounded|owned|operated|run|funded|produced|followed|bordered"
        "|measured|controlled|represented|driven|limited|given|defined) by(?= an? | the [a-z])"
    )
    if (found := re.match(rf"(?:also )?({kinds}) (.+)", rest)) and (answer := short(found[2], 10)):
        yield f"what {be} {name} {found[1]}?", answer
    if found := re.fullmatch(r"(?P<so>[a-z][\w -]{2,50}) (?P<why>because (?!of )[^;:()]{5,120}?)\.", rest):
        yield f"why {be} {name} {found['so']}?", found["why"]


def does(sentence: Sentence) -> Pairs:
    """The name means "ash tree". Chloroplasts contain chlorophyll."""
    for verbs, do in ((DOES, "does"), ({verb: verb for verb in DOES.values()}, "do")):
        found = re.fullmatch(rf"{THING} (?P<verb>{'|'.join(map(re.escape, verbs))}) (?P<rest>.+)", sentence.text)
        name = sentence.thing(found["thing"]) if found else None
        if not found or not name or (do == "do" and not name.split(" of ")[0].endswith("s")):
            continue
        answer = short(found["rest"])
        if answer and not re.match(r"(?:that|to|for|in|on|by|with|from|at|as|only|when|if)\b", answer):
            yield f"what {do} {name} {verbs[found['verb']]}?", answer


def how_many(sentence: Sentence) -> Pairs:
    """Newcastle has three cathedrals. There are 42 bridges in the city of Leeds."""
    what = r"(?P<what>(?:[a-z][\w-]* ){0,2}(?:[a-z][\w-]*s|people|children))"
    number = rf"(?P<number>{ABOUT}{NUMBER})"
    base = {"has": "does have", "have": "do have", "had": "did have", "contains": "does contain",
            "contain": "do contain", "contained": "did contain", "includes": "does include",
            "consists of": "does consist of", "employs": "does employ"}  # fmt: skip
    found = re.match(rf"{THING} (?P<verb>{'|'.join(base)}) {number} {what}{UNTIL}", sentence.text)
    name = sentence.thing(found["thing"]) if found else None
    if found and name and not re.fullmatch(DATE, found["number"]):
        auxiliary, _, verb = base[found["verb"]].partition(" ")
        yield f"how many {found['what']} {auxiliary} {name} {verb}?", found["number"]
    there = rf"There (?P<be>are|were) {number} {what} (?P<where>(?:in|at|on) (?:the )?[A-Z`]{SIMPLE}{{1,40}}?){UNTIL}"
    if found := re.match(there, sentence.text):
        yield f"how many {found['what']} {found['be']} there {found['where']}?", found["number"]


def how_much(sentence: Sentence) -> Pairs:
    """The ticket costs five euros. The tour takes three hours."""
    found = re.match(
        rf"{THING} (?P<verb>costs|weighs|takes|lasts) (?P<much>{ABOUT}{NUMBER} {SIMPLE}+?){UNTIL}", sentence.text
    )
    name = sentence.thing(found["thing"]) if found else None
    if not found or not name or not (answer := short(found["much"], 7)):
        return
    how = "how long" if found["verb"] in ("takes", "lasts") else "how much"
    if how == "how much" or re.search(r"\b(?:second|minute|hour|day|week|month|year)s?\b", answer):
        yield f"{how} does {name} {found['verb'].removesuffix('s')}?", answer


def did(sentence: Sentence) -> Pairs:
    """Tesla moved to Karlovac in 1870: when, what and who."""
    first = re.fullmatch(rf"(?:In|On) (?P<date>{DATE}),? (?P<rest>.+)", sentence.text)
    clause = at_head(first["rest"]) if first else sentence.text
    found = re.match(rf"{THING} (?P<did>{'|'.join(DID)}) (?P<what>{SIMPLE}+?){UNTIL}", clause)
    name = sentence.thing(found["thing"]) if found else None
    if not found or not name:
        return
    dated = re.fullmatch(rf"(?P<what>.+) (?:in|on) (?P<date>{DATE})", found["what"])
    what, verb = (dated or found)["what"], found["did"]
    if len(what.split()) > 10 or short(what) != what:
        return
    if date := dated or first:
        yield f"when did {name} {DID[verb]} {what}?", date["date"]
    if verb in WHO_DID and re.match(r"(?:the|[A-Z])", what):
        if name[0].isupper():
            yield f"who {verb} {what}?", name
        if verb not in ("defeated", "conquered"):  # which may have been somebody
            yield f"what did {name} {DID[verb]}?", what


def how_often(sentence: Sentence) -> Pairs:
    """Change the oil every 7500 kilometres."""
    found = re.match(
        r"(?P<do>Change|Check|Clean|Replace|Renew|Update|Water|Charge|Inspect|Review|Test|Wash|Refill|Drain) "
        rf"(?P<what>the [\w -]{{2,40}}?) (?P<often>every (?:{NUMBER} )?\w+(?: \w+)?|once an? \w+|daily|weekly|monthly)"
        rf"{UNTIL}",
        sentence.text,
    )
    if found:
        yield f"how often should you {found['do'].lower()} {found['what']}?", found["often"]


def how_to(sentence: Sentence) -> Pairs:
    """To do this, use that. Use that to do this. You can do this by that."""
    what = rf"(?P<what>[a-z]{SIMPLE}{{5,70}}?)"
    found = re.fullmatch(
        rf"(?:To|In order to|If you want to|When you want to) {what}, "
        "(?:you (?:can|should|must|need to) |please |simply )?"
        rf"(?P<how>(?:{DOING.lower()}) .+)",
        sentence.text,
    ) or re.fullmatch(rf"You can {what} (?P<how>(?:by|with (?:the )?`|using) .+)", sentence.text)
    if found and not POINTERS.search(f"{found['what']} {found['how']}") and (answer := short(found["how"], 14)):
        yield f"how can you {found['what']}?", answer
    found = re.fullmatch(rf"(?P<how>(?:{DOING}) {SIMPLE}+) to (?P<what>(?P<verb>[a-z-]+) {SIMPLE}+)\.", sentence.text)
    if found and POINTERS.search(found["how"]):
        return
    if found and found["verb"] in TO_DO and len(found["how"].split()) < 12 and short(found["what"]) == found["what"]:
        yield f"how can you {found['what']}?", found["how"]


def default(sentence: Sentence) -> Pairs:
    """`rank` (`int`, defaults to `8`): the rank. --jobs N, the default is 4."""
    found = re.match(
        r"(?P<name>`[\w.-]+`)[^`.]{0,3}\((?:[^()]*\W)?default(?:s to|:) (?P<to>`[^`]+`|[\w.-]+)", sentence.text
    )
    if found:
        yield f"what does {found['name']} default to?", found["to"].rstrip(".")
    found = re.match(
        r"(?P<name>`(?!True|False|None)[\w.-]+`)(?: ?\([^()]*\))?(?::| -| –| —) (?P<what>[A-Z].+)", sentence.text
    )
    answer = short(found["what"], 20) if found else None
    if found and answer and len(answer.split()) > 1 and not re.match("If |When |This ", answer):
        yield f"what is {found['name']}?", answer


def gap(sentence: Sentence) -> Pairs:
    """A number or a name taken out of a sentence that says what it is about."""
    name = r"(?<=[a-z] )[A-Z][\w'’-]+(?: [A-Z][\w'’-]+){0,3}"
    found = [one for one in re.finditer(rf"{name}|\b{NUMBER}\b(?: [a-z]+)?", sentence.text) if one.start() > 12]
    if len(sentence.text.split()) < 9 or not found or POINTERS.search(sentence.text[:40]) or '"' in sentence.text:
        return
    last = found[-1]
    if sentence.text.count(last[0]) == 1:
        yield f'what is missing in "{sentence.text[: last.start()]}___{sentence.text[last.end() :]}"?', last[0]


FACTS: tuple[Callable[[Sentence], Pairs], ...] = (
    definition, value, measure, when, where, by_whom, purpose, does, how_many, how_much, did, how_often, how_to, default
)  # fmt: skip
