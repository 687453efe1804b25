"""Words for made people and their homes."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _words(
    "Ada Amir Anna Ben Carla Chen Dana Elif Emil Eva Femi Finn Greta Hana Hugo Ida Ivan Jana Joel Kai Karin Lars Lea "
    "Leo Lina Luca Mara Marco Maya Milan Nadia Nils Noor Olga Oscar Paula Petra Rafael Rosa Sami Sara Selma Sven Tara "
    "Theo Uma Vera Viktor Wanda Yara Yusuf Zoe"
)
LAST = _words(
    "Abbott Adler Barros Becker Berg Castro Conti Costa Dahl Dietrich Duarte Ekman Falk Ferrara Fischer Garcia Grant "
    "Haas Holm Ibrahim Ivanov Jansen Kaya Keller Kim Kowalski Larsen Lehmann Lopez Marin Meyer Moreau Nakamura Nunez "
    "Olsen Okoye Park Petrov Quinn Ramos Reed Rossi Sato Schmitt Silva Stone Tran Vogel Walsh Weber Yilmaz Zhang"
)
STREETS = _words(
    "Alder Amber Bell Birch Bridge Canal Cedar Chapel Cherry Church Clay Copper Dock Elm Fern Field Ferry Forge Garden "
    "Glen Harbour Hazel Hill Holly Iron King Lake Larch Linden Maple Market Meadow Mill Moss North Oak Orchard Park "
    "Pearl Pine Pond Quarry River Rose Rowan School Spring Station Stone Temple Tower Vine Walnut Water Willow"
)
KINDS_OF_STREET = ("Street", "Road", "Lane", "Avenue", "Square", "Close")
CITIES = _words(
    "Ashford Brenton Calder Dunmore Eastvale Fairhaven Glenrock Harlow Inverdale Kingsmere Larkfield Marlow Northwick "
    "Oakhurst Pinehill Queensbay Redmoor Stonebridge Thornbury Westbrook"
)
PETS = ("cat", "dog", "parrot", "rabbit", "tortoise", "hamster")
PET_NAMES = _words(
    "Biscuit Cleo Dusty Figaro Ginger Hazelnut Juno Kiwi Luna Mango Nacho Olive Pepper Pixel Rocky Simba Socks Tango "
    "Waffles Ziggy"
)
