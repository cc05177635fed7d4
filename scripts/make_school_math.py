"""Write a small school-math data set in BELLE format: train.json and test.json, the same for the same seed.

Fourteen kinds of word problem, in English and in Chinese, each with worked steps and a final answer in one
stated form: `The answer is 42.` or `答案是：42`. No question of test.json is in train.json, and no worked
solution either: what is held out differs in its numbers, not only in its names.

    python scripts/make_school_math.py --output-dir DIR [--language en|zh|both] [--train N --test N --seed S]
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

ENGLISH_NAMES = ("Tom", "Anna", "Ben", "Lucy", "Sam", "Emma", "Jack", "Mia", "Leo", "Nina", "Paul", "Rosa")
CHINESE_NAMES = (
    "小明",
    "小红",
    "小华",
    "小丽",
    "小刚",
    "小芳",
    "小强",
    "小军",
    "小兰",
    "小亮",
    "小梅",
    "小东",
)
THINGS = (  # English plural, Chinese measure word, Chinese noun
    ("pens", "支", "钢笔"),
    ("books", "本", "书"),
    ("apples", "个", "苹果"),
    ("cards", "张", "卡片"),
    ("cups", "个", "杯子"),
    ("toys", "件", "玩具"),
    ("eggs", "个", "鸡蛋"),
    ("cakes", "块", "蛋糕"),
    ("balls", "个", "皮球"),
    ("stamps", "枚", "邮票"),
    ("flowers", "朵", "花"),
    ("candies", "颗", "糖果"),
)
MOST_TRIES = 200  # draws for one problem before its kind counts as used up


@dataclass(frozen=True)
class Cast:
    """Who and what a problem is about, in both languages."""

    name: str
    other: str
    chinese_name: str
    chinese_other: str
    things: str
    measure: str
    noun: str


@dataclass(frozen=True)
class Problem:
    """A question in both languages, and its calculation: the last step's result is the answer."""

    english: str
    chinese: str
    steps: tuple[str, ...]


Kind = Callable[[Random, Cast], Problem]
Source = tuple[Kind, str]  # and the language: en or zh
Record = dict[str, str]  # instruction, input, output
Made = tuple[Source, Record]


def shopping(rng: Random, cast: Cast) -> Problem:
    """Some things at one price, and a bag."""
    count, price, bag = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 9)
    cost = count * price
    return Problem(
        f"{cast.name} buys {count} {cast.things} at {price} dollars each and a bag for {bag} dollars. "
        "What is the total cost?",
        f"{cast.chinese_name}买了{count}{cast.measure}{cast.noun}，每{cast.measure}{price}元，"
        f"又买了一个{bag}元的袋子，一共花了多少元？",
        (f"{count} * {price} = {cost}", f"{cost} + {bag} = {cost + bag}"),
    )


def change(rng: Random, cast: Cast) -> Problem:
    """What is left of a banknote."""
    note = rng.choice((20, 50, 100))
    price = rng.randint(3, note - 3)
    return Problem(
        f"{cast.name} buys {cast.things} for {price} dollars and pays with {note} dollars. How much change is due?",
        f"{cast.chinese_name}买{cast.noun}用去{price}元，付了{note}元，应找回多少元？",
        (f"{note} - {price} = {note - price}",),
    )


def sharing(rng: Random, cast: Cast) -> Problem:
    """A heap shared equally."""
    friends, each = rng.randint(2, 9), rng.randint(2, 12)
    total = friends * each
    return Problem(
        f"{cast.name} shares {total} {cast.things} equally among {friends} friends. How many does each friend get?",
        f"{cast.chinese_name}把{total}{cast.measure}{cast.noun}平均分给{friends}个朋友，每人分到多少{cast.measure}？",
        (f"{total} / {friends} = {each}",),
    )


def speed(rng: Random, cast: Cast) -> Problem:
    """Distance over time."""
    hours, pace = rng.randint(2, 9), rng.randint(3, 15)
    return Problem(
        f"{cast.name} rides {hours * pace} km in {hours} hours. What is the speed in km per hour?",
        f"{cast.chinese_name}骑车{hours}小时行{hours * pace}千米，每小时行多少千米？",
        (f"{hours * pace} / {hours} = {pace}",),
    )


def age(rng: Random, cast: Cast) -> Problem:
    """The age of somebody older."""
    own, older = rng.randint(5, 40), rng.randint(2, 25)
    return Problem(
        f"{cast.name} is {own} years old. {cast.other} is {older} years older. How old is {cast.other}?",
        f"{cast.chinese_name}今年{own}岁，{cast.chinese_other}比{cast.chinese_name}大{older}岁，"
        f"{cast.chinese_other}今年多少岁？",
        (f"{own} + {older} = {own + older}",),
    )


