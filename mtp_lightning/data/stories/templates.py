"""What stories are made of (`stories.py` tells them): words, and sentences with slots, by their place in a plot.

A file of data, and long for that reason. The rules of its templates, which tests hold:

- {A}, {B}, {C} are the characters, {A.he}, {A.him}, {A.his}, {A.himself} their pronouns. A pronoun stands behind the
  name it means, in the same template: templates are chosen one by one, and the one before may be about someone else.
- {toy} is a word of WORDS["toy"], the same one in all of a story; {toy2} is another one. Words of FRESH are drawn anew
  wherever they stand. {toy.a} writes "a kite" or "an egg", {toy.s} the plural; {activity.ed} and {activity.ing} are a
  verb's other forms.
- People without a name have no pronoun, so that in a story of one character every "she" is that character.
- Sentences begin with small letters where a slot does; the teller makes them large.
"""

from typing import NamedTuple

Beat = tuple[str, ...]
"""Templates of which a story has one, "" for none: one or two sentences that do the same for the plot."""


class Plot(NamedTuple):
    roles: tuple[str, ...]
    """Who A, B and C are: "child", "elder", or one of KINDS."""
    paragraphs: tuple[tuple[Beat, ...], ...]


def _one_of(lines: str) -> Beat:
    """A template a line; a line that is "-" is nothing."""
    return tuple("" if line.strip() == "-" else line.strip() for line in lines.strip().splitlines())


def _words(lines: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in lines.replace("\n", ",").split(",") if word.strip())


GIRLS = _words("""
Abigail, Alice, Amy, Anna, Bella, Carla, Charlotte, Chloe, Clara, Diana, Ella, Ellie, Emily, Emma, Eva, Fiona,
Hannah, Heidi, Jane, Jenny, Julia, Kate, Laura, Leah, Lily, Lisa, Lucy, Mandy, Maria, Mary, Maya, Mia, Molly, Nancy,
Nina, Nora, Olivia, Polly, Rachel, Rosie, Sally, Sara, Sophie, Stella, Susie, Tina, Zoe
""")
BOYS = _words("""
Adam, Andy, Anthony, Arthur, Ben, Benny, Billy, Bobby, Carlos, Charlie, Daniel, David, Eddie, Eric, Ethan, Freddy,
George, Harry, Henry, Hugo, Ian, Jack, Jacob, Jake, James, Jason, Joe, John, Johnny, Josh, Kevin, Leo, Liam, Lucas,
Luke, Martin, Matthew, Michael, Mike, Nathan, Noah, Oliver, Oscar, Paul, Peter, Ryan, Simon, Thomas, Tim, Toby, Tom
Tommy
""")
CREATURES = _words("""
Bibi, Bobo, Coco, Dobby, Fifi, Gigi, Jojo, Kiki, Koko, Lola, Lulu, Mimi, Momo, Nibbles, Pippin, Pogo, Roxy, Rufus,
Teddo, Tilly, Toto, Winnie, Zaza, Ziggy
""")
"""Names of animals and toys, for either sex, and none of a child's."""
SURNAMES = _words("Baker, Carter, Cook, Hill, Jones, Lee, Miller, Parker, Potter, Smith, Taylor, Turner, Wilson")

KINDS: dict[str, tuple[str, ...]] = {
    "pet": _words("dog, puppy, cat, kitten, rabbit, poodle, beagle, terrier, spaniel"),
    "toy": _words("teddy bear, rag doll, stuffed rabbit, toy soldier, wooden horse, stuffed elephant, sock monkey"),
    "animal": _words(
        "fox, bear, squirrel, hedgehog, mouse, frog, badger, beaver, turtle, otter, raccoon, mole, rabbit"
    ),
    "big animal": _words("bear, badger, deer, fox, wolf, elk, goat"),
    "small animal": _words("mouse, squirrel, hedgehog, mole, frog, raccoon, hamster, chipmunk"),
    "fast animal": _words("fox, deer, hare, rabbit, wolf, weasel, squirrel, lynx"),
    "slow animal": _words("turtle, mole, hedgehog, frog, badger, bear, tortoise, beaver, toad"),
}
"""Role -> what the character is, for all roles but "child" and "elder"."""

WORDS: dict[str, tuple[str, ...]] = {
    "color": _words("red, blue, green, yellow, orange, purple, pink, white, silver, brown, golden"),
    "lost": _words("""
    ball, scarf, hat, toy car, yo-yo, umbrella, whistle, toy boat, backpack, lunch box, storybook, mitten, bracelet,
    flashlight, blanket, toy train, paint box, drum, ribbon, cap, magic wand
    """),
    "toy": _words("""
    kite, ball, drum, toy car, toy boat, toy train, scooter, jump rope, paper plane, puzzle, wagon, bucket, shovel,
    spinning top, trumpet, hula hoop, toy airplane, sled, swing, tricycle, trampoline
    """),
    "gift": _words("""
    book, kite, hat, necklace, puppet, clock, cup, painting, scarf, telescope, music box, toy rocket, ukulele, aquarium,
    jewelry box, atlas
    """),
    "activity": _words("""
    play tag|played tag|playing tag, climb trees|climbed trees|climbing trees, sing songs|sang songs|singing songs
    draw pictures|drew pictures|drawing pictures, read books|read books|reading books, dance|danced|dancing
    fly kites|flew kites|flying kites, splash in puddles|splashed in puddles|splashing in puddles
    collect leaves|collected leaves|collecting leaves, tell stories|told stories|telling stories
    jump rope|jumped rope|jumping rope, dig holes|dug holes|digging holes, pick flowers|picked flowers|picking flowers
    blow bubbles|blew bubbles|blowing bubbles, play hide and seek|played hide and seek|playing hide and seek
    chase butterflies|chased butterflies|chasing butterflies, hunt for treasure|hunted for treasure|hunting for treasure
    run races|ran races|running races, play with marbles|played with marbles|playing with marbles
    watch the birds|watched the birds|watching the birds
    """),
    "place": _words("the park, the beach, the playground, the pond, the lake, the river, the farm, the old mill"),
    "wild": _words("forest, wood, valley, jungle, pine forest"),
    "food": _words("""
    apple|apples, cookie|cookies, orange|oranges, muffin|muffins, pancake|pancakes, banana|bananas, pear|pears
    sandwich|sandwiches, plum|plums, cupcake|cupcakes, peach|peaches, waffle|waffles, doughnut|doughnuts
    """),
    "cake": _words("chocolate cake, apple pie, lemon cake, carrot cake, cherry pie, honey cake, pumpkin pie"),
    "fruit": _words("apple|apples, pear|pears, mango|mangoes, plum|plums, peach|peaches, fig|figs, apricot|apricots"),
    "plant": _words("""
    sunflower|sunflowers, tomato|tomatoes, pumpkin|pumpkins, bean|beans, carrot|carrots, rose|roses, tulip|tulips
    strawberry|strawberries, melon|melons, onion|onions
    """),
    "indoors": _words("""
    under the bed, behind the sofa, in the closet, under the kitchen table, in the laundry basket, behind the curtain
    on the bookshelf, in the toy chest, behind the door, on the stairs, in the bathtub, in the attic
    """),
    "nook": _words("""
    under a bush, behind a rock, in the tall grass, beside a tree, next to a bench, between two flowers
    under a pile of leaves, on top of a log, near the gate, beside a puddle, at the foot of a hill
    """),
    "junk": _words("""
    sock, button, spoon, pencil, old shoe, coin, empty box, crumb, feather, acorn, ping-pong ball, envelope, key
    """),
    "noise": _words("tapping, scratching, squeaking, rustling, bumping, creaking, humming, whistling"),
    "skill": _words("""
    ride a bike|rode a bike|riding a bike, skip stones|skipped stones|skipping stones, skate|skated|skating
    juggle|juggled|juggling, do a cartwheel|did a cartwheel|doing a cartwheel, tie a knot|tied a knot|tying a knot
    play the piano|played the piano|playing the piano
    walk on stilts|walked on stilts|walking on stilts, hula hoop|hula hooped|hula hooping
    """),
    "chore": _words("""
    sweep the porch|swept the porch|sweeping the porch, water the flowers|watered the flowers|watering the flowers
    rake the leaves|raked the leaves|raking the leaves, carry the bags|carried the bags|carrying the bags
    paint the fence|painted the fence|painting the fence, wash the windows|washed the windows|washing the windows
    feed the chickens|fed the chickens|feeding the chickens
    stack the firewood|stacked the firewood|stacking the firewood
    pull the weeds|pulled the weeds|pulling the weeds
    """),
    "fragile": _words(
        "vase, plate, lamp, teapot, bowl, mirror, jug, picture frame, flower pot, glass, egg cup, candlestick"
    ),
    "shape": _words("dragon, castle, sheep, ship, whale, elephant, angel, giant, rocket, octopus, train, swan"),
    "treasure": _words("compass, shell, old coin, crystal, key, arrow, ring, feather, golden cup, bottle, iron box"),
    "keepsake": _words("key, ring, old coin, watch, locket, medal, silver spoon, fountain pen, earring"),
    "craft": _words("""
    kite, puppet, picture book, paper lantern, necklace, hat, mask, crown, birdhouse, toy rocket, bookmark, paper flower
    toy robot, wind chime, envelope full of stars, airplane
    """),
    "bird": _words("robin, sparrow, duckling, pigeon, swallow, blackbird, finch, dove, starling, wren"),
    "costume": _words("pirate, queen, lion, astronaut, clown, knight, wizard, bee, fairy, cowboy, acrobat, dragon"),
}
"""Kind -> words, with other forms behind a bar."""

