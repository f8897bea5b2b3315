"""The words of the miniature's sentences, and five that are held out of training."""

from __future__ import annotations

ADJECTIVES = """
angry bad big bitter black blue brave bright broken brown calm cheap clean clear clever cold cool
crazy dark dear deep dirty dry early easy empty fair famous fast fat fine flat free fresh full
funny gentle glad golden good great green grey happy hard heavy high honest hot huge hungry
important kind large late lazy light little long lost loud low lucky narrow new nice noisy old
open pale perfect plain poor pretty proud purple quick quiet rare ready red rich rough round sad
safe sharp short silent silver simple slow small smooth soft sour special square strange strong
sweet tall thick thin tired tiny ugly warm weak wet white wide wild wise wrong yellow young
""".split()

NOUNS = """
animal answer apple arm army artist baby bag ball bank basket beach bear bed bell bench bird boat
body bone book bottle boy branch bread breakfast bridge brother bucket building bus butter button
cake camera candle captain car card carpet castle cat chair cheese chicken child church circle
city clock cloud coat coffee colour corner country cousin cow cup dance daughter day desert desk
dinner doctor dog door dream dress driver egg engine evening eye face factory family farm farmer
father feather field finger fire fish flag floor flower forest fork fox friend frog fruit game
garden ghost gift girl glass glove goat grass guest guitar hair hand hat heart hill horse hospital
hotel hour house island jacket judge juice key king kitchen knife lady lake lamp language leaf leg
lesson letter library lion lock machine man map market meal meadow message metal milk minute
mirror monkey moon morning mother mountain mouse mouth museum music name neck needle neighbour
nest night noise nose number nurse ocean office onion page painter paper park party path pencil
penny people piano picture pig place plane plant plate pocket poem poet police pond potato present
price prince queen question rabbit radio rain ring river road robot roof room rope rose sailor
salt sandwich school sea season shadow sheep ship shirt shoe shop singer sister sky snake snow
soldier son song soup spoon star station stone story stranger street student summer sun table
tailor tea teacher thing ticket tiger tooth tower town toy train tree uncle valley violin voice
wall watch water weather wheel wind window wine winter wolf woman wood word worker world yard
zebra
""".split()

VERBS = """
answers asks avoids believes breaks brings builds buys calls carries catches changes chooses
cleans closes colours cooks counts covers cuts draws drinks drives eats enjoys feeds feels fills
finds follows forgets gets gives greets guards hates hears helps hides holds invites joins keeps
kicks knows leaves likes loses loves makes meets misses moves needs notices opens orders owns
paints passes pays plays pulls pushes puts reads remembers rides saves sees sells sends shakes
shows signs sings starts steals stops studies takes teaches tells thanks throws touches tries
turns visits wakes wants washes watches wins writes
""".split()

PAST = """
ate bought broke brought built called carried caught chose cleaned closed cooked counted drew
drank dropped fed felt followed forgot found gave got heard held helped hid kept knew left liked
lost made met missed moved needed noticed opened ordered owned painted paid passed pulled pushed
read remembered saved saw sent shared showed sold stole stopped threw took touched tried turned
used visited wanted washed watched won wrote
""".split()

PLACES = (
    "in the house,by the river,on the road,at night,in winter,after school,near here,at home,"
    "in the garden,under the table,behind the door,in the evening,on the hill,at the station,"
    "before dinner,in the city,near the bridge,every morning,last week,on the beach,in the rain,"
    "over the mountain,at the market,in the forest,without a word,for the children,with my sister"
).split(",")

NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fifteen twenty thirty"
).split()

GREETINGS = (
    "hello,good morning,thank you,goodbye,welcome,please come,good night,good evening,listen,"
    "look here,come in,sit down,excuse me,see you soon,take care,wake up,wait for me,sleep well"
).split(",")

WHOM = (
    "my friend,dear mother,world,everybody,little bird,old man,brother,Peter,Anna,sister,children,"
    "doctor,captain,young lady,teacher,my dear,Maria,Thomas,Julia,grandfather,neighbour"
).split(",")

#: Nouns that no training sentence has.
UNSEEN = "hammer orange village pilot sugar".split()
