"""A diary of one's own health."""

from harness.data.synthetic.scenarios.base import DAYS, Scenario

SCENARIO = Scenario(
    rules={
        "body": "{date}: {symptoms} {took} {slept}{extras} {feeling}|{date}: {symptoms} {cause}{extras} {feeling}|"
        "{date}: {reading} {symptoms} {took}{extras}|{date}: {reading} {slept}{extras} {feeling}|"
        "{date}: {visit} {took}{extras} {feeling}",
        "date": "{day}|Day {number}|{day} {part}|Week {number}, {day}|{part} entry",
        "part": "morning|noon|evening|night",
        "symptoms": "{=symptom} {severity} since {part}.|{severity} {=symptom}, mostly in the {part}.|"
        "no {=symptom} today.|{=symptom} came back {trigger}.",
        "severity": "mild|moderate|strong|barely any|worse than usual|rather heavy",
        "cause": "I think it was {trigger}.|Probably {trigger}.|Again {trigger}, I should know better.",
        "took": "Took {dose} of {medicine}.|{medicine} {dose}, helped after {number} minutes.|Skipped {medicine}.|"
        "{dose} {medicine} with food.",
        "dose": "one tablet|half a tablet|200 mg|400 mg|two puffs|10 ml",
        "slept": "Slept {number} hours.|Woke up {number} times.|Slept badly.|Good night's sleep.",
        "feeling": "Feeling {mood}.|Mood: {mood}.|Overall {mood}.|{mood}, will watch it.|All in all {mood}.",
        "mood": "better|tired|hopeful|annoyed|fine|flat|anxious|calm",
        "visit": "Saw Dr. {doctor} about the {=symptom}.|Dr. {doctor} wants a new {test}.|{test} with Dr. {doctor}.",
        "doctor": "Albrecht|Mensah|Okafor|Lindqvist|Romero|Tanaka|Novak|Haddad",
        "number": "2|3|4|5|6|7|8|12|20|30|45",
        "day": DAYS,
        "says_home": "At home at {my_address}.|The nurse calls on our landline {my_landline}.|"
        "Our {my_pet} kept me awake.|Moved the appointment to {my_address}.",
        "says_email": "Results go to {my_value}.|Clinic writes to {my_value}.",
        "says_phone": "Clinic calls me at {my_value}.|Emergency number on file: {my_value}.",
        "says_card": "Paid the pharmacy with {my_value}.|Deductible charged to card {my_value}.",
        "says_iban": "Insurance refunds to {my_value}.|Refund account {my_value}.",
        "says_ip": "Sensor uploads from {my_value}.|Monitor address {my_value}.",
        "says_birth_date": "Form again: born {my_value}.|DOB {my_value} on the label.",
    },
    topics={
        "migraine": {
            "symptom": "migraine|aura|throbbing behind the eye|nausea|sensitivity to light",
            "trigger": "after red wine|from the screen|after skipping lunch|with the weather change",
            "medicine": "sumatriptan|ibuprofen|magnesium|naproxen",
            "reading": "Pain {number} of 50.|Attack lasted {number} hours.",
            "test": "eye exam|head scan",
        },
        "diabetes": {
            "symptom": "low sugar|thirst|shaky hands|tingling feet|high sugar",
            "trigger": "after pasta|before breakfast|after the long run|from a late dinner",
            "medicine": "metformin|insulin|glucose gel|test strips",
            "reading": "Glucose 1{number} before food.|Glucose {number} above target.",
            "test": "HbA1c|foot check",
        },
        "asthma": {
            "symptom": "wheezing|tight chest|dry cough|short breath|itchy throat",
            "trigger": "from pollen|after climbing stairs|near the cat|in cold air",
            "medicine": "salbutamol|budesonide|montelukast|the blue inhaler",
            "reading": "Peak flow 3{number}.|Used the inhaler {number} times.",
            "test": "spirometry|allergy test",
        },
        "back": {
            "symptom": "lower back pain|stiff neck|sciatica|numb leg|sore shoulder",
            "trigger": "after lifting boxes|from the office chair|after gardening|from the long drive",
            "medicine": "diclofenac|heat patch|paracetamol|stretching",
            "reading": "Walked {number} minutes.|Sat for {number} hours.",
            "test": "X-ray|posture check",
        },
        "heart": {
            "symptom": "palpitations|dizziness|swollen ankles|skipped beats|chest flutter",
            "trigger": "after coffee|from stress|on the stairs|after salty soup",
            "medicine": "bisoprolol|ramipril|aspirin|amlodipine",
            "reading": "Blood pressure 1{number} over 8{number}.|Pulse 7{number} at rest.",
            "test": "ECG|stress test",
        },
        "stomach": {
            "symptom": "heartburn|bloating|cramps|reflux|stomach ache",
            "trigger": "after milk|from fried food|after eating late|from the antibiotics",
            "medicine": "omeprazole|antacid|peppermint tea|probiotics",
            "reading": "Ate {number} small meals.|Reflux {number} times at night.",
            "test": "endoscopy|lactose test",
        },
    },
    rare={
        "tropical": {
            "symptom": "breakbone ache|jungle rash|quartan fever|sandfly sores|night chills",
            "trigger": "since the Orinoco trip|from the mangrove swamp|after the bat cave",
            "medicine": "artemether|miltefosine|quinine|ivermectin",
            "reading": "Parasite count {number} per field.|Fever cycle day {number}.",
            "test": "blood smear|titre",
        },
        "diving": {
            "symptom": "the bends|squeezed sinus|ear barotrauma|nitrogen haze|joint niggles",
            "trigger": "after the wreck dive|from a fast ascent|below forty metres",
            "medicine": "pure oxygen|nifedipine|the chamber|decongestant",
            "reading": "Bottom time {number} minutes.|Depth {number} metres.",
            "test": "chamber session|Doppler bubble test",
        },
    },
    habits=frozenset({"date", "severity", "feeling", "mood", "doctor", "slept", "dose"}),
    odd={
        "date": "Log stardate {number}|O diary|Chapter {number} of my ruin",
        "severity": "exquisite|catastrophic|symphonic",
        "feeling": "The body is a traitor.|I endure, as mountains do.|Fate laughs at {mood} flesh.",
        "slept": "Sleep, that thief, came not.|Dreamt of drowned cathedrals.",
    },
    surfaces=("plain", "plain", "lower", "dots", "short"),
    secret="Patient portal PIN is ",
)