FRESH: dict[str, tuple[str, ...]] = {
    "day": _words("""
    one day, one sunny day, one morning, one warm morning, one afternoon, one bright morning, one fine day, one Saturday
    one quiet afternoon, one lovely day
    """),
    "trait": _words("""
    kind, brave, curious, clever, cheerful, gentle, friendly, funny, shy, quiet, lively, polite, helpful, playful
    smart, silly, sweet, adventurous, energetic
    """),
    "happy": _words("happy, glad, pleased, cheerful, joyful, delighted"),
    "sad": _words("sad, upset, unhappy, miserable, downhearted, gloomy"),
    "scared": _words("scared, afraid, frightened, nervous"),
    "nice": _words("beautiful, pretty, lovely, unusual, colorful, charming"),
    "softly": _words("softly, quietly, gently, kindly, calmly, in a small voice, with a smile"),
    "loudly": _words("loudly, happily, with a big smile, again and again, over and over"),
    "quickly": _words("quickly, at once, right away, as fast as the wind, without a word, bravely, carefully"),
    "tasty": _words("tasty, sweet, delicious, yummy, warm, fresh, juicy"),
}

CHILD = _one_of("""
Once upon a time, there was {trait.a} little {A.kind} named {A}.
Once there was {trait.a} {A.kind} named {A} who loved to {activity}.
In a little house near {place}, there lived {trait.a} {A.kind} named {A}.
There was once {A.kind.a} called {A}, and everyone said that {A.he} was very {trait}.
{A.kind.a} named {A} lived with {A.his} mom and dad in {color.a} house.
Long ago, in a quiet village, there lived {trait.a} young {A.kind} named {A}.
Do you know the story of {A}? {A} was {trait.a} {A.kind} who lived on a small farm.
This is a story about {trait.a} {A.kind} whose name was {A}.
""")
HABIT = _one_of("""
Every day, {A} liked to {activity2} at {place}.
Most of all, {A} loved {activity2.ing} with Mom and Dad.
What {A} liked best was {activity2.ing} after school.
On most days, {A} {activity2.ed} until it was time for dinner.
When the sun was out, {A} often {activity2.ed} at {place}.
-
-
""")
CHILDREN = _one_of("""
Once upon a time, there were two friends named {A} and {B}. {A} was {trait}, and {B} was {trait}.
{A} and {B} were best friends. Every day, {A} walked to {place} with {B}.
In a small town, there lived {trait.a} {A.kind} named {A}. Next door lived {trait.a} {B.kind} named {B}.
Once there was {A.kind.a} named {A} who had {trait.a} friend named {B}.
There was once {trait.a} little {A.kind} named {A}, and {A.his} best friend was {B.kind.a} named {B}.
{A} lived in {color.a} house, and {B} lived across the street. They both loved to {activity}.
""")
STRANGERS = _one_of("""
Once upon a time, there was {trait.a} {A.kind} named {A} who lived near {place}.
There once was {A.kind.a} called {A}. More than anything, {A} wished for a friend.
In a house on a hill, there lived {trait.a} little {A.kind} named {A}.
Once there was {trait.a} {A.kind} named {A} who had nobody to play with.
{A.kind.a} named {A} had just moved to a new town with {A.his} mom and dad.
""")
CHILD_AND_PET = _one_of("""
Once upon a time, there was {trait.a} {A.kind} named {A} who had {trait.a} {B.kind} named {B}.
There was once {A.kind.a} named {A}. {A} had a little {B.kind} named {B}, and {B} went everywhere with {A}.
In {color.a} house near {place}, there lived {A.kind.a} named {A} and {B.kind.a} named {B}.
Once there was {trait.a} {A.kind} called {A}. The best friend {A} had was {B.kind.a} called {B}.
{A.kind.a} named {A} had wished for {B.kind.a} for years. Now {B.kind.a} called {B} lived in the house.
""")
CHILD_AND_TOY = _one_of("""
Once upon a time, there was {trait.a} {A.kind} named {A} who had an old {B.kind} named {B}.
There was once a little {A.kind} named {A}. Every night, {A} slept beside {B.kind.a} named {B}.
In a room with {color.a} door lived {A.kind.a} named {A} and {A.his} favorite toy, {B.kind.a} named {B}.
{A.kind.a} named {A} had many toys, but the best one was {B.kind.a} called {B}.
""")
ANIMAL_FRIENDS = _one_of("""
Once upon a time, {trait.a} {A.kind} named {A} lived in a deep {wild}. Not far away lived {B.kind.a} named {B}.
In a green {wild}, there lived {trait.a} {A.kind} named {A} and {trait.a} {B.kind} named {B}.
Once there was a little {A.kind} named {A} who had a good friend, {B.kind.a} named {B}.
Deep in the {wild}, {A.kind.a} named {A} shared a little house with {B.kind.a} named {B}.
At the edge of the {wild} lived {A.kind.a} named {A}. One of {A}'s friends was {trait.a} {B.kind} named {B}.
""")
ENDING_OF_ONE = _one_of("""
It was a day that {A} would never forget.
And that is how {A} learned something new.
Mom and Dad were very proud of {A}.
And everyone who knew {A} was {happy}, too.
Grandma smiled and said, "Well done, {A}!"
So ended a very good week for {A}.
-
""")
ENDING_OF_TWO = _one_of("""
From that day on, {A} and {B} were the best of friends.
And so {A} and {B} lived happily ever after.
It was a day that {A} and {B} would never forget.
After that, {A} and {B} always helped each other.
Everyone could see how much {A} and {B} liked each other.
And if they have not stopped, {A} and {B} are still playing today.
Nothing could ever part {A} and {B} again.
-
""")

LOST_THING = Plot(
    ("child",),
    (
        (
            CHILD,
            _one_of("""
            {A} had {color.a} {lost} that {A.he} took everywhere.
            The thing that {A} loved most was {A.his} {color} {lost}.
            Last summer, {A} had got {color.a} {lost} from Grandma, and {A.he} was very fond of it.
            Every night, {A} put {A.his} {color} {lost} beside {A.his} bed.
            """),
        ),
        (
            _one_of("""
            {day}, {A} could not find the {lost} anywhere.
            But {day}, when {A} wanted to play, the {color} {lost} was gone.
            {day}, {A} came home and saw that the {lost} was missing.
            Then, {day}, {A} opened {A.his} bag, and there was no {lost} in it!
            """),
            _one_of("""
            At once, {A} felt very {sad}. "Where is my {lost}?" {A.he} asked.
            "Oh no!" cried {A}. "My {lost} is gone!"
            A big tear rolled down, because {A} loved the {lost} so much.
            "I have to find my {lost}," said {A}, and {A.he} began to look.
            """),
            _one_of("""
            First, {A} looked {indoors}, but there was only {junk.a}.
            So {A} searched {indoors} and {indoors2}. {A.he} found {junk.a}, but no {lost}.
            For a long time, {A} looked {indoors}. {A.he} even looked {indoors2}.
            There was {junk.a} {indoors}, and there was {junk2.a} {indoors2}, but {A} did not find the {lost}.
            """),
            _one_of("""
            "Have you seen my {lost}?" {A} asked. "No, but I will help you look," said Dad.
            Mom and Dad helped {A} to look {indoors3}, but the {lost} was not there.
            {A}'s little brother had not seen the {lost}, and the cat just said, "Meow."
            -
            """),
            _one_of("""
            Then {A} sat down and thought hard. {A.he} remembered that {A.he} had played at {place}.
            "Think, {A}," said Mom. "Where did you play yesterday?" "At {place}!" said {A}.
            "When did you see it last, {A}?" asked Grandpa. "I had it at {place}," said {A}.
            All at once, {A} had an idea. {A.he} had been to {place} the day before!
            """),
        ),
        (
            _one_of("""
            So {A} ran to {place}, and there, {nook}, lay the {color} {lost}!
            Mom took {A} back to {place}. Something {color} lay {nook}, and it was the {lost}!
            Dad went to {place} with {A}. There was the {lost}, {nook}!
            At {place}, {A} looked left and right. Then {A.he} saw the {lost} {nook}.
            """),
            _one_of("""
            "I found you!" said {A}, and {A.he} hugged the {lost}.
            Now {A} was so {happy} that {A.he} danced all the way home.
            "Hooray!" shouted {A}. The {lost} was a little dirty, but {A} did not mind.
            With the {lost} in {A}'s arms, they walked home, and {A} felt {happy}.
            """),
            _one_of("""
            From that day on, {A} always put the {lost} back in its place.
            "I will take better care of my things," said {A}, and {A.he} did.
            After that, {A} kept the {lost} in a safe place every night.
            """),
        ),
    ),
)