def area(rng: Random, cast: Cast) -> Problem:
    """Length times width."""
    length, width = rng.randint(3, 12), rng.randint(2, 9)
    return Problem(
        f"{cast.name}'s garden is {length} m long and {width} m wide. What is its area in square meters?",
        f"{cast.chinese_name}家的长方形花园长{length}米，宽{width}米，面积是多少平方米？",
        (f"{length} * {width} = {length * width}",),
    )


def perimeter(rng: Random, cast: Cast) -> Problem:
    """The way around a rectangle."""
    length, width = rng.randint(5, 30), rng.randint(3, 20)
    half = length + width
    return Problem(
        f"{cast.name}'s room is {length} m long and {width} m wide. What is its perimeter in meters?",
        f"{cast.chinese_name}的长方形房间长{length}米，宽{width}米，周长是多少米？",
        (f"{length} + {width} = {half}", f"{half} * 2 = {half * 2}"),
    )


def percent(rng: Random, cast: Cast) -> Problem:
    """A round part of a round number."""
    part, whole = rng.choice((10, 20, 30, 40, 50)), 10 * rng.randint(1, 20)
    return Problem(
        f"{cast.name} has {whole} {cast.things} and sells {part} percent of them. How many are sold?",
        f"{cast.chinese_name}有{whole}{cast.measure}{cast.noun}，卖掉了其中的{part}%，卖掉了多少{cast.measure}？",
        (f"{whole} * {part} / 100 = {whole * part // 100}",),
    )


def times_as_many(rng: Random, cast: Cast) -> Problem:
    """A multiple of what somebody else has."""
    few, times = rng.randint(3, 15), rng.randint(2, 9)
    return Problem(
        f"{cast.name} has {few} {cast.things}. {cast.other} has {times} times as many. "
        f"How many does {cast.other} have?",
        f"{cast.chinese_name}有{few}{cast.measure}{cast.noun}，{cast.chinese_other}的是{cast.chinese_name}的{times}倍，"
        f"{cast.chinese_other}有多少{cast.measure}？",
        (f"{few} * {times} = {few * times}",),
    )


def comparison(rng: Random, cast: Cast) -> Problem:
    """Two people together, one of them with fewer."""
    many, fewer = rng.randint(12, 40), rng.randint(2, 9)
    few = many - fewer
    return Problem(
        f"{cast.name} has {many} {cast.things}. {cast.other} has {fewer} fewer. How many do they have together?",
        f"{cast.chinese_name}有{many}{cast.measure}{cast.noun}，{cast.chinese_other}比{cast.chinese_name}少{fewer}"
        f"{cast.measure}，两人一共有多少{cast.measure}？",
        (f"{many} - {fewer} = {few}", f"{many} + {few} = {many + few}"),
    )


def remainder(rng: Random, cast: Cast) -> Problem:
    """Boxes filled, and what does not fit."""
    size, boxes = rng.randint(3, 9), rng.randint(2, 9)
    full, left = size * boxes, rng.randint(1, size - 1)
    return Problem(
        f"{cast.name} packs {full + left} {cast.things} into {boxes} boxes of {size}. How many are left over?",
        f"{cast.chinese_name}把{full + left}{cast.measure}{cast.noun}装进{boxes}个盒子，"
        f"每盒装{size}{cast.measure}，还剩多少{cast.measure}？",
        (f"{boxes} * {size} = {full}", f"{full + left} - {full} = {left}"),
    )


def reading(rng: Random, cast: Cast) -> Problem:
    """The pages that are not read yet."""
    pages, read = rng.randint(30, 99), rng.randint(5, 28)
    return Problem(
        f"{cast.name} has read {read} pages of a book of {pages} pages. How many pages are left?",
        f"一本书有{pages}页，{cast.chinese_name}已经读了{read}页，还剩多少页？",
        (f"{pages} - {read} = {pages - read}",),
    )


def bus(rng: Random, cast: Cast) -> Problem:
    """People who get off and on."""
    riders, off, on = rng.randint(15, 50), rng.randint(2, 14), rng.randint(2, 20)
    stay = riders - off
    return Problem(
        f"A bus has {riders} riders. {off} get off and {on} get on. How many riders are there now?",
        f"公共汽车上有{riders}人，到站后下去{off}人，上来{on}人，现在车上有多少人？",
        (f"{riders} - {off} = {stay}", f"{stay} + {on} = {stay + on}"),
    )


