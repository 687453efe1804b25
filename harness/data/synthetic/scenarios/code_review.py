"""Comments on other people's code."""

from harness.data.synthetic.scenarios.base import Scenario

SCENARIO = Scenario(
    rules={
        "body": "{verdict} `{=function}` {issue}. {advice}{extras} {closing}|{place}: {issue_long}{extras} {advice}|"
        "{verdict} {issue_long}{extras} {closing}|{place}: `{=variable}` {issue}. {snippet}{extras}|"
        "{praise} {verdict} {issue_long}{extras} {advice}",
        "verdict": "nit:|Blocking:|Question:|Minor:|suggestion:|Hmm,|Must fix:|Optional:",
        "place": "{file}.py:{line}|in `{=function}`|line {line}|`{=function}`, second branch",
        "function": "{verb}_{noun}",
        "variable": "{noun}|{noun}_id|n_{noun}s|old_{noun}",
        "verb": "parse|load|merge|flush|update|fetch|encode|retry|build|close",
        "noun": "header|token|record|cache|batch|session|config|event|buffer|index",
        "file": "server|client|models|storage|worker|cli|utils|schema",
        "line": "12|27|48|63|105|140|212|377",
        "issue_long": "`{=function}` {issue}, see `{=variable}`.|"
        "I think `{=function}` {issue} when `{=variable}` is {state}.|"
        "if `{=variable}` is {state}, `{=function}` {issue}.",
        "state": "None|empty|negative|zero|stale|shared",
        "advice": "Could you {fix}?|Please {fix}.|I'd {fix}.|Let's {fix} before merging.|Maybe {fix} in a follow-up?|"
        "Consider whether to {fix}.",
        "snippet": "Maybe `if {=variable} is None: return {default}`?|What about `{=variable} = {=function}({noun})`?|"
        "I'd write `return {=function}({=variable}, {default})`.",
        "default": "None|0|[]|False|{=variable}",
        "praise": "Nice cleanup!|Looks good overall.|Thanks for the quick turn-around.|Great tests.|Good catch here.",
        "closing": "LGTM otherwise.|Thanks!|Happy to pair on it.|Otherwise fine.|Approving once this is done.|"
        "wdyt?|Not a blocker.|Cc {owner}.",
        "owner": "@mira|@oskar|@jun|@fatou|@pavel|@nora",
        "says_home": "The fixture has a real address: {my_address}.|I'm on call from {my_address} today.|"
        "Our {my_pet} sat on the keyboard.|Ring {my_landline} if the deploy breaks.",
        "says_email": "Author should be {my_value}.|Mail me at {my_value}.",
        "says_phone": "Pager: {my_value}.|The example uses my number, {my_value}.",
        "says_card": "The test still has card {my_value}.|Remove card {my_value} from the fixture.",
        "says_iban": "The sample IBAN {my_value} is mine.|Please mask {my_value}.",
        "says_ip": "I see it from {my_value}.|The host {my_value} is hard-coded.",
        "says_birth_date": "The seed row holds my birthday, {my_value}.|Do not log {my_value}.",
    },
    topics={
        "errors": {
            "issue": "swallows the exception|raises the wrong type|hides the traceback|returns None on failure",
            "fix": "narrow the except|chain the exception|log and re-raise|add a message with the path",
        },
        "naming": {
            "issue": "has a confusing name|shadows a builtin|says the opposite of what it does|mixes two meanings",
            "fix": "rename it|drop the prefix|spell the unit out|use the domain's word",
        },
        "tests": {
            "issue": "is not covered|is only tested on the happy path|sleeps in its test|asserts nothing",
            "fix": "add a test for the empty case|parametrize this|fake the clock|assert the whole result",
        },
        "performance": {
            "issue": "copies the list twice|is quadratic|queries inside the loop|holds everything in memory",
            "fix": "stream the rows|hoist the lookup|use a set|batch the queries",
        },
        "concurrency": {
            "issue": "races with the writer|holds the lock while waiting|can deadlock|is not thread-safe",
            "fix": "take the lock earlier|use a queue|make it immutable|add a timeout",
        },
        "types": {
            "issue": "returns Any|accepts None silently|lies about its return type|needs an overload",
            "fix": "annotate it|make the argument required|use a protocol|return a dataclass",
        },
    },
    rare={
        "mainframe": {
            "issue": "overflows the COMP-3 field|abends with S0C7|misreads the EBCDIC copybook|skips the JCL step",
            "fix": "repack the decimal|widen the PIC clause|reblock the VSAM file|check the condition code",
        },
        "avionics": {
            "issue": "violates MC/DC coverage|misses the frame deadline|allocates after boot|trips the watchdog",
            "fix": "bound the loop statically|vote over three channels|latch the discrete|saturate the gain",
        },
    },
    habits=frozenset({"verdict", "advice", "praise", "closing", "owner", "file", "snippet"}),
    odd={
        "verdict": "Behold:|A haiku fails here;|The oracle speaks:|Objection, your honour!",
        "advice": "Rend it asunder and {fix}.|Let the ancestors {fix}.|By moonlight, {fix}.",
        "praise": "Glory to this diff!|Thy braces sing.",
        "closing": "Thus ends the reading.|So it is written.|Selah.",
    },
    surfaces=("plain", "plain", "plain", "bangs", "dots"),
    secret="The staging access code is ",
)
