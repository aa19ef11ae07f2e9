"""Follow-up questions as queries that stand alone: rules on words, in English; no model, no index.

A question is rewritten only when it leans on the conversation: a pronoun that nothing before it explains, 'what about
Y?', 'why?', 'more examples'. One with words of its own is searched for as it stands, for a rewriting that was not
needed drags the last topic into the next. Other languages are rewritten only where a question is a word or two.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 1000
"""Characters beyond which a question stands alone, and of an earlier one that are looked at."""
MOST_OWN = 8
"""Telling words from which on a question stands alone, whatever else it points at."""
MOST_CARRIED = 24
"""Words of the conversation that a query takes over at most."""
LOOK_BACK = 8
"""Earlier questions that can matter: a chain of follow-ups is as long as that at most."""
MOST_NAMES = 3
"""Names that a query takes over from an answer at most."""
SHORT_ANSWER = 30
"""Words of an answer up to which the names in it are what a pronoun may mean."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


AUX = _set(
    "am is are was were be been being do does did done has have had can could will would shall should may might must "
    "isn't aren't wasn't weren't don't doesn't didn't can't couldn't won't wouldn't shouldn't hasn't haven't"
)
WH = _set("what which who whom whose when where why how what's who's where's how's that's")
PREPOSITION = _set(
    "about above across after against along among around at before behind below between by despite during except for "
    "from in inside into like near of off on onto out over per since through to toward towards under until up upon "
    "versus via vs with within without"
)
CLAUSE = _set(
    "and but or if when while because so which who before after until since once where how what why whether than as "
    "though although unless without by that to"
)
"""Words that may begin a clause, in which a pronoun can stand for something earlier in the same question."""
JOINING = _set("and but so then or also")
"""Words that tie a question to what was said before."""
LEADING = _set("only even also just especially except same instead not then perhaps maybe")
PRONOUN = _set("it it's its itself they them their theirs they're he him his she her hers he's she's")
POINTING = _set("this these those")
FUNCTION = (
    AUX
    | WH
    | PREPOSITION
    | CLAUSE
    | LEADING
    | PRONOUN
    | POINTING
    | _set(
        "a an the i i'm i'd me my mine we us our ours you your yours there here not no nor yes ok okay please thanks "
        "thank any some all both each every either neither too very quite really still yet already else now again one "
        "ones such own other others another more most less least few fewer many much lot lots well hmm oh let let's s "
        "two three them former latter first second third fourth fifth last next previous rest etc"
    )
)
VAGUE = _set(
    """add advantage advice alternative answer apply author available benefit best better big call case cause change
    cheap choose clarify code command common compare comparison complete con condition consequence continue correct
    cost date default depend describe description detail difference different difficult directly disadvantage do
    downside drawback easy effect elaborate enough exactly example exception expand expensive explain explanation far
    fast figure file find full further get give go good happen hard help high idea important improve information
    instruction kind know large limit limitation line link list little long look low main maximum mean meaning mention
    method minimum name need new number often old option output page paper parameter part point possible practice price
    problem pro purpose put quick quickly reason recommend recommendation reference repeat rephrase require requirement
    result right risk safe say section see sense set setting short show similar size slow small someone something sort
    source specific start step sum summarize support sure take tell thing time tip tradeoff translate true type
    typical understand use useful usual usually value version want warning way work worse worst write wrong year
    bigger cheaper easier faster higher larger longer lower shorter simpler slower smaller stronger weaker typically
    great nice cool interesting reading read made did said used gave given took shown meant written works""",
)
"""Words that say what is asked about a thing, but not which thing."""