LOST_PET = Plot(
    ("child", "pet"),
    (
        (
            CHILD_AND_PET,
            _one_of("""
            Every morning, {A} and {B} {activity.ed} together.
            In the evening, {B} slept at the foot of the bed, and {A} told {B} about the day.
            When {A} came home from school, {B} was always waiting at the door.
            """),
        ),
        (
            _one_of("""
            But {day}, {B} did not come when {A} called.
            {day}, someone left the gate open, and {B} ran away. {A} called and called.
            {day}, {A} filled the bowl with food, but no {B} came to eat it.
            {day}, {A} and {B} were at {place} when a loud bang frightened {B}, and {B.he} ran off.
            """),
            _one_of("""
            "{B}! Where are you, {B}?" shouted {A}.
            "Mom, {B} is gone!" cried {A}. {A.he} was very {sad}.
            It was getting late, and {A} was {scared}. {A.he} had never been without {B} before.
            "I must find {B} before it gets dark," said {A}.
            """),
            _one_of("""
            First, {A} looked {nook}. There was {junk.a}, but no {B}.
            Then {A} asked the mailman, the baker and the teacher, but none of them had seen {B}.
            So {A} walked all the way to {place} and looked {nook}.
            With Dad's help, {A} drew a picture of {B} and hung it on every tree.
            """),
            _one_of("""
            Suddenly, {A} heard a {noise} sound nearby.
            "Listen, {A}!" said Mom. Something made a {noise} sound.
            Just when {A} wanted to give up, {A.he} heard a {noise} sound not far away.
            """),
        ),
        (
            _one_of("""
            It was {B}! {B.he} was stuck in a hole {nook2}, and {A} pulled {B} out {quickly}.
            There was {B}, {nook2}, cold and hungry! {A} picked up {B} and held {B.him} close.
            And there sat {B} {nook2} with a tiny lost kitten. "You were helping, {B}!" said {A}.
            There lay {B}, fast asleep {nook2}. "Wake up, {B}! Let us go home," said {A}.
            """),
            _one_of("""
            When {B} saw {A}, {B} jumped for joy.
            "Good {B}," said {A} {softly}. "I missed you so much."
            And {A} laughed, because {B} licked {A.his} face again and again.
            How {happy} {A} was! {A.he} carried {B} all the way home.
            """),
            _one_of("""
            At home, {A} gave {B} a big bowl of food.
            That evening, {A} closed the gate well and gave {B} a warm bath.
            "Never run away again, {B}," said {A}, and {B} seemed to understand.
            """),
            ENDING_OF_TWO,
        ),
    ),
)

NEW_FRIEND = Plot(
    ("child", "child"),
    (
        (
            STRANGERS,
            _one_of("""
            Nobody played with {A}, and {A.he} felt {sad}.
            In the street, {A} saw the other children play, but {A.he} was too shy to ask.
            Each day, {A} sat {nook} and wished for someone to talk to.
            """),
        ),
        (
            _one_of("""
            {day}, {A} saw {B.kind.a} at {place}. The name of the {B.kind} was {B}.
            {day}, {B.kind.a} named {B} sat down right beside {A} at {place}.
            {day}, {A} heard someone laugh. It was {B.kind.a} named {B} who lived nearby.
            """),
            _one_of("""
            "Hello, I am {B}," said the {B.kind}. "What is your name?" "My name is {A}," said {A} {softly}.
            "Hi," said {A} {softly}. "I like your shoes." And {B} smiled at {A}.
            At first, {A} did not dare to speak. But {B} waved and said, "Come here! My name is {B}."
            """),
            _one_of("""
            "Do you want to play with me, {A}?" asked {B}.
            "I have nobody to play with," said {A}. "Then play with me!" said {B}.
            Then {B} showed {A} {color.a} {toy}. "We can play with it together," said {B}.
            """),
            _one_of("""
            So {A} and {B} {activity.ed} all morning. Then {A} taught {B} a new game.
            All afternoon, {A} and {B} {activity.ed}, and {A} laughed {loudly}.
            First {A} and {B} {activity.ed}. Later, {B} showed {A} how to build a tower of stones.
            """),
            _one_of("""
            When {A} got hungry, {B} gave {A} half of {food.a}.
            Then {B} fell and hurt {B.his} knee, but {A} helped {B.him} up and dried {B.his} tears.
            When it began to rain, {A} and {B} hid under a big tree and told each other funny stories.
            At noon, {B}'s mother brought {food.s} for {A} and {B}.
            """),
        ),
        (
            _one_of("""
            When it was time to go, {A} was {sad}. "I will come back tomorrow, {A}," said {B}.
            "Can we play again tomorrow?" asked {A}. "Yes, every day!" said {B}.
            "You are my friend now," {B} told {A}, and {A} was very {happy}.
            """),
            _one_of("""
            At home, {A} said, "Mom, I have a friend! {B} is so {trait}!"
            The next day, {B} was waiting at the door, and {A} ran out to meet {B.him}.
            From then on, {A} was never alone, because {B} came every day.
            """),
            ENDING_OF_TWO,
        ),
    ),
)

DARK = Plot(
    ("child", "toy"),
    (
        (
            CHILD_AND_TOY,
            _one_of("""
            There was only one problem: {A} was afraid of the dark.
            By day, {A} was {trait}, but at night {A.he} was {scared}.
            Every evening, when Dad turned off the light, {A} felt {scared}.
            """),
        ),
        (
            _one_of("""
            One night, {A} heard a {noise} sound {indoors}.
            One night, the moon was gone, and {A} could not see a thing. There was a {noise} sound {indoors}.
            One windy night, {A} could not sleep. Something made a {noise} sound {indoors}.
            One night, {A} saw a strange shadow on the wall. It looked just like {shape.a}.
            """),
            _one_of("""
            "Is it a monster?" {A} whispered, and {A.he} held {B} tight.
            So {A} pulled the blanket over {A.his} head and whispered, "{B}, do you hear that?"
            "Do not be afraid, {B}," said {A}, but {A.his} own hands were shaking.
            """),
            _one_of("""
            Of course {B} did not answer, but {B} looked so calm that {A} felt a little better.
            It seemed to {A} that {B} was smiling. "You are not {scared}, {B}," said {A} {softly}.
            "{B} is brave," thought {A}, "so I can be brave, too."
            """),
            _one_of("""
            So {A} took {B} under one arm and got out of bed.
            Step by step, {A} and {B} went across the dark room.
            With {B} in one hand and a flashlight in the other, {A} went to look {quickly}.
            """),
            _one_of("""
            There was no monster at all. It was only {junk.a} that the wind had moved!
            Then {A} began to laugh. The monster was just a little mouse with {junk.a}!
            But what {A} found was only the cat, playing with {junk.a}.
            It was only a branch at the window. "How silly of us, {B}!" said {A}.
            """),
            _one_of("""
            Dad came in and asked, "What are you doing, {A}?" "{B} and I chased the monster away," said {A}.
            "You were very brave, {A}," said Mom, and gave {A} and {B} a kiss.
            Then Mom gave {A} a small lamp, and {A} put {B} beside it.
            -
            """),
        ),
        (
            _one_of("""
            After that night, {A} was not afraid of the dark any more.
            "The dark is not bad, {B}," said {A}. "It is only the day with its eyes closed."
            Soon {A} fell asleep with {B} close to {A.his} heart.
            Now {A} could turn off the light all alone, as long as {B} was there.
            """),
            _one_of("""
            And {B}? {B} watched over {A} until the morning came.
            Every night, {A} said, "Sleep well, {B}," and closed {A.his} eyes with a smile.
            And if there was a noise at night, {A} just said to {B}, "That is only the wind."
            """),
        ),
    ),
)

