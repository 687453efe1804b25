"""Short messages between friends."""

from harness.data.synthetic.scenarios.base import DAYS, SMALL, Scenario

SCENARIO = Scenario(
    rules={
        "body": "{hey} {news}{extras} {reaction}|{news} {question}{extras}|{reaction} {news}{extras}|"
        "{hey} {question}{extras}|{news} {plan}{extras} {bye}|{plan}{extras} {bye}",
        "hey": "hey!|hi hi|yo,|heyyy|morning!|hello you,|guess what:|psst,",
        "news": "{=thing} was {mood}.|just back from {=thing}, {mood}!|I can't stop thinking about {=thing}.|"
        "{someone} says {=thing} is {mood}.|{small} hours of {=thing} and still {mood}.",
        "mood": "amazing|a bit much|so good|pretty weird|the best|kind of boring|totally worth it|a mess",
        "reaction": "haha|lol|omg|no way|wow|love it|ugh|can't even|:)|xD",
        "question": "are you in for {=thing} on {day}?|did you {activity} yet?|what about {=thing} later?|"
        "who brings the {item}?|when do we {activity}?",
        "plan": "let's {activity} on {day}.|we could {activity} after work.|{someone} and I {activity} at {hour}.|"
        "I'll bring the {item} on {day}.",
        "bye": "see you!|later|hugs|bye bye|cu|miss you|take care|x",
        "someone": "Mia|Jonas|Priya|Tom|Lena|Omar|Ines|Kofi",
        "hour": "six|seven|half past eight|nine|noon",
        "day": DAYS,
        "small": SMALL,
        "says_home": "we're at {my_address}.|call our landline {my_landline}.|"
        "our {my_pet} says hi.|come to {my_address}!",
        "says_email": "send it to {my_value}.|new mail: {my_value}",
        "says_phone": "new number: {my_value}|text me at {my_value}.",
        "says_card": "use my card {my_value}.|card for the tickets: {my_value}",
        "says_iban": "you owe me ten, {my_value}.|send it to {my_value}.",
        "says_ip": "game server is {my_value}.|join {my_value}.",
        "says_birth_date": "my real birthday is {my_value}.|born {my_value}, you forgot!",
    },
    topics={
        "food": {
            "thing": "the ramen place|that curry|brunch|the new bakery|taco night",
            "activity": "cook|order pizza|try the noodles|bake something",
            "item": "salad|dumplings|wine|chili sauce",
        },
        "football": {
            "thing": "the derby|that penalty|the match|training|the second half",
            "activity": "watch the game|play five-a-side|warm up|get tickets",
            "item": "ball|scarves|jersey|snacks",
        },
        "series": {
            "thing": "the finale|episode three|that plot twist|the new season|the spin-off",
            "activity": "watch the next one|rewatch season one|finish the series|skip the intro",
            "item": "popcorn|blanket|projector|password",
        },
        "travel": {
            "thing": "the night train|Lisbon|the hostel|that beach|the ferry",
            "activity": "book the train|pack|find a hostel|walk the coast",
            "item": "tent|maps|sunscreen|passports",
        },
        "music": {
            "thing": "the gig|that bass line|the open mic|her new album|band practice",
            "activity": "rehearse|record the demo|go to the gig|tune the guitars",
            "item": "amp|drum sticks|cables|setlist",
        },
        "pets": {
            "thing": "the vet|the dog park|that kitten|puppy school|the aquarium",
            "activity": "walk the dogs|visit the shelter|clean the tank|call the vet",
            "item": "leash|treats|brush|carrier",
        },
    },
    rare={
        "falconry": {
            "thing": "the peregrine's moult|the mews|a lure flight|the tiercel|hooding the goshawk",
            "activity": "fly the falcon|weigh the hawk|braid new jesses|cast off at dawn",
            "item": "gauntlet|lure|bells|bating perch",
        },
        "numismatics": {
            "thing": "the denarius hoard|a brockage|the overstrike|that tetradrachm|the mint mark",
            "activity": "grade the obverse|catalogue the bronzes|weigh the solidus|bid on the lot",
            "item": "loupe|calipers|coin flips|die study",
        },
    },
    habits=frozenset({"hey", "reaction", "bye", "mood", "someone", "hour"}),
    odd={
        "hey": "Esteemed correspondent,|It is with pleasure that I report:|Per my previous message,",
        "reaction": "How very singular.|One is most gratified.|I remain unconvinced.",
        "mood": "eminently satisfactory|altogether regrettable|of considerable merit",
        "bye": "Respectfully submitted.|I remain your obedient servant.|End of communication.",
    },
    surfaces=("plain", "lower", "lower", "bangs", "dots", "short"),
    secret="my locker code is ",
)
