"""Write a small school-math data set in BELLE format: train.json and test.json, the same for the same seed.

Fourteen kinds of word problem, in English and in Chinese, each with worked steps and a final answer in one
stated form: `The answer is 42.` or `答案是：42`. No question of test.json is in train.json, and no
calculation either: what is held out differs in its numbers, not only in its names.

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
        f"{cast.chinese_name}买了{count}{cast.measure}{cast.noun}，每{cast.measure}{price}元，又买了一个{bag}元的袋子，"
        "一共花了多少元？",
        (f"{count} * {price} = {cost}", f"{cost} + {bag} = {cost + bag}"),
    )


def change(rng: Random, cast: Cast) -> Problem:
    """What is left of a banknote."""
    note = rng.choice((50, 100))
    count, price = rng.randint(2, 9), rng.randint(2, min(9, note // 9))
    cost = count * price
    return Problem(
        f"{cast.name} buys {count} {cast.things} at {price} dollars each and pays with {note} dollars. "
        "How much change is due?",
        f"{cast.chinese_name}买了{count}{cast.measure}{cast.noun}，每{cast.measure}{price}元，付了{note}元，应找回多少元？",
        (f"{count} * {price} = {cost}", f"{note} - {cost} = {note - cost}"),
    )


def sharing(rng: Random, cast: Cast) -> Problem:
    """Two heaps put together and shared equally."""
    friends, each = rng.randint(2, 9), rng.randint(3, 9)
    total = friends * each
    first = rng.randint(2, total - 2)
    return Problem(
        f"{first} red and {total - first} blue {cast.things} are shared equally by {friends} children. "
        "How many does each get?",
        f"{first}{cast.measure}红色和{total - first}{cast.measure}蓝色的{cast.noun}，"
        f"平均分给{friends}个小朋友，每人分到多少{cast.measure}？",
        (f"{first} + {total - first} = {total}", f"{total} / {friends} = {each}"),
    )


def speed(rng: Random, cast: Cast) -> Problem:
    """A distance at the speed of another one."""
    hours, pace, longer = rng.randint(2, 6), rng.randint(3, 12), rng.randint(2, 9)
    distance = hours * pace
    return Problem(
        f"{cast.name} rides {distance} km in {hours} hours. How many km is that in {longer} hours?",
        f"{cast.chinese_name}骑车{hours}小时行{distance}千米，照这样的速度，{longer}小时行多少千米？",
        (f"{distance} / {hours} = {pace}", f"{pace} * {longer} = {pace * longer}"),
    )


def age(rng: Random, cast: Cast) -> Problem:
    """The age of somebody else in some years."""
    own, older, years = rng.randint(5, 15), rng.randint(2, 12), rng.randint(2, 12)
    now = own + older
    return Problem(
        f"{cast.name} is {own}. {cast.other} is {older} years older. "
        f"How old will {cast.other} be in {years} years?",
        f"{cast.chinese_name}今年{own}岁，{cast.chinese_other}比{cast.chinese_name}大{older}岁，"
        f"{years}年后{cast.chinese_other}多少岁？",
        (f"{own} + {older} = {now}", f"{now} + {years} = {now + years}"),
    )


def area(rng: Random, cast: Cast) -> Problem:
    """A rectangle without a square."""
    length, width, pond = rng.randint(4, 12), rng.randint(3, 9), rng.randint(2, 9)
    whole = length * width
    return Problem(
        f"A garden is {length} m long and {width} m wide. "
        f"A pond takes {pond} square meters. What area is left?",
        f"一个长方形花园长{length}米，宽{width}米，其中池塘占{pond}平方米，剩下的面积是多少平方米？",
        (f"{length} * {width} = {whole}", f"{whole} - {pond} = {whole - pond}"),
    )


def perimeter(rng: Random, cast: Cast) -> Problem:
    """The way around a rectangle."""
    length, width = rng.randint(5, 30), rng.randint(3, 20)
    half = length + width
    return Problem(
        f"{cast.name}'s room is {length} m long and {width} m wide. What is its perimeter in meters?",
        f"{cast.chinese_name}的房间长{length}米，宽{width}米，周长是多少米？",
        (f"{length} + {width} = {half}", f"{half} * 2 = {half * 2}"),
    )


def percent(rng: Random, cast: Cast) -> Problem:
    """What is left after a part is given away."""
    part, tens = rng.choice((10, 20, 30, 40, 50)), rng.randint(2, 20)
    whole, given = tens * 10, tens * part // 10
    return Problem(
        f"{cast.name} has {whole} {cast.things} and sells {part} percent of them. How many are left?",
        f"{cast.chinese_name}有{whole}{cast.measure}{cast.noun}，卖掉了其中的{part}%，还剩多少{cast.measure}？",
        (f"{whole} * {part} / 100 = {given}", f"{whole} - {given} = {whole - given}"),
    )


def times_as_many(rng: Random, cast: Cast) -> Problem:
    """Two people, one with a multiple of the other's."""
    few, times = rng.randint(3, 15), rng.randint(2, 6)
    many = few * times
    return Problem(
        f"{cast.name} has {few} {cast.things}. {cast.other} has {times} times as many. "
        "How many do they have together?",
        f"{cast.chinese_name}有{few}{cast.measure}{cast.noun}，{cast.chinese_other}的是{cast.chinese_name}的{times}倍，"
        f"两人一共有多少{cast.measure}？",
        (f"{few} * {times} = {many}", f"{few} + {many} = {few + many}"),
    )