SHARING = Plot(
    ("child", "child"),
    (
        (
            CHILDREN,
            _one_of("""
            {day}, {A} got a new {toy} from {A.his} uncle. It was {color} and very {nice}.
            {day}, {A} came to {place} with {nice.a} {color} {toy}.
            {day}, {A} found {color.a} {toy} in a box with {A.his} name on it.
            """),
        ),
        (
            _one_of("""
            "May I play with your {toy}, {A}?" asked {B}.
            When {B} saw the {toy}, {B.he} asked, "Can I try it, too?"
            "What {nice.a} {toy}!" said {B}. "Please let me hold it, {A}."
            """),
            _one_of("""
            "No, it is mine!" said {A}, and {A.he} held the {toy} tight.
            But {A} did not want to share. "You will break it, {B}," {A.he} said.
            "Go away, {B}," said {A}. "I want to play with it alone."
            """),
            _one_of("""
            That made {B} very {sad}, and {B.he} walked away.
            Tears came to {B}'s eyes. {B.he} sat down {nook} without a word.
            So {B} went home, and it was quiet around {A}.
            """),
            _one_of("""
            At first, {A} was happy with the {toy}, but soon {A.he} was bored.
            For a while, {A} played alone, but it was no fun without {B}.
            "It is not fun to play alone," thought {A}. {A.he} missed {B}.
            """),
            _one_of("""
            "Why is {B} so {sad}?" asked Mom. And {A} told Mom what had happened.
            "{toy.a} cannot laugh with you, {A}, but {B} can," said Dad.
            Grandma said, "Things get better when we share them, {A}."
            -
            """),
        ),
        (
            _one_of("""
            So {A} went to {B} and said, "I am sorry, {B}. Let us play with the {toy} together."
            Then {A} ran after {B}. "Please come back, and you may have the {toy} first," said {A}.
            Then {A} took the {toy} to {B} and said, "Here, {B}, it is your turn."
            """),
            _one_of("""
            "Thank you, {A}!" said {B} {loudly}.
            {B}'s face lit up, and {B.he} gave {A} a big hug.
            "I am not angry any more, {A}," said {B} {softly}.
            """),
            _one_of("""
            First {B} had a turn, and then {A} had a turn.
            To thank {A}, {B} gave {A.him} {food.a}, and they ate it together.
            They played with the {toy} until dark, and {A} had more fun than ever.
            """),
            _one_of("""
            That day, {A} learned that sharing makes two people happy.
            "It is twice as much fun with you, {B}," said {A}.
            Since then, {A} has shared all {A.his} toys with {B}, and {B} shares with {A}.
            """),
            ENDING_OF_TWO,
        ),
    ),
)

STORM = Plot(
    ("child", "pet"),
    (
        (
            CHILD_AND_PET,
            _one_of("""
            One summer day, {A} and {B} {activity.ed} at {place}.
            One hot afternoon, {A} took {B} for a walk to {place}.
            One day, when the air was very still, {A} and {B} went to {place}.
            """),
        ),
        (
            _one_of("""
            Suddenly, the sky turned black. "Look at the clouds, {B}!" said {A}.
            Then {A} felt a drop on {A.his} nose, and soon it was raining hard.
            All at once, the wind blew {A}'s hat away, and {B} ran after it.
            A bright flash lit up the sky. "That was lightning, {B}!" cried {A}.
            """),
            _one_of("""
            The thunder was so loud that {B} hid behind {A}.
            "Boom!" went the thunder. Poor {B} was {scared} and began to shake.
            "I am {scared}, too, {B}," said {A}, "but we will stay together."
            """),
            _one_of("""
            "We must find a dry place!" shouted {A}. Then {A.he} ran, and {B} ran beside {A.him}.
            The path was full of mud, and {A} slipped, but {B} waited for {A.him}.
            So {A} took off {A.his} coat and put it around {B}.
            The rain was so thick that {A} could not see the way. But {B} knew it and went first.
            """),
            _one_of("""
            At last, {A} and {B} found an old barn with {color.a} roof.
            Near the path, {B} found a little cave, and {A} crept in after {B}.
            Then {A} saw {color.a} hut. The door was open, and {A} pulled {B} inside.
            """),
            _one_of("""
            Inside it was warm, and {A} shared {food.a} with {B}.
            To cheer up {B}, {A} sang a song about the sun.
            "One, two, three. The thunder is going away, {B}!" said {A}.
            While they waited, {A} told {B} a story about {shape.a} who was not afraid of anything.
            """),
        ),
        (
            _one_of("""
            Soon the storm was over. "Look, {B}!" said {A}. "A rainbow!"
            After an hour, the sun came out again, and {B} ran through the wet grass.
            When it was quiet again, {A} opened the door, and {B} jumped into the sunshine.
            """),
            _one_of("""
            Dad came down the road with an umbrella. "There you are, {A} and {B}!" said Dad.
            On the way home, {A} and {B} splashed through every puddle.
            At home, Mom dried {A} and {B} with a big towel.
            """),
            _one_of("""
            "You were very brave, {B}," said {A}, and {B} looked {happy}.
            After that, {A} and {B} were not so afraid of storms.
            "A storm is just noise and water," {A} told {B} {softly}.
            """),
            ENDING_OF_TWO,
        ),
    ),
)

BIRTHDAY = Plot(
    ("child", "child"),
    (
        (
            CHILDREN,
            _one_of("""
            Soon it was {B}'s birthday, and {A} wanted to give {B} {nice.a} present.
            "Tomorrow is my birthday," said {B}. "Will you come to my party, {A}?"
            There was going to be a party for {B}, and {A} was very {happy} about it.
            """),
        ),
        (
            _one_of("""
            But {A} had no money to buy a present for {B}.
            "What can I give to {B}?" thought {A}. {A.he} had only two coins.
            In the shop, {A} saw {nice.a} {gift}, but it cost too much, and {A} felt {sad}.
            """),
            _one_of("""
            "You could make something for {B}, {A}," said Grandma.
            Then {A} had an idea. "I will make {craft.a} for {B}," {A.he} said.
            "A present from the heart is the best one, {A}," said Mom.
            """),
            _one_of("""
            So {A} took paper, glue and {color} paint and made {craft.a}.
            For three days, {A} worked on {craft.a} in {A.his} room. It had to be perfect for {B}.
            With some wood and {color} cloth, {A} made {craft.a}. Dad helped {A} just a little.
            """),
            _one_of("""
            When the paint spilled on the floor, {A} almost cried, but then {A.he} wiped it up and went on.
            At last, {A} wrapped the {craft} in {color} paper and tied a bow around it.
            On one side, {A} wrote, "For {B}."
            """),
            _one_of("""
            At the party, there was {cake.a}, and {B} blew out the candles.
            All the children sang for {B}, and {A} sang the loudest.
            There were {color} balloons in {B}'s house, and {A} ate three {food.s}.
            """),
        ),
        (
            _one_of("""
            Then {A} gave {B} the present. "I made it for you, {B}," said {A} {softly}.
            "Open this one, {B}!" said {A}. {A.his} heart was beating fast.
            When it was {A}'s turn, {A.he} gave {B} the {craft} and looked at the floor.
            """),
            _one_of("""
            "It is the best present of all!" said {B}, and {B.he} hugged {A}.
            {B}'s eyes grew big. "{craft.a}! Thank you, {A}!" said {B}.
            "Did you make this {craft}, {A}?" asked {B}. "It is so {nice}!"
            """),
            _one_of("""
            That made {A} very {happy}.
            Then {A} and {B} {activity.ed} with the other children.
            "Next year, I will make something for you, {A}," said {B}.
            """),
            _one_of("""
            On that day, {A} learned that love matters more than money.
            To this day, {B} keeps the {craft} from {A} beside {B.his} bed.
            -
            """),
            ENDING_OF_TWO,
        ),
    ),
)