WORD = re.compile(r"[^\W_](?:\w|['.-](?=\w))*|_+\w+")
OPENER = re.compile(
    r"^(?:(?:and|but|or|so|then|also|ok|okay|well|now|yes|no|thanks|thank you|great|hmm|"
    r"(?:one more|another|next|last|a quick) (?:question|thing))\b[\s,.:;!–—-]*)+",
    re.I,
)
ABOUT = re.compile(r"^(?:(?:and|but|so) )?(?:what|how) about\b[\s,:]*|^(?:same|likewise)\b(?!-)[\s,:]*", re.I)
BESIDE = re.compile(r"^what if\b|^(?:also|only|even|or)\b(?!-)[\s,:]*", re.I)
"""What ties a question to the last one, unless it names things of its own."""
EMPTY_IT = re.compile(
    r"\bit(?:'s| is| was| be| become)? (?:also |always |ever |really |still )?(?:possible|necessary|better|best|worth|"
    r"safe|ok|okay|true|recommended|required|important|allowed|enough|hard|easy|normal|common|useful|take|takes|"
    r"make sense|makes sense|matter|matters|mean to|mean when|mean if|mean for|mean that|raining)\b"
    r"|\b(?:make|makes|making|made|find|is|was|isn't) it (?:\w+ )?(?:possible|impossible|easy|easier|hard|harder|"
    r"difficult|clear)\b|\b(?:is|was) it to\b|\bit costs? to\b"
    r"|\bwhat (?:time|day|date|year) (?:is|was) it\b|\b(?:is|was) it that\b"
    r"|\bit (?:is |'s |was )?(?:rain|snow|hail)(?:s|ing|ed)?\b",
    re.I,
)
SAID = re.compile(
    r"\byou (?:just |have )?(?:say|said|mention|mentioned|list|listed|name|named|describe|described|wrote|told|gave)\b"
    r"|\bthe (?:above|aforementioned|mentioned)\b"
    r"|\bthe previous (?:one|answer|question|example|point|step|command|method|option|case)\b",
    re.I,
)
PICKED = re.compile(
    r"(?:\b(?:which|the|another|others?|next|last|first|second|third|fourth|fifth|better|best|new|old|right|wrong)"
    r" ones?|\bthe (?:first|second|third|fourth|fifth|last|other|others|same|rest|former|latter)|\bothers)\b(?! of\b)"
    r"(?=\W*$|[,;] |(?: \w+ly)? (?:is|are|does|do|was|were|can|for|in|with|apply|applies|work|works|two|three|go|hold|"
    r"true|to|from|should|has|have|did|when|if|not|too|also|instead|\w+ed)\b)"
    r"|\bwhich one(?! (?:of|the)\b)|\bboth\b(?!.* and )",
    re.I,
)
NAMED_AFTER = re.compile(r"\w+(?: two| three)?, (?:(?:the |an? )?[A-Z]\w|[^,?]+ (?:or|and) )")
"""A pronoun and then, set off, what it stands for: 'is he, Einstein?', 'of these two, okapi or axolotl,'."""
TOPIC = re.compile(r"^([^:?!.]+): ?(?:what|which|who|where|when|why|how)\b", re.I)
"""A thing set before the question about it."""
LARGEST = re.compile(r"which ones? (?:is|are|was|were) the (?:\w+est|most \w+|least \w+) (\w+)", re.I)
"""'Which one is the largest planet?' says of what it asks."""
PENDING = re.compile(r"\binstead\b(?! of)|\b(?:then|there|else|otherwise|afterwards|beforehand|meanwhile)\W*$", re.I)
BESIDES = re.compile(r"\b(?:too|as well|either|also|again)\W*$", re.I)
EXISTS = re.compile(r"\b(?:is|are|was|were|be|isn't|aren't) there\b|\bthere (?:is|are|was|were|be)\b", re.I)
REPORTED = _set("say says said think thinks thought believe believes believed claim claims claimed know knows knew")
THIS_TEXT = _set("documentation document documents docs corpus library project guide page year month week manual book")
ORDER = {"first": 0, "former": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "latter": -1, "last": -1}
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
ITEM = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•])\s+(.+)$", re.M)


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    low: str
    start: int


def needs_context(question: str, history: Sequence[tuple[str, str]]) -> bool:
    """Whether a question can be understood only with what was said before it.

    Args:
        question: as it was typed.
        history: earlier questions with their answers, oldest first.
    """
    if not history or len(question) > LONGEST:
        return False
    text = _plain(question)
    words = _words(text)
    if not words:
        return False
    if _bare(text, words):
        return True
    if _has_topic(text):
        return False
    body = OPENER.sub("", text)
    rest = _words(body)
    own = [word for word in rest if not _is_vague(word)]
    if not own:
        return True
    if len(own) >= MOST_OWN:
        return False
    if ABOUT.match(body) or _refers(body, rest):
        return True
    new = _new(own, history)
    if len(new) < 2 and BESIDE.match(body):
        return True
    asks = any(word.low in AUX | WH for word in rest)
    if not asks and (body != text or (rest[0].low in PREPOSITION | LEADING and (len(rest) <= 4 or text[-1] == "?"))):
        return True
    named = any(_shape(word, rest[0]) for word in own)
    if BESIDES.search(body):
        return len(own) <= 2
    whole = len(new) >= 2 and rest[0].low != "which"  # 'and which …' asks for one of those that were spoken of
    return words[0].low in JOINING and body != text and not named and len(own) <= 2 and not whole


