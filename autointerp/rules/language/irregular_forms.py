"""English words whose forms do not follow from their letters."""

from __future__ import annotations

_VERBS = """
abide abode abided; arise arose arisen; awake awoke awoken; be am is are was were been being; bear bore borne born;
beat beaten; become became; begin began begun; behold beheld; bend bent; bet bet betting; bid bade bidden; bind bound;
bite bit bitten; bleed bled; blow blew blown; break broke broken; breed bred; bring brought; build built;
burn burnt burned; burst burst; buy bought; can could; cast cast; catch caught; choose chose chosen; cling clung;
come came; cost cost; creep crept; cut cut cutting; deal dealt; dig dug digging; dive dove dived; do does did done;
draw drew drawn; dream dreamt dreamed; drink drank drunk; drive drove driven; dwell dwelt; eat ate eaten;
fall fell fallen; feed fed; feel felt; fight fought; find found; flee fled; fling flung; fly flew flown flies;
forbid forbade forbidden forbidding; forecast forecast; foresee foresaw foreseen; forget forgot forgotten forgetting;
forgive forgave forgiven; forsake forsook forsaken; freeze froze frozen; get got gotten getting; give gave given;
go goes went gone going; grind ground; grow grew grown; hang hung hanged; have has had having; hear heard;
hide hid hidden; hit hit hitting; hold held; hurt hurt; input input inputting; keep kept; kneel knelt; know knew known;
lay laid; lead led; leap leapt leaped; learn learnt learned; leave left; lend lent; let let letting;
lie lay lain lying lied;
light lit lighted; lose lost; make made; may might; mean meant; meet met; mislead misled; mistake mistook mistaken;
misunderstand misunderstood; mow mown mowed; offset offset offsetting; output output outputting;
overcome overcame; overtake overtook overtaken; overthrow overthrew overthrown; pay paid; prove proven proved;
put put putting; quit quit quitting; read read; rebuild rebuilt; rend rent; reset reset resetting; rid rid ridding;
ride rode ridden; ring rang rung; rise rose risen; run ran running; saw sawn sawed; say said; see saw seen seeing;
seek sought; sell sold; send sent; set set setting; sew sewn sewed; shake shook shaken; shall should;
shear shorn sheared; shed shed shedding; shine shone shined; shoot shot; show shown showed; shrink shrank shrunk;
shut shut shutting; sing sang sung; sink sank sunk; sit sat sitting; slay slew slain; sleep slept; slide slid;
sling slung; slit slit slitting; smell smelt smelled; sow sown sowed; speak spoke spoken; speed sped speeded;
spell spelt spelled; spend spent; spill spilt spilled; spin spun spinning; spit spat spitting; split split splitting;
spoil spoilt spoiled; spread spread; spring sprang sprung; stand stood; steal stole stolen; stick stuck; sting stung;
stink stank stunk; stride strode stridden; strike struck stricken; string strung; strive strove striven;
swear swore sworn; sweep swept; swell swollen swelled; swim swam swum swimming; swing swung; take took taken;
teach taught; tear tore torn; tell told; think thought; throw threw thrown; thrust thrust;
tread trod trodden; undergo underwent undergone undergoes; understand understood; undertake undertook undertaken;
undo undid undone undoes; upset upset upsetting; wake woke woken; wear wore worn; weave wove woven; weep wept;
will would; win won winning; wind wound; withdraw withdrew withdrawn; withhold withheld; withstand withstood;
wring wrung; write wrote written
"""
_NOUNS = """
analysis analyses; appendix appendices; axis axes; bacterium bacteria; basis bases; calf calves; child children;
crisis crises; criterion criteria; curriculum curricula; datum data; elf elves; foot feet; genus genera; goose geese;
half halves; hypothesis hypotheses; index indices; knife knives; leaf leaves; life lives; loaf loaves; louse lice;
man men; matrix matrices; medium media; mouse mice; nucleus nuclei; oasis oases; ox oxen; parenthesis parentheses;
person people; phenomenon phenomena; radius radii; scarf scarves; self selves; shelf shelves; stimulus stimuli;
synthesis syntheses; thesis theses; thief thieves; tooth teeth; vertex vertices; wife wives; wolf wolves; woman women
"""
_ADJECTIVES = """
bad worse worst; far farther farthest further furthest; good better best; ill worse worst; little less least;
many more most; much more most; old elder eldest older oldest; well better best
"""
_OTHERS = """
a an; i me my mine myself; you your yours yourself yourselves; he him his himself; she her hers herself;
it its itself; we us our ours ourselves; they them their theirs themselves; who whom whose; this these; that those
"""
_COMPARED = """
big black blue bold brave brief bright broad busy calm cheap clean clear clever close cold cool crazy cruel dark dear
deep dense dirty dry dull early easy fair fast fat few fine firm flat fresh full funny gentle grand gray great green
grey hard happy harsh healthy heavy high hot huge hungry keen kind large late lazy light likely lonely long loose loud
lovely low lucky mad mean mild narrow near neat new nice noisy odd old pale plain poor pretty proud pure quick quiet
rare raw red rich ripe rough rude sad safe sharp short shy sick simple slight slim slow small smart smooth soft soon
sour steep stiff strange strict strong sweet tall tame thick thin tight tiny tough true ugly vast warm weak wealthy wet
white wide wild wise young
"""
COMPARED = frozenset(_COMPARED.split())
"""Adjectives and adverbs that are compared by -er and -est. In other words these endings make other words: `number` is
no form of `numb`."""


def _families(*tables: str) -> list[list[str]]:
    """The words of each entry; the first is the one that the others are forms of."""
    return [entry.split() for table in tables for entry in table.split(";")]


def _together() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for family in _families(_VERBS, _NOUNS, _ADJECTIVES, _OTHERS):
        for word in family:
            found[word] = found.get(word, frozenset()) | frozenset(family)
    return found


def _bases() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for verb, *forms in _families(_VERBS):
        for form in forms:
            found[form] = (*found.get(form, ()), verb)
    return found


FAMILIES = _together()
"""For every word above, the words that it is listed with."""
BASES = _bases()
"""For every form of a verb above, the verbs that it is a form of."""
VERBS = frozenset(verb for verb, *_ in _families(_VERBS))
"""Verbs without a past in -ed, which would be another word (`see`, `seed`), or with one that is listed."""