NEIGHBOR = Plot(
    ("child", "elder"),
    (
        (
            CHILD,
            HABIT,
            _one_of("""
            Next door lived an old {B.kind}, and the name on the door was {B}.
            In the {color} house across the street lived {B}, an old {B.kind} with white hair.
            Right beside {A} lived an old {B.kind}, and everyone in town knew {B} well.
            """),
        ),
        (
            _one_of("""
            {day}, {A} saw that {B} was trying to {chore}, but {B.he} was too tired.
            {day}, {A} heard {B} sigh. "I have to {chore}," said {B}, "but my back hurts."
            {day}, {A} saw {B} sitting on the steps. "I wanted to {chore}, but I am too weak," said {B}.
            """),
            _one_of("""
            "Can I help you, {B}?" asked {A}.
            "Do not worry, {B}," said {A}. "I can {chore} for you!"
            Right then, {A} wanted to go and {activity}, but {A.he} stayed to help {B}.
            """),
            _one_of("""
            "That is very kind of you, {A}," said {B}.
            "You are small, {A}, but your heart is big," said {B} {softly}.
            "Thank you, {A}," said {B}. "Nobody has helped me for a long time."
            """),
            _one_of("""
            So {A} {chore.ed} while {B} rested in the shade.
            All morning, {A} {chore.ed}, and {B} told funny stories about the old days.
            It was hard work, but {A} {chore.ed} until everything was done.
            """),
            _one_of("""
            The next day, {A} came back, and {A.his} friends came, too. Together they helped {B}.
            While {chore.ing}, {A} found {keepsake.a}. "I lost that many years ago, {A}!" said {B}.
            When the work got too hard, {A} counted to ten, took a deep breath and went on.
            -
            """),
        ),
        (
            _one_of("""
            To thank {A}, {B} baked {cake.a}. It was {tasty}.
            Then {B} gave {A} {tasty.a} {food} and a glass of cold milk.
            "Here is something for you, {A}," said {B}, and it was {gift.a}!
            """),
            _one_of("""
            "I like to help," said {A}. "It makes me happy."
            "May I come again tomorrow?" asked {A}. "You may come every day," said {B}.
            Now {B} was not lonely any more, and {A} had a new friend.
            """),
            _one_of("""
            From then on, {A} went to see {B} every week.
            That evening, {A} told Mom about {B}, and Mom was very proud.
            After that, {A} and {B} often sat on the steps and told each other stories.
            """),
            ENDING_OF_ONE,
        ),
    ),
)

GARDEN = Plot(
    ("child",),
    (
        (
            CHILD,
            HABIT,
            _one_of("""
            {day}, Grandpa gave {A} a tiny seed. "Take good care of it, {A}," said Grandpa.
            {day}, {A} found a small seed in {A.his} pocket and wondered what would grow from it.
            "I want to grow {plant.a}," said {A} {day}, and Mom gave {A} a seed.
            """),
        ),
        (
            _one_of("""
            So {A} dug a little hole in the garden and put the seed into it.
            First, {A} pushed the seed into the soft earth with {A.his} thumb.
            Behind the house, {A} found a sunny place and planted the seed there.
            There was a pot on the porch. {A} filled it with earth and put the seed inside.
            """),
            _one_of("""
            Every morning, {A} gave it water and said, "Good morning, little seed."
            Day after day, {A} watered it with {color.a} can.
            Each day after school, {A} watered the seed and waited.
            """),
            _one_of("""
            But nothing happened, and {A} felt {sad}. "It does not grow," said {A}.
            One week went by, and {A} saw nothing but dirt. "Is it asleep?" asked {A}.
            "Why is it so slow?" asked {A}. "Good things take time, {A}," said Dad.
            """),
            _one_of("""
            Then it was hot for a whole week, so {A} carried water to it twice a day.
            One night it was very cold, so {A} covered it with an old blanket.
            A hungry snail came by, but {A} put it on a leaf far away.
            Some birds wanted to eat the seed, but {A} made a funny straw man to keep them away.
            """),
        ),
        (
            _one_of("""
            {day}, {A} saw something green. "It is growing!" {A.he} cried.
            And then, {day}, a small green leaf was there, and {A} jumped for joy.
            At last, a tiny plant came up, and {A} called, "Mom! Dad! Come and look!"
            """),
            _one_of("""
            It grew and grew, until {A} had to look twice to believe it.
            Week by week it grew, and {A} drew a picture of it every Sunday.
            By the end of summer, {A} had {nice.a} {plant}.
            """),
            _one_of("""
            There were so many {plant.s} that {A} gave some to Grandma.
            "This is the best {plant} I have ever seen, {A}," said Grandpa.
            Now {A} could show everyone {A.his} own {plant}.
            """),
            _one_of("""
            So {A} learned to wait, and {A.he} was {happy}.
            "You were patient, {A}," said Mom, "and now you have {nice.a} garden."
            In spring, {A} will plant {plant2.s}, too.
            """),
            ENDING_OF_ONE,
        ),
    ),
)

SKILL = Plot(
    ("child",),
    (
        (
            CHILD,
            _one_of("""
            All the other children could {skill}, but {A} could not.
            More than anything, {A} wanted to {skill}.
            {A}'s big sister could {skill} very well, and {A} wished to do it, too.
            {day}, {A} saw a clown who {skill.ed}. "I want to learn that!" said {A}.
            """),
        ),
        (
            _one_of("""
            "Will you teach me to {skill}?" asked {A}. "Of course, {A}," said Dad.
            So {A} asked Grandpa for help. "It is not easy, {A}, but you can do it," said Grandpa.
            "I will learn to {skill}," said {A} {softly}, "even if it takes all year."
            """),
            _one_of("""
            The first time {A} tried to {skill}, it went all wrong.
            On Monday, {A} tried for an hour, but {A.he} still could not {skill}.
            The first day was hard. By dinner, {A} was tired and {sad}.
            """),
            _one_of("""
            "I will never learn it!" cried {A}, and {A.he} wanted to give up.
            A boy from school laughed at {A}, and that made {A.him} very {sad}.
            "It is too hard for me," said {A}, with tears in {A.his} eyes.
            """),
            _one_of("""
            "Nobody is good at the start, {A}," said Mom. "Try once more."
            Then {A} saw an ant {nook}. It fell down three times, but it never gave up. "I can do that, too," said {A}.
            Grandma gave {A} {food.a} and said, "Tomorrow is another day, {A}."
            Then {A} thought of a baby bird that falls and still learns to fly.
            """),
            _one_of("""
            So {A} tried again on Tuesday, on Wednesday and on Thursday.
            Every day after school, {A} tried again.
            Slowly, {A} got better. {A.he} kept trying, even when it was hard.
            """),
        ),
        (
            _one_of("""
            And then, {day}, it worked! "Look at me!" shouted {A}.
            On Sunday, something wonderful happened. All at once, {A} could {skill}!
            At last, the day came when {A} {skill.ed} without any help.
            """),
            _one_of("""
            Everyone clapped, and {A} felt {happy}.
            "You did it, {A}!" cried Dad.
            The boy from school looked at {A} and said, "Can you show me how you do it?"
            """),
            _one_of("""
            Now {A} knows that nobody learns a thing in one day.
            "I did not give up," said {A} {softly}, and {A.he} smiled.
            Today, {A} can {skill} better than all the others.
            """),
            ENDING_OF_ONE,
        ),
    ),
)

