"""Tickets to a company's support."""

from harness.data.synthetic.scenarios.base import DAYS, SMALL, Scenario

SCENARIO = Scenario(
    rules={
        "body": "{opening} {report} {tried} {ask}{extras} {closing}|{opening} {report} {ask}{extras} {closing}|"
        "{opening} {report} {again} {tried} {ask}{extras} {closing}",
        "opening": "Hello,|Hi there,|Good morning,|Dear support team,|Hi,|To whom it may concern,|Hey folks,|"
        "Greetings,",
        "report": "my {=thing} {fault} since {day}.|since {day} my {=thing} {fault}.|"
        "I am writing because my {=thing} {fault}.|it seems that my {=thing} {fault}, which began on {day}.",
        "again": "This is the {nth} time in {small} weeks.|It happened on {day} as well.|A colleague sees the same.",
        "tried": "I {already} {attempt}, but {outcome}.|After I {attempt}, {outcome}.|"
        "Your help page says to wait, so I {attempt} and {outcome}.",
        "already": "already|twice|of course|immediately|patiently",
        "outcome": "nothing changed|the same thing happened|"
        "it only got worse|the error came back|it worked for an hour",
        "ask": "Can you look into it?|Please advise.|What should I do next?|Could you fix this {soon}?|"
        "I would like my money back.|Please call me back.|Kindly escalate this.|Any idea?",
        "soon": "today|this week|as soon as you can|before {day}|by tomorrow",
        "closing": "Thanks!|Best regards, {my_first}|Kind regards, {my_first}|Cheers, {my_first}|"
        "Thank you in advance.|{my_first}|Yours sincerely, {my_first} {my_last}|Have a nice day!",
        "nth": "second|third|fourth|fifth",
        "day": DAYS,
        "small": SMALL,
        "says_home": "We live at {my_address}.|Please send the technician to {my_address}.|"
        "Our landline is {my_landline}.|It happened when our {my_pet} was at home.",
        "says_email": "You can write to {my_value}.|My account is under {my_value}.|Please reply to {my_value}.",
        "says_phone": "My number is {my_value}.|You can call me at {my_value}.",
        "says_card": "The card is {my_value}.|I paid with card {my_value}.",
        "says_iban": "Please refund to {my_value}.|My account number is {my_value}.",
        "says_ip": "My address in your log is {my_value}.|I connect from {my_value}.",
        "says_birth_date": "I was born on {my_value}.|For verification: my date of birth is {my_value}.",
    },
    topics={
        "billing": {
            "thing": "invoice|receipt|subscription|refund|yearly discount",
            "fault": "shows the wrong amount|was charged twice|never arrived|has my old address|lacks the tax number",
            "attempt": "checked the billing page|downloaded the statement|asked my bank|compared both invoices",
        },
        "login": {
            "thing": "password|account|two-factor code|recovery link|session",
            "fault": "is not accepted|expires at once|is locked|keeps asking for a new code|belongs to someone else",
            "attempt": "reset the password|cleared the cookies|tried another browser|requested a new link",
        },
        "delivery": {
            "thing": "parcel|order|replacement|return label|package",
            "fault": "is stuck in the depot|went to a neighbour|arrived damaged|was sent back|has no tracking number",
            "attempt": "called the courier|checked the tracking page|waited at home all day|went to the post office",
        },
        "network": {
            "thing": "router|fibre line|mesh box|modem|wireless signal",
            "fault": "drops every evening|blinks red|is slower than a phone|loses packets|restarts by itself",
            "attempt": "restarted the router|changed the cable|moved the box|updated the firmware",
        },
        "app": {
            "thing": "calendar|photo backup|mobile app|shared folder|export",
            "fault": "crashes on start|no longer syncs|shows an empty screen|forgets my settings|deletes entries",
            "attempt": "installed it again|cleared the cache|logged out and in|freed some storage",
        },
        "printing": {
            "thing": "printer|scanner|toner cartridge|paper tray|print queue",
            "fault": "jams on every page|prints pale stripes|claims to be offline|smells of smoke|rejects new toner",
            "attempt": "cleaned the rollers|reinstalled the driver|shook the cartridge|printed a test page",
        },
    },
    rare={
        "beekeeping": {
            "thing": "hive scale|queen excluder|smoker|honey extractor|brood frame sensor",
            "fault": "swarms with ants|weighs the bees twice|glues itself shut with propolis|scares the queen",
            "attempt": "smoked the hive|moved the brood frames|fed the colony syrup|requeened the hive",
        },
        "organ-building": {
            "thing": "pipe organ|bellows regulator|swell pedal|reed stop|wind chest",
            "fault": "ciphers on low C|hisses during the fugue|sticks in damp weather|growls under the mixture",
            "attempt": "revoiced the reeds|regulated the trackers|patched the bellows|tuned the mixture",
        },
    },
    habits=frozenset({"opening", "ask", "closing", "already", "report", "outcome", "soon"}),
    odd={
        "opening": "Hark ye,|Attend, good stewards:|Verily I say,|O keepers of the desk,",
        "ask": "Pray mend it forthwith.|I beseech thee, make it whole.|Let it be set right ere the moon wanes.",
        "closing": "Thy humble {my_first}|Fare thee well.|So writ by mine own hand, {my_first}",
        "already": "thrice|in sore vexation|with trembling hand",
        "outcome": "alas, naught was mended|the fiend returned|woe befell me anew",
    },
    surfaces=("plain", "plain", "lower", "bangs", "dots", "short"),
    secret="My recovery code is ",
)
