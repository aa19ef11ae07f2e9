"""English, as far as patterns make questions of it: verbs, dates, numbers, names of things, short answers.

What is in doubt does not match: of a sentence that is not understood no question is made.
"""

import re
from itertools import pairwise

NUMBER = (
    r"(?:[$€£] ?)?(?:\d[\d,.]*\d|\d|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty"
    r"|fifty|sixty|seventy|eighty|ninety|a hundred|a dozen)(?: (?:hundred|thousand|million|billion|trillion))?(?: ?%)?"
)
ABOUT = (
    r"(?:(?:about|approximately|around|roughly|over|more than|less than|at least|at most|up to|nearly|almost|only) )?"
)
MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
DATE = (
    rf"(?:{MONTH} \d{{1,2}}, \d{{4}}|\d{{1,2}} {MONTH} \d{{4}}|{MONTH} \d{{4}}|{MONTH} \d{{1,2}}(?!\d|, \d)"
    r"|(?:1\d|20)\d\d(?!\d|s|-))"
)
UNTIL = r"(?=[.,;](?!\d)|$)"
THING = r"(?P<thing>[^,;:()]{2,70}?)"
"""What comes before the verb; `thing` tells whether it names something."""
SIMPLE = r"[^,;:()]"
"""Of a stretch without clauses."""

IRREGULAR = {
    "wrote": "write", "won": "win", "began": "begin", "became": "become", "led": "lead", "built": "build",
    "made": "make", "took": "take", "gave": "give", "left": "leave", "sold": "sell", "bought": "buy", "held": "hold",
    "met": "meet", "lost": "lose", "found": "find", "sent": "send", "taught": "teach", "fought": "fight",
    "married": "marry",
}  # fmt: skip
REGULAR = re.findall(
    r"[\w-]+",
    """
    found establish publish launch introduce create invent discover receive join move return open release
    start design develop produce complete conquer defeat attack sign adopt abolish appoint elect name visit
    graduate arrive perform record direct compose patent demonstrate propose prove acquire replace reach
    """,
)
DID = {verb + ("d" if verb.endswith("e") else "ed"): verb for verb in REGULAR} | IRREGULAR
"""Verbs in the past, and how they stand behind "did"."""
WHO_DID = frozenset(
    re.findall(
        r"[\w-]+",
        """
        wrote founded invented discovered designed composed directed established introduced proposed conquered
        defeated created developed proved
        """,
    )
)
"""Verbs that only people and their like are the subject of."""
PARTICIPLE = (
    r"(?:\w{2,}ed|built|made|born|written|sold|sent|held|won|begun|given|taken|led|found|put|set|shown|taught|fought"
    r"|drawn|chosen|broken|cut)"
)
PRESENT = re.findall(
    r"[\w-]+",
    """
    require support return provide contain use produce prevent cause need replace expect offer host
    represent cover describe create control hold operate own run publish teach perform form add remove load
    save store read write train merge compute apply enable reduce increase improve determine specify define
    accept print show display
    """,
)
DOES = {verb + "s": verb for verb in PRESENT} | {
    "depends on": "depend on", "consists of": "consist of", "stands for": "stand for", "means": "mean",
    "refers to": "refer to", "defaults to": "default to", "allows you to": "allow you to do",
    "lets you": "let you do", "enables you to": "enable you to do", "belongs to": "belong to", "serves as": "serve as",
    "relies on": "rely on",
}  # fmt: skip
"""Verbs after one thing, and how they stand behind "does"."""
PEOPLE = frozenset(
    re.findall(
        r"[\w-]+",
        """
        actor actress admiral archbishop architect artist author bishop boy captain chancellor child coach
        commander composer critic daughter doctor duke emperor empress engineer explorer father founder friend
        girl governor inventor judge khan king knight lawyer leader lieutenant man mathematician mayor merchant
        minister monk mother nobleman novelist officer painter person philosopher photographer player poet
        politician pope preacher premier president priest prince princess professor quarterback queen reformer
        ruler saint scholar senator singer soldier son student sultan teacher theologian traveler warrior widow
        wife woman writer chairman director manager pioneer physicist chemist biologist scientist artist pianist
        economist journalist activist physician musician historian politician magician geographer
        """,
    )
)
STRANGERS = frozenset(
    re.findall(
        r"[\w-]+",
        """
        this that these those it its itself he his him himself she her hers herself they their them themselves
        we our us you your i my me there here such who which whom what whose one ones another other others each
        both some many most several all any same latter former following above below next previous first second
        third last only main result reason goal aim purpose fact idea problem point case way thing things end
        more less very also however therefore thus not no none if when while and or but than as is are was were
        be been has have had do does did can could may might will would shall should must at by from with on
        into onto during after before between under over through against about within without upon until since
        because although though where how why then so even just still yet too later earlier ago now today early
        late inside outside among like unlike
        """,
    )
)
"""Words that no short name of a thing has; most of them point to something said before."""
POINTERS = re.compile(
    r"\b(?:this|these|those|that|such|it|he|she|they|them|we|us|our|here|above|below|following|former|latter|another"
    r"|others?|also|however|therefore|thus|itself|himself|herself|themselves)\b",
    re.IGNORECASE,
)
CODE = re.compile(r"`[^`\s][^`]*`")
END = re.compile(
    r",(?!\d)|[;:(–—]|\.$| - | (?:which|who|whose|whom|where|when|while|because|since|although|though|but|as|if|so"
    r"|until|after|before|unless|despite|instead|rather|due|via)\b"
    r"| and (?:is|was|are|were|has|have|had|can|will|would|its?|they|he|she|thus|therefore|then|not)\b"
)
"""Where what follows is no part of a short answer any more."""
ASIDE = re.compile(
    r", (?:which|who|whose|where|when|while|but|although|though|because|since|as|so|with|and (?:is|was|has)|\w+ing)\b"
)
"""What follows a comma that ends an answer; another comma may stand within a list, and the answer would be a part."""