STUCK = Plot(
    ("animal", "animal"),
    (
        (
            ANIMAL_FRIENDS,
            _one_of("""
            {day}, {A} went out to look for {fruit.s}.
            {day}, {A} was on the way to visit {B}.
            {day}, {A} woke up early and wanted to see the sun rise over the {wild}.
            """),
        ),
        (
            _one_of("""
            But {A} did not look where {A.he} was going and fell into a deep hole.
            On the way, {A} stepped into thick mud, and {A.his} feet were stuck.
            Suddenly, a branch broke and fell right on {A}'s tail.
            As {A} climbed over a log, {A.he} got stuck between two stones.
            """),
            _one_of("""
            "Help! Help!" cried {A}. "I cannot get out!"
            The more {A} pulled, the worse it got, and {A} was very {scared}.
            "Is anybody there?" {A} called over and over. But nobody came for a long time.
            """),
            _one_of("""
            Far away, {B} heard the noise. "That sounds like {A}!" said {B}.
            Luckily, {B} was just eating {fruit.a} nearby, and {B.he} heard {A} call.
            A little bird flew to {B} and told {B.him} that {A} was in trouble.
            """),
            _one_of("""
            Without a rest, {B} ran to {A}. "Do not be afraid, {A}! I am here," said {B}.
            "Hold on, {A}! I will get you out," said {B}.
            When {B} saw {A}, {B.he} said, "Stay calm, {A}. I have a plan."
            """),
            _one_of("""
            First, {B} pulled with all {B.his} strength, but {A} did not move.
            First, {B} pushed a stone away, but that was not enough to free {A}.
            At first, nothing helped at all, and both {A} and {B} felt {sad}.
            """),
            _one_of("""
            Then {B} found a long stick and gave one end to {A}.
            Then {B} made a rope of grass and threw it to {A}.
            So {B} called the whole {wild}, and all the animals pulled {A} together.
            """),
        ),
        (
            _one_of("""
            "One, two, three!" called {B}. And with a loud pop, {A} was free!
            Slowly, very slowly, {A} came out, and {B} cheered.
            It took a long time, but at last {A} stood beside {B} again.
            """),
            _one_of("""
            "Thank you, {B}! You saved me," said {A}.
            "You are a true friend, {B}," said {A} {softly}.
            And {A} hugged {B} so hard that {B} had to laugh.
            """),
            _one_of("""
            To say thank you, {A} shared a whole basket of {fruit.s} with {B}.
            "You would do the same for me, {A}," said {B}, and that was true.
            A week later, {B} lost {B.his} way in the {wild}, and it was {A} who found {B.him}.
            """),
            ENDING_OF_TWO,
        ),
    ),
)

TOO_HIGH = Plot(
    ("big animal", "small animal"),
    (
        (
            ANIMAL_FRIENDS,
            _one_of("""
            There was a tall tree in the {wild}, and on it hung one last {fruit}.
            {day}, {A} saw a big {fruit} at the very top of a tree.
            It was autumn, and {A} was hungry. High up in a tree, {A.he} saw {tasty.a} {fruit}.
            """),
        ),
        (
            _one_of("""
            "I want that {fruit}," said {A}. {A.he} jumped and jumped, but it was too high.
            So {A} shook the tree {quickly}, but the {fruit} did not fall.
            First, {A} threw a stone at the {fruit}, but the stone fell back on {A.his} foot.
            """),
            _one_of("""
            Just then, {B} came by. "That {fruit} is mine, {A}!" said {B}.
            "What are you doing, {A}?" asked {B}, who wanted the {fruit}, too.
            When {B} saw the {fruit}, {B.he} said to {A}, "I saw it first!"
            """),
            _one_of("""
            "No, it is mine!" said {A}. And {A} and {B} began to fight.
            For a long time, {A} and {B} shouted at each other.
            So {A} pushed {B}, and {B} pushed {A}.
            """),
            _one_of("""
            An old crow was watching {A} and {B}. "Why do you not work together?" asked the crow.
            Soon {A} and {B} were so tired that they sat down. The {fruit} was still on the tree.
            "Stop, {B}," said {A} at last. "We are both hungry, and nobody has the {fruit}."
            """),
            _one_of("""
            Then {A} had an idea. "Stand on my back, {B}, and you will be tall enough!" said {A}.
            "You are strong, {A}, and I can reach far," said {B}. "Let me climb on your back."
            So {A} held the trunk, and {B} climbed on {A}'s shoulders.
            """),
        ),
        (
            _one_of("""
            Up, up, up went {B}. "I have it, {A}!" shouted {B}.
            It was not easy, but {B} took hold of the {fruit} and dropped it to {A}.
            With one big stretch, {B} got the {fruit}, and then {A} and {B} fell into the soft grass.
            """),
            _one_of("""
            And {A} cut the {fruit} into two parts, one for {A.himself} and one for {B}.
            "Half for you, {B}, and half for me," said {A}.
            They shared the {fruit}, and {A} gave the bigger half to {B}.
            """),
            _one_of("""
            "It is so {tasty}!" said {B}. "It tastes better with you, {A}."
            It was the best {fruit} that {A} had ever eaten.
            Then {A} and {B} planted the seeds, and one day there will be a new tree.
            """),
            ENDING_OF_TWO,
        ),
    ),
)

BAKING = Plot(
    ("child",),
    (
        (
            CHILD,
            _one_of("""
            {day}, {A} wanted to make {cake.a} for Mom, because Mom was sick.
            "Grandma is coming tomorrow," said Mom. And {A} said, "I will bake {cake.a}!"
            {day}, {A} was hungry and wanted {cake.a}. "Let us bake one!" said {A}.
            """),
        ),
        (
            _one_of("""
            So {A} put on a big white apron and washed {A.his} hands.
            First, {A} took flour, sugar, butter and four eggs.
            "What do we need?" asked {A}. "Flour, milk and eggs," said Dad.
            """),
            _one_of("""
            With a long spoon, {A} stirred and stirred until {A.his} arm was tired.
            One egg fell on the floor, and {A} said, "Oops!" But there were three more.
            Flour was everywhere, and {A} looked just like a little ghost.
            Again and again, {A} dipped a finger into the bowl. It was so {tasty}!
            """),
            _one_of("""
            Then {A} put it into the oven and sat down to wait.
            Dad opened the hot oven, and {A} watched through the glass.
            "Now we wait for an hour," said Dad. So {A} {activity.ed} for a while.
            """),
            _one_of("""
            But then {A} smelled smoke. The {cake} was burning!
            But when {A} came back, the cat had eaten half of it! That made {A} very {sad}.
            But when it was done, {A} tried a little piece and made a face. There was salt in it and no sugar!
            But on the way to the table, {A} tripped over {junk.a}, and all of it landed on the floor.
            """),
            _one_of("""
            "Everything is ruined!" said {A}, and a tear fell on {A.his} apron.
            "Do not cry, {A}," said Dad. "Every baker makes mistakes."
            At first, {A} wanted to run away and hide {indoors}.
            """),
        ),
        (
            _one_of("""
            So {A} cleaned the kitchen and started all over again.
            "I will try again," said {A}, "and this time I will be careful."
            There was enough flour for one more. This time, {A} did everything right.
            """),
            _one_of("""
            The second {cake} was golden and warm, and {A} put {color} sugar on top.
            An hour later, {A} carried {nice.a} {cake} to the table.
            It looked a bit funny, but it smelled wonderful, and {A} was {happy}.
            """),
            _one_of("""
            "This is the best {cake} in the world, {A}!" said Mom.
            Everybody had a big piece, and {A} had two.
            "Did you make this all by yourself, {A}?" asked Mom. "Almost," said {A} {softly}.
            """),
            ENDING_OF_ONE,
        ),
    ),
)

BROKEN = Plot(
    ("child", "child"),
    (
        (
            CHILDREN,
            _one_of("""
            {day}, {A} and {B} played ball in the house, although Mom had said no.
            {day}, it rained, so {A} and {B} {activity.ed} in the living room.
            {day}, {B} came to visit {A}. They ran up and down the stairs.
            """),
        ),
        (
            _one_of("""
            Crash! {A} had knocked over Grandma's {color} {fragile}.
            Then {A} bumped into the table, and the {fragile} fell down and broke.
            "Watch out, {A}!" cried {B}. But it was too late, and the {fragile} was in pieces.
            """),
            _one_of("""
            "Mom will be angry," whispered {A}, and {A.he} was very {scared}.
            "What shall we do now?" asked {B}, but {A} did not know.
            For a moment, {A} and {B} just stood there and looked at the {fragile}.
            """),
            _one_of("""
            "Let us hide it {indoors}," said {A}.
            So {A} put the pieces into a bag and hid the bag {indoors}.
            "We could say that the cat did it," said {A}.
            """),
            _one_of("""
            "No, {A}," said {B}. "We should tell the truth."
            "That is not right, {A}," said {B} {softly}. "It is better to be honest."
            Now {A} had a bad feeling in {A.his} stomach, and {B} felt {sad}, too.
            """),
            _one_of("""
            Soon Mom came in. "Where is the {fragile}, {A}?" asked Mom.
            That evening, {A} could not eat. "What is wrong, {A}?" asked Mom.
            Then the door opened. Mom looked at {A}, and Mom looked at {B}.
            """),
        ),
        (
            _one_of("""
            With a red face, {A} said, "I broke it, Mom. I am so sorry."
            "It was an accident, Mom. I broke the {fragile}," said {A}, and {B} took {A.his} hand.
            At last, {A} told Mom everything, and {B} said, "It was my fault, too."
            """),
            _one_of("""
            "I am sad about the {fragile}, {A}," said Mom, "but I am glad that you told me."
            Mom was not angry at all. "Thank you for telling the truth, {A}," said Mom.
            "It is only {fragile.a}," said Mom and hugged {A} and {B}.
            """),
            _one_of("""
            Together, {A} and {B} glued the pieces, and the {fragile} looked almost new.
            The next day, {A} and {B} bought {nice.a} {fragile} with their own money.
            Then {A} and {B} swept the floor, and from then on they were more careful.
            """),
            _one_of("""
            "You were right, {B}," said {A}. "The truth is always better."
            Now {A} felt as light as a feather, and {B} was {happy}, too.
            That day, {A} learned from {B} to be honest.
            """),
            ENDING_OF_TWO,
        ),
    ),
)

