"""The things that scenes are made of: everyday objects, plain shapes, and what people call them.

An object is one icon of the npm package `@iconify-json/fluent-emoji-flat`. Labels follow
`emojibase-data` where its label is what a person would type, and are shortened where it is not
("cat face" → "cat").
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """Something that can be named in a prompt and drawn."""

    name: str
    icon: str | None
    """Icon name in the icon set, or None for a plain shape."""
    plural: str
    natural_colour: str | None = None
    """Colour the icon already has, so that asking for it keeps the icon as drawn."""
    synonyms: tuple[tuple[str, str], ...] = ()
    """Other (singular, plural) names."""

    @property
    def is_shape(self) -> bool:
        return self.icon is None


def plural_of(noun: str) -> str:
    """English plural of a regular noun."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


# One line a thing: name | icon (when it differs) | natural colour | synonyms.
# An irregular plural stands after a slash.
_OBJECTS = """
cat | cat-face | orange | kitten, kitty
dog | dog-face | | puppy
fox | | orange
bear | | brown
panda | | | panda bear
koala | |
lion | |
tiger | tiger-face | orange
horse | horse-face | brown
cow | cow-face |
pig | pig-face | pink
mouse/mice | mouse-face | gray
rabbit | rabbit-face | | bunny
frog | | green
monkey | monkey-face | brown
unicorn | | white
penguin | |
chick | baby-chick | yellow | baby chicken
owl | | brown
duck | |
parrot | |
elephant | | gray
hedgehog | |
fish/fish | tropical-fish |
whale | spouting-whale | blue
shark | |
octopus/octopuses | |
crab | | red
turtle | | green | tortoise
snake | | green
snail | |
butterfly | |
bee | honeybee | yellow | honeybee
ladybug | lady-beetle | red | ladybird
rose | | red
tulip | |
sunflower | | yellow
flower | cherry-blossom | pink | blossom
cactus/cacti | | green
tree | deciduous-tree | green
pine tree | evergreen-tree | green | fir tree
palm tree | |
mushroom | | red | toadstool
leaf/leaves | maple-leaf | | maple leaf/maple leaves
apple | red-apple | red
orange | tangerine | orange | tangerine
lemon | | yellow
banana | | yellow
pear | | green
cherry | cherries | red
strawberry | | red
grape | grapes | purple | bunch of grapes/bunches of grapes
watermelon | |
pineapple | | yellow
tomato/tomatoes | | red
eggplant | | purple | aubergine
carrot | | orange
broccoli/broccoli | | green
avocado | | green
bread/bread | | brown | loaf of bread/loaves of bread
cheese/cheese | cheese-wedge | yellow | piece of cheese/pieces of cheese
burger | hamburger | | hamburger
pizza | | | slice of pizza/slices of pizza
hot dog | |
ice cream | soft-ice-cream | | ice cream cone
donut | doughnut | | doughnut
cookie | | brown | biscuit
cake | birthday-cake | | birthday cake
lollipop | | | lolly/lollies
cup | hot-beverage | | cup of coffee/cups of coffee, coffee, cup of tea/cups of tea
car | automobile | red | automobile
bus | | yellow
taxi | | yellow | cab
truck | delivery-truck | | lorry
fire truck | fire-engine | red | fire engine
train | locomotive | | locomotive
bicycle | | | bike
motorcycle | | | motorbike
airplane | | | plane, aeroplane
helicopter | |
rocket | |
boat | sailboat | | sailboat
ufo | flying-saucer | | flying saucer
house | | | home
castle | |
tent | |
mountain | snow-capped-mountain |
balloon | | red
gift | wrapped-gift | | present
ball | soccer-ball | | soccer ball, football
basketball | | orange
guitar | |
book | closed-book | red
key | | yellow
bell | | yellow
crown | | yellow
hat | top-hat | black | top hat
umbrella | | purple
clock | alarm-clock | red | alarm clock
phone | mobile-phone | | mobile phone, smartphone
camera | |
laptop | | | computer
light bulb | | yellow | lightbulb, bulb
chair | |
scissors/scissors | | | pair of scissors/pairs of scissors
pencil | |
shoe | running-shoe | | sneaker
shirt | t-shirt | blue | t-shirt
teddy bear | | brown | teddy
robot | |
ghost |
snowman/snowmen | |
rainbow | |
cloud |
sun | | yellow
moon | crescent-moon | yellow | crescent moon
fire/fires | | | flame
snowflake | | blue
wolf/wolves | | gray
polar bear | | white
raccoon | | gray
zebra
giraffe
kangaroo
camel
deer/deer | | brown
sheep/sheep | ewe
goat
donkey | | gray
rhino | rhinoceros | gray | rhinoceros
hippo | hippopotamus | | hippopotamus
crocodile | | green | alligator
lizard | | green
dinosaur | t-rex | green | t-rex
dragon | | green
bat
squirrel | chipmunk | brown | chipmunk
skunk
swan | | white
flamingo | | pink
peacock
eagle
rooster
chicken | | | hen
bird | | red
dolphin | | blue
seal | | gray
jellyfish/jellyfish
lobster | | red
shrimp/shrimp | | red | prawn
ant | | purple
spider | | purple
caterpillar | bug | green
clover | four-leaf-clover | green | four-leaf clover
houseplant | potted-plant | green | potted plant
peach | | orange
mango | | orange | mango fruit
kiwi | kiwi-fruit | | kiwi fruit
lime | | green
blueberry | blueberries | purple
corn/corn | ear-of-corn | yellow | ear of corn/ears of corn
pepper | bell-pepper | | bell pepper
chili | hot-pepper | red | chili pepper, hot pepper
cucumber | | green
potato/potatoes | | brown
onion
lettuce/lettuce | leafy-green | green
peanut | peanuts
egg
bacon/bacon | | | strip of bacon/strips of bacon
steak | cut-of-meat
chicken leg | poultry-leg | brown | drumstick
fries/fries | french-fries | | french fries/french fries
sandwich
taco
popcorn/popcorn | | | box of popcorn/boxes of popcorn
pretzel | | brown
croissant
waffle
pancake | pancakes
sushi/sushi | | | piece of sushi/pieces of sushi
cupcake | | | muffin
chocolate/chocolates | chocolate-bar | brown | chocolate bar
candy | | | sweet
honey/honey | honey-pot | | jar of honey/jars of honey
milk/milk | glass-of-milk | | glass of milk/glasses of milk
wine/wine | wine-glass | red | glass of wine/glasses of wine, wine glass
beer | beer-mug | yellow | mug of beer/mugs of beer
cocktail | cocktail-glass
teapot | | red
spoon | | gray
knife/knives | kitchen-knife
globe | globe-showing-americas | | earth/earths, planet earth
volcano/volcanoes
island | desert-island | | desert island
church
factory
tower | tokyo-tower | orange
ferris wheel
police car
ambulance
race car | racing-car | red | racing car
tractor
scooter | motor-scooter | | motor scooter
skateboard
ship
anchor
planet | ringed-planet | | saturn
lightning bolt | high-voltage | orange | lightning/lightning
water drop | droplet | blue | drop of water/drops of water
wave | water-wave | blue | water wave
pumpkin | jack-o-lantern | orange
christmas tree | | green
trophy | | yellow
medal | sports-medal | yellow | gold medal
american football | | brown
baseball
tennis racket | tennis | | racket
volleyball
roller skate | | | rollerskate
kite
dice/dice | game-die | | die/dice
puzzle piece | | green | jigsaw piece
game controller | video-game | | gamepad, video game
palette | artist-palette | | paint palette
paintbrush
ribbon
glasses/glasses | | | pair of glasses/pairs of glasses, spectacles/spectacles
sunglasses/sunglasses | | | pair of sunglasses/pairs of sunglasses
jeans/jeans | | blue | pair of jeans/pairs of jeans
dress
socks/socks | | | pair of socks/pairs of socks
gloves/gloves | | | pair of gloves/pairs of gloves
scarf/scarves
cap | billed-cap | | baseball cap
boot | hiking-boot | | hiking boot
high heel | high-heeled-shoe | red | high-heeled shoe
ring | | | diamond ring
gem | gem-stone | blue | gemstone, jewel
lipstick
backpack | | red | rucksack
handbag | | | bag
suitcase | luggage | | luggage/luggage
microphone
headphones/headphones | headphone | | pair of headphones/pairs of headphones
saxophone | | yellow
trumpet | | yellow
violin
drum | | red
telephone | | red
television | | | tv
battery | | green
candle
newspaper | | | paper
envelope | | | letter
mailbox | closed-mailbox-with-raised-flag | | letterbox
package | | brown | parcel, box
pushpin | | red | pin
ruler | straight-ruler
lock | locked | yellow | padlock
hammer
axe
screwdriver
wrench | | gray | spanner
toolbox | | red | tool box
magnet | | red
ladder
bomb | | purple
shield
magnifying glass | magnifying-glass-tilted-left
telescope
thermometer
pill
toothbrush
bathtub | | | bath
toilet
bed
couch | couch-and-lamp | | sofa
door | | brown
window
basket
broom
bone
tooth/teeth
brain | | pink
skull
hourglass | hourglass-not-done
watch | | | wristwatch
compass
coin | | yellow | gold coin
money bag | | | bag of money/bags of money
shopping cart | | | shopping trolley
crystal ball | | purple
alien
clown | clown-face | | clown face
feather
rock | | gray | stone
fire extinguisher | | red
graduation cap
smiley | slightly-smiling-face | | smiley face, happy face
"""

_SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond")


def _noun_pair(text: str) -> tuple[str, str]:
    singular, _, plural = text.strip().partition("/")
    return singular, plural or plural_of(singular)


def _parse(line: str) -> Thing:
    fields = [field.strip() for field in line.split("|")] + ["", "", ""]
    singular, plural = _noun_pair(fields[0])
    synonyms = tuple(_noun_pair(word) for word in fields[3].split(",") if word.strip())
    icon = fields[1] or singular.replace(" ", "-")
    return Thing(singular, icon, plural, fields[2] or None, synonyms)


OBJECTS: tuple[Thing, ...] = tuple(_parse(line) for line in _OBJECTS.strip().splitlines())
SHAPES: tuple[Thing, ...] = tuple(Thing(name, None, plural_of(name)) for name in _SHAPES)
THINGS: tuple[Thing, ...] = OBJECTS + SHAPES
BY_NAME: dict[str, Thing] = {thing.name: thing for thing in THINGS}