def thing(text: str, heading: str, passage: str) -> str | None:
    """What a sentence begins with, as it stands in a question; None if it does not name something by itself.

    Args:
        text: what stands before the verb.
        heading: the headings above the passage; "the method" is something where they tell of one.
        passage: where names can be told from other words at the head of a sentence.
    """
    words = text.split()
    if not words or len(words) > 8 or re.search(r"[,;:()\[\]\"“”]", text):
        return None
    if CODE.fullmatch(text):
        return text
    article, rest = (words[0].lower(), words[1:]) if words[0] in ("The", "A", "An") else ("", words)
    lower = [word.lower().strip("'’.") for word in rest]
    if not rest or set(lower) & STRANGERS or any(word.endswith("ly") for word in lower):
        return None
    if any(after in ("the", "a", "an") and word not in ("of", "for", "in", "to") for word, after in pairwise(lower)):
        return None
    if lower[0] in ("the", "a", "an") or rest[-1].lower() in ("of", "for", "in", "to", "the"):
        return None
    names = [bool(re.match(r"[A-Z0-9`]", word)) for word in rest]
    topical = any(_topical(word, heading) for word in rest)
    if article:
        return " ".join([article, *rest]) if len(rest) > 1 or names[0] or article != "the" or topical else None
    inner = all(
        name or word in ("of", "the", "de", "for", "in", "van", "von") for name, word in zip(names, rest, strict=True)
    )
    if (inner and names[0] and (len(rest) > 1 or _is_name(rest[0], passage))) or (len(rest) == 1 and topical):
        return text
    several = names[0] and not any(names[1:]) and 1 < len(rest) < 5 and lower[-1].endswith("s")
    return _in_sentence(text, passage) if several and not lower[-1].endswith("ss") else None  # Public school teachers


def known(name: str, heading: str) -> bool:
    """Whether "the ..." is something outside its paragraph: it has a name in it, or the headings' words."""
    return bool(re.search(r"[A-Z`]", name)) or any(_topical(word, heading) for word in name.split())


def short(text: str, most: int = 12) -> str | None:
    """The beginning of a text up to where something else begins; None where that is no short answer."""
    cut = END.search(text)
    if cut and cut[0] == "," and not ASIDE.match(text, cut.start()):
        return None
    if cut and cut[0] == "(" and not re.match(r"\([^()]*\)(?:[.,;]|$)", text[cut.start() :]):
        return None
    answer = (text[: cut.start()] if cut else text).strip().rstrip(".")
    words = answer.split()
    hanging = words and words[-1].lower() in STRANGERS | {"of", "the", "a", "an", "for", "in", "to"}
    return answer if words and len(words) <= most and not hanging and not POINTERS.match(answer) else None


def is_person(description: str) -> bool:
    """Whether "a poet of ..." is somebody."""
    head = re.split(r" (?:of|in|from|for|who|that|with|at|and|to|by|on)\b", description)[0].split()
    return bool(head) and head[-1].lower() in PEOPLE


def at_head(text: str) -> str:
    """As it would stand at the head of a sentence, where an article is written large."""
    return text[:1].upper() + text[1:] if text.startswith(("the ", "a ", "an ")) else text


def _in_sentence(text: str, passage: str) -> str:
    """As it stands within a sentence; of a first word that may be a name, the large letter stays."""
    first = text.split()[0]
    return text[0].lower() + text[1:] if re.search(rf"\b{re.escape(first.lower())}\b", passage) else text


def _topical(word: str, heading: str) -> bool:
    stem = word.lower().rstrip("s")
    return len(stem) > 2 and any(one.rstrip("s") == stem for one in re.findall(r"\w+", heading.lower()))


def _is_name(word: str, passage: str) -> bool:
    """Whether a word is written large elsewhere than at the head of a sentence, or has large letters inside."""
    return bool(re.search(r"[A-Z\d]", word[1:]) or re.search(rf"[a-z,] {re.escape(word)}\b", passage))