def comparison(rng: Random, cast: Cast) -> Problem:
    """Two people, one with some fewer."""
    many, fewer = rng.randint(12, 40), rng.randint(2, 9)
    few = many - fewer
    return Problem(
        f"{cast.name} has {many} {cast.things}. {cast.other} has {fewer} fewer. "
        "How many do they have together?",
        f"{cast.chinese_name}有{many}{cast.measure}{cast.noun}，{cast.chinese_other}比{cast.chinese_name}少{fewer}"
        f"{cast.measure}，两人一共有多少{cast.measure}？",
        (f"{many} - {fewer} = {few}", f"{many} + {few} = {many + few}"),
    )


def remainder(rng: Random, cast: Cast) -> Problem:
    """Boxes filled, and what does not fit."""
    size, boxes = rng.randint(3, 9), rng.randint(2, 9)
    full, left = size * boxes, rng.randint(1, size - 1)
    return Problem(
        f"{cast.name} packs {full + left} {cast.things} into {boxes} boxes of {size}. "
        "How many are left over?",
        f"{cast.chinese_name}把{full + left}{cast.measure}{cast.noun}装进{boxes}个盒子，"
        f"每盒装{size}{cast.measure}，还剩多少{cast.measure}？",
        (f"{boxes} * {size} = {full}", f"{full + left} - {full} = {left}"),
    )


def reading(rng: Random, cast: Cast) -> Problem:
    """The pages that are not read yet."""
    daily, days = rng.randint(3, 12), rng.randint(2, 7)
    read = daily * days
    pages = read + rng.randint(2, 40)
    return Problem(
        f"A book has {pages} pages. {cast.name} reads {daily} pages a day for {days} days. "
        "How many pages are left?",
        f"一本书有{pages}页，{cast.chinese_name}每天读{daily}页，读了{days}天，还剩多少页？",
        (f"{daily} * {days} = {read}", f"{pages} - {read} = {pages - read}"),
    )


def bus(rng: Random, cast: Cast) -> Problem:
    """People who get off and on."""
    riders, off, on = rng.randint(15, 50), rng.randint(2, 14), rng.randint(2, 20)
    stay = riders - off
    return Problem(
        f"A bus has {riders} riders. {off} get off, {on} and {cast.name} get on. "
        "How many riders are there now?",
        f"公共汽车上有{riders}人，到站下去{off}人，{cast.chinese_name}和另外{on}人上车，现在车上有多少人？",
        (f"{riders} - {off} = {stay}", f"{stay} + {on} + 1 = {stay + on + 1}"),
    )


def wages(rng: Random, cast: Cast) -> Problem:
    """Work at one wage on two days."""
    wage, first, second = rng.randint(3, 12), rng.randint(1, 6), rng.randint(1, 6)
    hours = first + second
    return Problem(
        f"{cast.name} works {first} hours today and {second} hours tomorrow for {wage} dollars an hour. "
        "What is the total pay?",
        f"{cast.chinese_name}今天工作{first}小时，明天工作{second}小时，每小时{wage}元，两天一共得多少元？",
        (f"{first} + {second} = {hours}", f"{hours} * {wage} = {hours * wage}"),
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
    """Records whose question and calculation are not in `taken`, ending when MOST_TRIES in a row were."""
    kind, language = source
    tries = 0
    while tries < MOST_TRIES:
        new = record(kind(rng, choose_cast(rng)), language)
        if taken.isdisjoint((new["instruction"], calculation(source, new))):
            taken.add(new["instruction"])
            tries = 0
            yield new
        tries += 1


def calculation(source: Source, new: Record) -> str:
    """What makes two problems the same but for their names."""
    return f"{source[0].__name__}: {new['output']}"


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
        taken.update(calculation(source, new) for source, new in held_out)
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