SNOWMAN = Plot(
    ("child", "child", "pet"),
    (
        (
            _one_of("""
            Once there was {trait.a} {A.kind} named {A}. {A} had a friend named {B} and {C.kind.a} named {C}.
            One winter, {trait.a} {A.kind} named {A} and {trait.a} {B.kind} named {B} had {C.kind.a} called {C}.
            In a town in the mountains lived {A.kind.a} named {A}, {B.kind.a} named {B} and {C.kind.a} named {C}.
            """),
            _one_of("""
            One cold morning, {A} looked out of the window. Everything was white!
            One morning, {C} made a lot of noise, and {A} woke up. There was snow on every roof!
            It had snowed all night, and {B} ran to {A}'s house.
            """),
        ),
        (
            _one_of("""
            "Come out, {A}! Let us build a snowman!" called {B}.
            "Snow!" shouted {A}. "Now we will build a snowman with {B}, {C}!"
            So {A} put on warm boots and {color.a} hat and ran out to {B} and {C}.
            """),
            _one_of("""
            First, {A} made a big ball of snow, and {B} made a small one.
            Together, {A} and {B} rolled a ball of snow that was bigger than {C}.
            While {A} and {B} worked, {C} ran around and tried to catch the snowflakes.
            """),
            _one_of("""
            For the eyes, {B} found two stones, and {A} took five buttons for the mouth.
            Then {B} put on {color.a} scarf, and {A} found a hat {indoors}.
            "It looks like {shape.a}!" said {B}, and {A} laughed.
            """),
            _one_of("""
            "But it needs a nose," said {A}. "Let us take a carrot," said {B}.
            "Something is missing," said {B}. And {A} said, "It has no nose!"
            Now only the nose was missing, so {A} and {B} went in to get a carrot.
            """),
            _one_of("""
            But when they came back with the carrot, {C} jumped up and ate it!
            But {C} ran right into the snowman, and the head fell down.
            But then {C} took off with the carrot, and {A} and {B} had to run after {C.him}.
            """),
            _one_of("""
            "{C}! What have you done?" cried {A}, but {B} had to laugh.
            For a moment, {A} was {sad}. But {B} said, "It is all right. {C} only wants to play."
            "Bad {C}!" said {A}. But {C} looked at {A} with big eyes, and {A} could not be angry.
            """),
        ),
        (
            _one_of("""
            So {A} took {food.a} for a nose, and {B} said that it was even better.
            Together, {A} and {B} fixed everything, and {C} brought a stick for an arm.
            Then {C} dug in the snow and found {nice.a} pine cone. That was the new nose!
            """),
            _one_of("""
            "We have the best snowman in town!" said {B}, and {A} was {happy}.
            Next to the snowman, {A} built a small snow {C.kind} that looked like {C}.
            They took a picture of {A}, {B} and {C} with the snowman.
            """),
            _one_of("""
            When it got dark, {A}, {B} and {C} sat by the fire and drank hot milk.
            In the evening, Mom made soup for {A} and {B}, and {C} slept by the stove.
            That night, {A} waved at the snowman from the window. And {C} waved, too, with {C.his} tail.
            """),
        ),
    ),
)

RACE = Plot(
    ("fast animal", "slow animal"),
    (
        (
            ANIMAL_FRIENDS,
            _one_of("""
            "I am the fastest animal in the {wild}," {A} told everyone.
            Everyone knew that {A} was fast. And everyone knew that {B} was slow.
            {day}, {A} laughed at {B} and said, "You are so slow, {B}!"
            """),
        ),
        (
            _one_of("""
            "Let us run a race, {A}," said {B}. "You will see that I am not so slow."
            So {A} said to {B}, "I bet that you cannot run to the big oak before me."
            Then {B} said {softly}, "Will you race with me to the river, {A}?"
            """),
            _one_of("""
            All the animals came to see {A} and {B}. An old owl counted to three.
            "Ready, steady, go!" called the frogs, and off went {A} and {B}.
            On the day of the race, {A} did not even warm up, but {B} had practiced all week.
            """),
            _one_of("""
            In no time, {A} was far ahead, and {B} could not see {A.him} any more.
            At once, {A} ran ahead. {A.he} looked back and laughed at {B}.
            Like the wind, {A} flew past the trees, while {B} took one step after the other.
            """),
            _one_of("""
            "I have so much time," thought {A}, and {A.he} lay down {nook}.
            On the way, {A} saw some {fruit.s} and stopped to eat.
            But then {A} stopped to look at {treasure.a} {nook}.
            But {A} was so proud that {A.he} did not watch the path and ran into a bush of thorns.
            """),
            _one_of("""
            Meanwhile, {B} went on and on, and {B.he} never stopped.
            "I must not stop," said {B}, and {B.he} ran past {A} without a sound.
            "Keep going," {B} told {B.himself}, and {B.he} kept going.
            """),
        ),
        (
            _one_of("""
            When {A} looked up, {B} was almost there! {A} ran like the wind, but it was too late.
            Suddenly, {A} heard the others cheer for {B}. How was that possible?
            At the end, {A} and {B} were side by side, but {B} took one last big step.
            """),
            _one_of("""
            "The winner is {B}!" called the owl, and {B} was {happy}.
            So {B} won the race, and all the animals sang for {B.him}.
            They gave {B} a crown of leaves, and {A} could not believe it.
            """),
            _one_of("""
            "I am sorry that I laughed at you, {B}," said {A}.
            First {A} was {sad}, but then {A.he} said, "Well done, {B}. You were better today."
            "You are fast, {A}," said {B}, "but you must not stop in the middle."
            """),
            _one_of("""
            After that, {A} never laughed at {B} again.
            The next day, {A} and {B} ran together, just for fun.
            Then {B} shared the prize, a basket of {fruit.s}, with {A}.
            """),
            ENDING_OF_TWO,
        ),
    ),
)

HURT_BIRD = Plot(
    ("child",),
    (
        (
            CHILD,
            _one_of("""
            {day}, {A} heard a {noise} sound {nook}.
            {day}, {A} was on the way home from {place} when something moved {nook}.
            After a storm, {A} went out to the garden and saw something {nook}.
            """),
        ),
        (
            _one_of("""
            It was a little {bird} with a hurt wing. "Poor thing," said {A}.
            There lay a tiny {bird} that could not fly, and {A} felt {sad}.
            {bird.a} had fallen out of its nest, and {A} sat down beside it.
            """),
            _one_of("""
            Very gently, {A} picked it up and carried it home in {A.his} hat.
            The {bird} was {scared}, but {A} spoke to it {softly}.
            "Mom, can we help it?" asked {A}. "Let us try, {A}," said Mom.
            """),
            _one_of("""
            At home, {A} made a bed of cotton and grass in an old box.
            Dad put a bandage on the wing, and {A} held the {bird} still.
            So {A} gave it a few drops of water and some crumbs.
            """),
            _one_of("""
            Every two hours, {A} fed the {bird}, even at night.
            For three weeks, {A} took care of it before and after school.
            Each evening, {A} sang a song for the {bird}, and it listened.
            """),
            _one_of("""
            "When you are strong, you will fly again," {A} told it.
            The {bird} grew stronger, and soon it hopped around the room and sat on {A}'s shoulder.
            But {A} knew that a wild {bird} wants to be free.
            """),
        ),
        (
            _one_of("""
            {day}, {A} carried the {bird} to the garden.
            "It is time," said Mom {day}. So {A} opened the window.
            Then came the day when {A} had to say goodbye.
            """),
            _one_of("""
            The {bird} looked at {A}, spread its wings and flew up into the sky.
            It sat on {A}'s hand for a moment, and then it flew over the roof.
            At first, it did not move. "Go on, you can do it!" said {A}. And off it flew!
            """),
            _one_of("""
            "Goodbye, little {bird}!" called {A}. {A.he} was sad and happy at the same time.
            Although {A} cried a little, {A.he} was also very {happy}.
            "You have a good heart, {A}," said Dad.
            """),
            _one_of("""
            Next spring, {A} heard a song at the window. The {bird} had come back!
            Now and then, the {bird} comes to visit {A} and sits on the window sill.
            Since then, {A} has always put out seeds for the birds.
            """),
            ENDING_OF_ONE,
        ),
    ),
)