def _has_topic(text: str) -> bool:
    """Whether the question begins with the thing that it is about: 'Even numbers: what are they?'"""
    topic = TOPIC.match(text)
    return topic is not None and not all(word.low in FUNCTION for word in _words(OPENER.sub("", topic[1])))


def _new(own: list[_Word], history: Sequence[tuple[str, str]]) -> list[_Word]:
    """Telling words that were not said in the conversation."""
    said = (text[:LONGEST] for pair in history[-LOOK_BACK:] for text in pair)
    known = {_stem(word.low) for text in said for word in _words(text)}
    return [word for word in own if _stem(word.low) not in known]


def standalone(question: str, history: Sequence[tuple[str, str]]) -> str:
    """What to search for: the question itself where it stands alone, else with the words that it leans on.

    Args:
        question: as it was typed.
        history: earlier questions with their answers, oldest first.
    """
    history = list(history)[-LOOK_BACK:]
    if not needs_context(question, history):
        return question
    query = ""
    for place, (earlier, _) in enumerate(history):
        before = history[:place]
        query = _rewritten(earlier, query, before) if query and needs_context(earlier, before) else earlier
    return _rewritten(question, query, history)


def _rewritten(question: str, query: str, history: Sequence[tuple[str, str]]) -> str:
    """The question with the words of `query`, the last question in a form that stands alone."""
    question, query = _plain(question), _plain(query[:LONGEST])
    words = _words(OPENER.sub("", question))
    if replaced := _parallel(words, query, question):
        return replaced
    answer = history[-1][1] if history else ""
    picked = _picked(question, answer, query)
    fresh = picked or any(not _is_vague(word) for word in words)
    earlier = [word for word in _words(query) if word.low not in FUNCTION]
    carried = [word.text for word in earlier if not (fresh and _is_vague(word))]
    names = _names(_plain(answer))
    if picked:
        others = {name.lower() for name in names + _names(query)}
        carried = [picked, *(word for word in carried if word.lower() not in others)]
    elif len(answer.split()) <= SHORT_ANSWER and (
        not fresh or any(word.low in PRONOUN | POINTING | {"that"} for word in words)
    ):
        carried += names[:MOST_NAMES]
    have = {_stem(word.low) for word in words}
    added = list[str]()
    for text in carried:
        key = _stem(text.lower())
        if key not in have:
            have.add(key)
            added.append(text)
    return f"{question} ({' '.join(added[:MOST_CARRIED])})" if added else question


def _parallel(words: list[_Word], query: str, question: str) -> str:
    """The earlier question with its one thing of a kind replaced by the new one: 'what about Y?'; '' where unclear."""
    own = [word for word in words if not _is_vague(word)]
    asks = any(word.low in AUX | WH for word in _words(ABOUT.sub("", OPENER.sub("", question))))
    if asks or len(own) != 1 or not (shape := _shape(own[0], None)):
        return ""
    earlier = _words(query)
    same = [place for place, word in enumerate(earlier) if _shape(word, earlier[0]) == shape]
    if len({earlier[place].low for place in same}) != 1 or earlier[same[0]].low == own[0].low:
        return ""
    # 'on GPUs' is no parallel of 'rank of VeRA', while 'for' goes with anything
    if words[0].low in PREPOSITION - {"for"} and words[0].low != earlier[same[0] - 1].low:
        return ""
    old = earlier[same[0]].text
    return re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: own[0].text, query)


def _picked(question: str, answer: str, query: str) -> str:
    """What 'the second one' or 'the latter' is: an item of the answer's list, else a name in answer or question."""
    found = re.search(rf"\b(?:the|which|and) ({'|'.join(ORDER)})\b", question, re.I)
    if not found:
        return ""
    place = ORDER[found[1].lower()]
    for things in (ITEM.findall(answer), _names(_plain(answer)), _names(query)):
        if len(things) >= 2 and -len(things) <= place < len(things):
            return " ".join(word.text for word in _words(things[place])[:8] if word.low not in FUNCTION)
    return ""


def _plain(text: str) -> str:
    return " ".join(text.replace("’", "'").split())


def _words(text: str) -> list[_Word]:
    return [_Word(m.group(), m.group().lower(), m.start()) for m in WORD.finditer(text)]


def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _is_vague(word: _Word) -> bool:
    """Whether a word does not tell which thing is meant."""
    low = word.low
    forms = (low, _stem(low), low.removesuffix("ing"), low.removesuffix("ed"), low.removesuffix("d"), low[:-3] + "e")
    counts = low.isdigit() and len(low) < 4  # a longer one is a year or the number of something
    return low in FUNCTION or counts or any(form in VAGUE for form in forms)