def wages(rng: Random, cast: Cast) -> Problem:
    """Hours times wage."""
    hours, wage = rng.randint(2, 9), rng.randint(3, 15)
    return Problem(
        f"{cast.name} works {hours} hours for {wage} dollars an hour. What is the pay in dollars?",
        f"{cast.chinese_name}工作{hours}小时，每小时{wage}元，一共得多少元？",
        (f"{hours} * {wage} = {hours * wage}",),
    )


KINDS: tuple[Kind, ...] = (
    shopping,
    change,
    sharing,
    speed,
    age,
    area,
    perimeter,
    percent,
    times_as_many,
    comparison,
    remainder,
    reading,
    bus,
    wages,
)


def choose_cast(rng: Random) -> Cast:
    """Two different people and one sort of thing."""
    name, other = rng.sample(ENGLISH_NAMES, 2)
    chinese_name, chinese_other = rng.sample(CHINESE_NAMES, 2)
    return Cast(name, other, chinese_name, chinese_other, *rng.choice(THINGS))


def record(problem: Problem, language: str) -> Record:
    """The problem as BELLE writes it."""
    answer = problem.steps[-1].rpartition(" ")[2]
    if language == "en":
        output = f"{'. '.join(problem.steps)}. The answer is {answer}."
        return {"instruction": problem.english, "input": "", "output": output}
    steps = "，".join(problem.steps).replace("*", "×").replace("/", "÷")
    return {"instruction": f"题目：{problem.chinese}", "input": "", "output": f"{steps}。答案是：{answer}"}


def distinct(source: Source, rng: Random, taken: set[str]) -> Iterator[Record]:
    """Records with neither question nor output in `taken`, ending when MOST_TRIES in a row were there."""
    kind, language = source
    tries = 0
    while tries < MOST_TRIES:
        new = record(kind(rng, choose_cast(rng)), language)
        if taken.isdisjoint((new["instruction"], new["output"])):
            taken.add(new["instruction"])
            tries = 0
            yield new
        tries += 1


def make_set(sources: Sequence[Source], count: int, rng: Random, taken: set[str]) -> list[Made]:
    """Records in equal numbers from every source (one more from the first ones if need be), shuffled.

    Raises:
        ValueError: if a source cannot give that many that are distinct and not in `taken`.
    """
    made: list[Made] = []
    for number, source in enumerate(sources):
        wanted = count // len(sources) + (number < count % len(sources))
        records = list(islice(distinct(source, rng, taken), wanted))
        if len(records) < wanted:
            raise ValueError(f"{title(source)} has {len(records)} distinct problems, {wanted} are wanted")
        made += [(source, new) for new in records]
    rng.shuffle(made)
    return made


def title(source: Source) -> str:
    """A kind and its language, to print."""
    kind, language = source
    return f"{kind.__name__} ({language})"


def write_set(path: Path, made: Sequence[Made]) -> None:
    """Write one JSON array, whole or not at all, and print how many of which kind it has."""
    text = json.dumps([new for _, new in made], ensure_ascii=False, indent=1)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text + "\n", encoding="utf-8")
    aside.replace(path)
    counts = sorted(Counter(title(source) for source, _ in made).items())
    print(f"{path}: {len(made)} problems: " + ", ".join(f"{name} {count}" for name, count in counts))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, refused with exit code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--language", choices=("en", "zh", "both"), default="both")
    parser.add_argument("--train", type=int, default=1200, help="problems to train on")
    parser.add_argument("--test", type=int, default=200, help="held-out problems")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name in ("train", "test"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Make both sets, the held-out one first, and write them."""
    options = parse_arguments(arguments)
    languages = ("en", "zh") if options.language == "both" else (options.language,)
    sources = [(kind, language) for kind in KINDS for language in languages]
    rng, taken = Random(options.seed), set[str]()
    try:
        held_out = make_set(sources, options.test, rng, taken)
        taken.update(new["output"] for _, new in held_out)
        train = make_set(sources, options.train, rng, taken)
    except ValueError as error:
        print(f"make_school_math: {error}; ask for fewer with --train or --test", file=sys.stderr)
        raise SystemExit(2) from None
    questions = {new["instruction"] for _, new in held_out}
    assert questions.isdisjoint(new["instruction"] for _, new in train)  # noqa: S101  (a promise of this file)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_set(options.output_dir / "train.json", train)
    write_set(options.output_dir / "test.json", held_out)


if __name__ == "__main__":
    main()