LEFT_OUT = Plot(
    ("toy", "child"),
    (
        (
            _one_of("""
            Once upon a time, there was {A.kind.a} named {A}. {A} belonged to {B.kind.a} named {B}.
            {A.kind.a} named {A} lived in the room of {trait.a} {B.kind} named {B}.
            Once there was an old {A.kind} called {A} who loved {B.kind.a} called {B}.
            """),
            _one_of("""
            By day, {A} could not speak or move. But at night, {A} came to life.
            Whenever {B} was away, {A} could walk and talk like you and me.
            Nobody knew it, but {A} could think and feel, just like {B}.
            """),
        ),
        (
            _one_of("""
            {day}, {B} took {A} to {place} and forgot {A.him} there.
            {day}, {B} put {A} down {nook} and went home without {A.him}.
            {day}, a gust of wind blew {A} out of the window, and {B} did not see it.
            """),
            _one_of("""
            "Where is {B}?" thought {A}. It was getting dark, and {A} was {scared}.
            So {A} sat there and waited for {B}, but {B} did not come.
            "{B} will come back for me," {A} said again and again.
            """),
            _one_of("""
            Then it began to rain, and {A} got very wet.
            In the night, a hungry fox came and sniffed at {A}, but it did not like the taste.
            {bird.a} came by and pulled at {A}'s ear. "I am not a worm!" said {A}.
            """),
            _one_of("""
            "I cannot just wait here," said {A}. "I will find the way home to {B}!"
            At last, {A} stood up. {A.his} legs were short, but {A.he} began to walk.
            "Excuse me," {A} asked a snail, "do you know where {B} lives?" "That way," said the snail.
            """),
            _one_of("""
            All night long, {A} walked through the tall grass and around deep puddles.
            When {A} came to a stream, {A.he} used an old shoe as a boat.
            A kind old dog let {A} ride on its back for a mile.
            """),
            _one_of("""
            Meanwhile, {B} could not sleep without {A}.
            At home, {B} looked for {A} {indoors} and cried.
            "I have lost {A}!" {B} told Mom, and {B.he} was very {sad}.
            """),
        ),
        (
            _one_of("""
            In the morning, {B} opened the front door, and there lay {A}!
            When the sun came up, {B} ran out to search, and {B.he} found {A} at the gate.
            Early the next day, {A} reached the steps. Then the door opened, and {B} came out.
            """),
            _one_of("""
            "{A}! How did you get here?" cried {B}, but {A} could not say a word.
            With a shout of joy, {B} picked up {A} and kissed {A.him} on the nose.
            "I will never forget you again, {A}," said {B}.
            """),
            _one_of("""
            Mom washed {A} in warm water, and {B} dried {A.him} in the sun.
            That night, {B} held {A} tight, and {A} smiled in the dark.
            And {A} was {happy}, because there is no place like home.
            """),
        ),
    ),
)

SCHOOL_PLAY = Plot(
    ("child", "child"),
    (
        (
            CHILDREN,
            _one_of("""
            At school, there was going to be a play, and {A} wanted to be {costume.a}.
            {day}, the teacher said, "{A} will be {costume.a}, and {B} will be {costume2.a}."
            Soon there would be a big show, and {A} was going to be {costume.a}. {B} was going to be {costume2.a}.
            """),
        ),
        (
            _one_of("""
            Every afternoon, {A} and {B} learned their words by heart.
            "I will help you with your words, {A}," said {B}. And they practiced every day.
            Out of an old sheet, {A} and {B} made {nice.a} {costume} costume.
            """),
            _one_of("""
            But on the day of the show, {A} looked at all the people and was {scared}.
            But when the big evening came, {A}'s hands were cold, and {A.he} could not speak.
            But right before the show, {A} wanted to run away. {A.he} hid behind the curtain.
            """),
            _one_of("""
            "I cannot do it, {B}," said {A}. "I have forgotten everything!"
            "What if they laugh at me, {B}?" whispered {A}.
            "My knees are shaking," {A} told {B} in a small voice.
            """),
            _one_of("""
            "Just look at me, {A}," said {B}, "and forget all the others."
            "I am scared, too, {A}," said {B}. "Let us be scared together."
            So {B} took {A} by the hand and said, "You are the best {costume} in the world, {A}."
            """),
            _one_of("""
            The curtain went up. {A} took a deep breath and looked at {B}.
            Then the music began, and {A} stepped into the light beside {B}.
            "Now!" said the teacher, and {A} and {B} walked out.
            """),
        ),
        (
            _one_of("""
            At first, {A} spoke very quietly, but then {A.he} got louder and louder.
            In the middle, {A} forgot a line. But {B} whispered it, and nobody heard.
            Once, {B} fell over {B.his} own feet, but {A} made a joke of it, and everyone laughed.
            """),
            _one_of("""
            When it was over, all the people stood up and clapped for {A} and {B}.
            "Bravo, {A}! Bravo, {B}!" shouted Dad.
            Mom threw a flower to {A}, and {A} gave it to {B}.
            """),
            _one_of("""
            "That was fun with you, {B}," said {A}.
            Now {A} wants to be an actor, and {B} wants to write the plays.
            Since that evening, {A} has not been so {scared} any more, because {B} is there.
            """),
            ENDING_OF_TWO,
        ),
    ),
)

TREASURE = Plot(
    ("child", "child"),
    (
        (
            CHILDREN,
            _one_of("""
            {day}, {A} found an old map {indoors}.
            {day}, {B} showed {A} a piece of yellow paper. It was a map!
            {day}, {A} opened an old book, and a map fell out. "Look at this, {B}!" said {A}.
            """),
        ),
        (
            _one_of("""
            "It shows the way to a treasure!" said {B}. "Let us find it, {A}!"
            There was a big cross on it. "That must be near {place}," said {A} to {B}.
            "Are we going to be rich, {B}?" asked {A}. "We will see," said {B}.
            """),
            _one_of("""
            So {A} took a shovel, and {B} took {food.a} for the way.
            With a bag and a lamp, {A} and {B} went off.
            In the morning, {A} and {B} set out {quickly}.
            """),
            _one_of("""
            They came to a dark {wild}, and {A} was {scared}, but {B} was not.
            On the way, {A} and {B} had to cross a bridge that creaked and shook.
            After a mile, {B} wanted to turn back. "Just a little more, {B}," said {A}.
            They met an old woman with {bird.a}. "Follow the stream," said the old woman to {A} and {B}.
            """),
            _one_of("""
            "Ten steps to the left," read {B}, and {A} counted the steps.
            Then {A} saw a rock that looked like {shape.a}. "That is the place, {B}!" said {A}.
            At last, {B} found a cross on a tree and called {A}.
            """),
            _one_of("""
            For an hour, {A} and {B} dug in the ground {nook}.
            Then {A} began to dig, and {B} helped with {B.his} bare hands.
            "I hit something hard!" cried {A}, and {B} jumped up and down.
            """),
        ),
        (
            _one_of("""
            In the earth, {A} and {B} found a box, and in the box was {treasure.a}!
            Out came {treasure.a}! {A} held it up, and {B} danced around it.
            There lay {treasure.a}, as old as the hills. "How {nice} it is!" said {B} to {A}.
            """),
            _one_of("""
            But there was also a letter. "The real treasure is a good friend," read {A}, and {B} smiled.
            "You keep it, {A}," said {B}. "No, it belongs to both of us, {B}," said {A}.
            "It is not gold," said {A}, "but it is ours." And {B} was {happy}, too.
            """),
            _one_of("""
            To this day, {A} has it in one week, and {B} has it in the next.
            On the way home, {A} and {B} made a new map for other children to find.
            They gave it to the museum, and there you can read the names of {A} and {B}.
            """),
            ENDING_OF_TWO,
        ),
    ),
)

PLOTS = (
    LOST_THING, LOST_PET, NEW_FRIEND, DARK, SHARING, STORM, BIRTHDAY, NEIGHBOR, GARDEN, SKILL, STUCK, TOO_HIGH, BAKING,
    BROKEN, SNOWMAN, RACE, HURT_BIRD, LEFT_OUT, SCHOOL_PLAY, TREASURE,
)  # fmt: skip