def _shape(word: _Word, first: _Word | None) -> str:
    """What kind of name a word is: of code, with figures, of mixed case, or merely capitalised; '' for none.

    The first word of a sentence is capitalised in any case.
    """
    text = word.text
    if "_" in text:
        return "code"
    if text[0].isdigit():
        return "figure"
    if any(c.isupper() for c in text[1:]) or (len(text) > 1 and any(c.isdigit() for c in text)):
        return "name"
    return "proper" if text[0].isupper() and (first is None or word.start > first.start) and len(text) > 1 else ""


def _names(text: str) -> list[str]:
    """Names in a text, in order, each once; merely capitalised words count only within a sentence."""
    found = dict[str, str]()
    for sentence in re.split(r"(?<=[.!?:])\s+", text):
        words = _words(sentence)
        for word in words:
            if word.low not in FUNCTION and _shape(word, words[0]) not in ("", "figure"):
                found.setdefault(word.low, word.text)
    return list(found.values())


def _bare(text: str, words: list[_Word]) -> bool:
    """Whether the question is a word or two with a question mark, in whatever language."""
    letters = len(UNSPACED.findall(text))
    if text[-1] not in "?？" or len(words) > 2 or letters > 4:
        return False
    return not any(word.low in AUX for word in words)


def _refers(text: str, words: list[_Word]) -> bool:
    """Whether something in the question points at what is not in the question."""
    if SAID.search(text):
        return True
    blank = EMPTY_IT.sub(lambda m: "_" * len(m.group()), text)
    for place, word in enumerate(words):
        if blank[word.start] == "_" or not _points(words, place):
            continue
        if not _explained(text, words, place):
            return True
    exists = EXISTS.sub(lambda m: "x" * len(m.group()), text)
    found = [m for pattern in (PICKED, PENDING) for m in pattern.finditer(exists)]
    return any(not _explained(text, words, _place(words, m.start())) for m in found)


def _place(words: list[_Word], start: int) -> int:
    return next(place for place, word in enumerate(words) if word.start >= start)


def _points(words: list[_Word], place: int) -> bool:
    """Whether the word at `place` is a pronoun that stands for something."""
    low = words[place].low
    following = words[place + 1].low if place + 1 < len(words) else ""
    before = words[place - 1].low if place else ""
    if low in PRONOUN:
        return following != "who"
    if low in POINTING:
        described = place + 1 < len(words) and _shape(words[place + 1], words[0]) == "proper"  # 'this Danish actress'
        return not (
            described or following in THIS_TEXT or (low == "those" and following in {"who", "that", "which", "of"})
        )
    if low != "that":
        return False
    # 'that' after a noun begins a clause; after an auxiliary, a preposition or a verb without an object it points.
    if not before:
        return following in AUX
    return not following or before in (AUX - {"has", "have", "had"}) | PREPOSITION | CLAUSE | {"use"}


def _explained(text: str, words: list[_Word], place: int) -> bool:
    """Whether the question itself says what the word at `place` stands for: before it, in another clause or as the
    owner of what it owns; or after it, quoted."""
    word = words[place]
    if re.search(r"[:`\"“]|--|—", text[word.start :]) or NAMED_AFTER.match(text, word.start):
        return True
    nouns = [p for p in range(place) if not _is_vague(words[p])]
    following = words[place + 1] if place + 1 < len(words) else word
    if (kind := LARGEST.match(text, word.start)) and not _is_vague(_words(kind[1])[0]):
        return True
    if word.low == "both" and nouns and not _is_vague(following):  # 'Do okapis have both eyes?'
        return True
    before = words[place - 1].low if place else ""
    if word.low in {"its", "it's", "their", "his", "her"} and before not in AUX and (nouns or words[0].low == "who"):
        return True
    if not nouns:
        return False
    first = nouns[0]
    if words[0].low in {"when", "if", "while", "once", "as"} and words[1].low not in AUX:
        return True
    return any(_begins_clause(words, p) for p in range(first + 1, place)) or any(
        mark in text[words[first].start : word.start] for mark in (", ", "; ", ". ", "? ")
    )


def _begins_clause(words: list[_Word], place: int) -> bool:
    low, following = words[place].low, words[place + 1].low
    if low in {"without", "by", "before", "after", "since", "until"}:
        clause = following in {"he", "she", "it", "they"} and place + 2 < len(words)
        return clause or following not in PRONOUN | POINTING | {"that"}
    if low == "to":
        return following not in PRONOUN | POINTING | {"the", "a", "an", "that"}
    return low in CLAUSE or (low in REPORTED and following in PRONOUN)
