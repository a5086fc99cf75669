"""The teacher's kit agrees with the notebooks and the library: plans, questions, answers, times."""

import importlib.util
import json
import math
import re

import pytest
import torch
from class_plans import KIT, NOTEBOOKS, ROOT, cells_of, plans, sections_of, text_of

from grpo_lib.advantages import group_advantages, informative_share
from grpo_lib.course.exercises.policy import COMPLETION_MASK
from grpo_lib.objective import aggregate, clip_binds, kl_estimate, token_weights
from grpo_lib.policy import token_log_probs

SPEC = importlib.util.spec_from_file_location("grpo_predictions", ROOT / "tools" / "predictions.py")
predictions = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(predictions)


def flat(text):
    return " ".join(text.split())


def headings(stem):
    cells = json.loads(NOTEBOOKS[stem].read_text(encoding="utf-8"))["cells"]
    return {line.lstrip("#").strip() for cell in cells if cell["cell_type"] == "markdown"
            for line in "".join(cell["source"]).splitlines() if re.match(r"#{1,3} ", line)}


# plans -----------------------------------------------------------------------------------------


SLACK = 5  # minutes of each class that no plan fills


def test_the_plans_say_what_their_minutes_leave():
    assert "five minutes less than the class has" in flat(text_of("plans.md")) and SLACK == 5


def test_the_one_hour_plan_shows_where_it_ends_and_moves_epsilon():
    _, _, rows = plans()[0]
    assert "play the recorded run" in rows[0][2]
    assert any("run_explorer(" in source for section, source in sections_of("00_start_here")
               if section == rows[0][1])
    [what] = [what for _, section, what in rows if section == "Clipping"]
    assert "epsilon" in what and "Move" in what


def test_every_lesson_has_a_plan_of_50_and_of_90_minutes():
    assert [(name, minutes) for name, minutes, _ in plans()] == [
        (stem, minutes) for stem in NOTEBOOKS for minutes in (50, 90)]


@pytest.mark.parametrize("lesson, promised, rows", plans(),
                         ids=lambda value: str(value) if not isinstance(value, list) else "")
def test_a_plans_minutes_add_up_and_its_sections_come_in_the_notebooks_order(lesson, promised,
                                                                            rows):
    assert sum(minutes for minutes, _, _ in rows) == promised - SLACK
    assert "et-up" in rows[0][2] and all(minutes > 0 for minutes, _, _ in rows)
    assert {section for _, section, _ in rows} <= headings(lesson)
    text = "\n".join("".join(c["source"]) for c in json.loads(
        NOTEBOOKS[lesson].read_text(encoding="utf-8"))["cells"])
    places = [re.search(rf"(?m)^#+ {re.escape(section)}$", text).start() for _, section, _ in rows]
    assert places == sorted(places)
    for _, section, what in rows:
        assert ("optional" not in section.lower()) or promised == 90, "the core leaves these out"
        asked = [flat(question) for place, question, _ in predictions.predictions(
            NOTEBOOKS[lesson]) if place == section]
        quoted = re.findall(r"\*\*Ask\*\* “([^”]*)”", what)
        assert what.count("**Ask**") == len(quoted)
        for question in quoted:
            assert any(flat(question) in a for a in asked), (section, question)


NAMES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
         "twelve"]
NUMBER = re.compile(rf"(?<![\w.])(?:([-+]?\d+(?:,\d{{3}})*(?:\.\d+)?)(%?)|({'|'.join(NAMES)}))"
                    rf"(?!\w)", re.IGNORECASE)


def numbers(text):
    """[(as written, its value, has it a sign, its decimals, is it a percentage)], words too."""
    found = []
    for match in NUMBER.finditer(text):
        digits, percent, word = match.groups()
        digits = digits or str(NAMES.index(word.lower()) + 1)
        found.append((match[0], float(digits.replace(",", "")), digits[0] in "-+",
                      len(digits.partition(".")[2]), bool(percent)))
    return found


def unsupported(said, answer):
    """Numbers of ``said`` that ``answer`` does not hold, not even with more decimals.

    A whole number has to be there as it is: rounding would make too many of them right.
    """
    there = numbers(answer)

    def is_there(value, signed, decimals, percent):
        slack = 0.5 * 10.0 ** -decimals + 1e-9 if decimals else 1e-9
        return any(percent == other_percent and
                   abs(value - (other if signed else abs(other))) <= slack
                   for _, other, _, _, other_percent in there)

    return [written for written, *number in numbers(said) if not is_there(*number)]


def test_a_number_that_an_answer_does_not_hold_is_noticed():
    assert unsupported("18%, 1.3%, two, -0.3 and +2.5; k3", "18%, 1.3%; 2 or +2.475, -0.3") == []
    assert unsupported("81%", "18%: a fifth, 81 of them") == ["81%"]
    assert unsupported("3 in 10", "two in ten") == ["3"]
    assert unsupported("+0.3, +2.5, 2", "-0.3, -2.5, 2.1") == ["+0.3", "+2.5", "2"]


@pytest.mark.parametrize("lesson, promised, rows", plans(),
                         ids=lambda value: str(value) if not isinstance(value, list) else "")
def test_a_plans_numbers_are_those_of_the_answers(lesson, promised, rows):
    """Whoever teaches from a plan says them aloud: each stands in the answer to its question."""
    lessons = predictions.predictions(NOTEBOOKS[lesson])
    for _, section, what in rows:
        asked = re.findall(r"\*\*Ask\*\* “([^”]*)” → (.*?)(?=\*\*Ask\*\*|$)", what)
        assert len(asked) == what.count("**Ask**") == what.count("→"), (section, what)
        for question, said in asked:
            [answer] = [answer for place, full, answer in lessons
                        if place == section and flat(question) in flat(full)]
            assert unsupported(said, answer) == [], (section, question, said)
    [group] = re.findall(r"on paper: ([\d, ]+) \((.*)\)", text_of("plans.md"))
    first, *others = group_advantages(torch.tensor([[float(r) for r in group[0].split(",")]]))[0]
    assert group[1] == f"{first:+.2f} and three times {others[0]:+.2f}" and len(others) == 3


def day():
    """[(start, end, minutes, what)] of the day, times in minutes since midnight."""
    rows = [cells_of(line) for line in text_of("plans.md").split("## A day")[1].splitlines()
            if re.match(r"\| \d", line)]
    clock = [[int(time[:2]) * 60 + int(time[3:]) for time in row[:2]] for row in rows]
    return [(*times, int(row[2]), row[3]) for times, row in zip(clock, rows)]


def changes(what):
    """({section left out: minutes}, {section taken in: minutes}) of a block of the day."""
    left, _, taken = what.partition(", with *")
    return tuple({section: int(minutes) for section, minutes in
                  re.findall(r"\*([^*]+)\* \((\d+)\)", part)} for part in (left, "*" + taken))


def lessons_of_the_day():
    """{lesson: (its block's text, its sections)}"""
    of = {(lesson, promised): {section: minutes for minutes, section, _ in rows}
          for lesson, promised, rows in plans()}
    found = {}
    for _, _, _, what in day():
        for lesson in re.findall(r"`(\d\d_\w+)`", what):
            core, long = of[lesson, 50], of[lesson, 90]
            left, taken = changes(what)
            assert left.items() <= core.items() and taken.items() <= long.items(), what
            assert not taken.keys() & core.keys()
            found[lesson] = what, (core.keys() - left.keys()) | taken.keys()
    return found


def test_the_days_blocks_follow_on_each_other_and_name_lessons():
    rows = day()
    assert [start for start, *_ in rows[1:]] == [end for _, end, *_ in rows[:-1]]
    assert (rows[0][0], rows[-1][1]) == (9 * 60, 17 * 60)
    assert [end - start for start, end, *_ in rows] == [minutes for _, _, minutes, _ in rows]
    assert len(lessons_of_the_day()) == 6 and list(lessons_of_the_day()) == sorted(
        lessons_of_the_day())


@pytest.mark.parametrize("block", day(), ids=lambda block: f"{block[0] // 60}.{block[0] % 60:02}")
def test_what_a_block_of_the_day_holds_takes_the_minutes_it_has(block):
    _, _, minutes, what = block
    parts = sum(int(part) for part in re.findall(r"\((\d+)\)", what))
    left, _ = changes(what)
    assert parts - 2 * sum(left.values()) == minutes
    for lesson in re.findall(r"`(\d\d_\w+)`", what):
        assert what.startswith(f"`{lesson}` (50)")


def test_the_day_asks_only_what_it_teaches():
    """Questions of other lessons are marked, and the time for the others is their share."""
    taught = {lesson[:2]: {re.sub(r"^\d+\. ", "", section) for section in sections}
              for lesson, (_, sections) in lessons_of_the_day().items()}
    asked = []
    for number, (text, _) in questions().items():
        lesson, section = answers()[number][1].split(", ", 1)
        assert text.startswith("† ") == (lesson not in taught), number
        if lesson in taught:
            assert section in taught[lesson], (number, section)
            asked.append(number)
    elsewhere = sorted({stem[:2] for stem in NOTEBOOKS} - taught.keys())
    assert f"lessons {', '.join(elsewhere[:-1])} and {elsewhere[-1]}" in flat(
        text_of("keys.md"))
    assert f"Lessons {', '.join(elsewhere[:-1])} and {elsewhere[-1]} are for afterwards" in flat(
        text_of("plans.md"))
    for form, (_, _, _, what) in (("A", day()[0]), ("B", day()[-1])):
        share = sum(number[0] == form for number in asked) / 12
        assert f"orm {form} of the quiz without † ({15 * share:.0f})" in what


# predictions and misconceptions ------------------------------------------------------------------


def test_the_predictions_are_those_of_the_notebooks():
    assert text_of("predictions.md") == predictions.document(), "run python tools/predictions.py"


def test_every_prediction_of_the_notebooks_is_there_and_has_an_answer():
    for path in NOTEBOOKS.values():
        source = "\n".join("".join(c["source"]) for c in json.loads(
            path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")
        found = predictions.predictions(path)
        assert len(found) == source.count("**Predict") > 0
        for section, question, answer in found:
            assert section and len(answer.split()) > 5, question


def test_misconceptions_lead_to_sections_that_are_there():
    rows = [cells_of(line) for line in text_of("misconceptions.md").splitlines()
            if line.startswith("| \"")]
    assert len(rows) >= 25
    for said, so, where, threads in rows:
        stem, section = re.fullmatch(r"`(\w+)`, (.*)", where).groups()
        assert section in headings(stem), where
        assert said and so
        assert re.search(r"\]\(https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+\)", threads) \
            or "this course grew from" in threads, threads
        for name, number, kind in re.findall(r"\[[^\]]*?([\w.-]+) (\d+)\]\((\S+)\)", threads):
            assert kind.endswith(f"/{number}"), (name, number, kind)


def first_loss(lengths, aggregation):
    """Its value and its gradient's length, every ratio 1, for rewards 1, 0, 0, 1."""
    log_probs = torch.full((4, 8), -1.0, dtype=torch.float64, requires_grad=True)
    mask = (torch.arange(8) < torch.tensor(lengths)[:, None]).double()
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64))
    pushed = torch.exp(log_probs - log_probs.detach()) * advantages.reshape(4, 1)
    loss = -aggregate(pushed, mask, aggregation, max_length=8)
    loss.backward()
    return loss.item(), log_probs.grad.norm().item()


def test_a_first_loss_of_0_has_the_condition_that_the_sheet_gives_it():
    [(so, _, _)] = [cells_of(line)[1:] for line in text_of("misconceptions.md").splitlines()
                    if line.startswith('| "The loss is 0, so nothing is learned."')]
    is_zero = {}
    for aggregation in ("sequence_mean", "token_mean", "constant"):
        for lengths in ([8, 2, 3, 7], [5, 5, 5, 5]):
            loss, gradient = first_loss(lengths, aggregation)
            is_zero[aggregation, len(set(lengths)) == 1] = abs(loss) < 1e-12
            assert gradient > 0.01
    assert {case for case, zero in is_zero.items() if zero} == {
        ("sequence_mean", False), ("sequence_mean", True), ("token_mean", True),
        ("constant", True)}
    assert re.search(r"is 0 if .*`sequence_mean`\), or with answers of equal length", so)


# quizzes -----------------------------------------------------------------------------------------


def questions():
    """{"A1": (its text, {"a": a choice, ...})}"""
    found, both = {}, "\n".join(text_of(f"quiz_form_{form}.md") for form in "ab")
    for number, body in re.findall(r"\*\*([AB]\d+)\.\*\* (.*?)(?=\n\*\*[AB]\d|\n## )",
                                   both + "\n## ", re.DOTALL):
        found[number] = (body.split("\n")[0], dict(re.findall(r"(?m)^- ([a-d])\. (.*)$", body)))
    return found


def answers():
    """{"A1": (the right letter, where, {"a": what it tells})}"""
    rows = [cells_of(line) for line in text_of("keys.md").splitlines()
            if re.match(r"\| [AB]\d", line)]
    return {number: (right, where, tells) for number, right, where, tells in rows}


def test_the_two_forms_have_twelve_questions_of_four_choices_each():
    assert list(questions()) == [f"{form}{n}" for form in "AB" for n in range(1, 13)]
    for text, choices in questions().values():
        assert text.endswith("?") and list(choices) == list("abcd")
        assert len(set(choices.values())) == 4
    assert list(answers()) == list(questions())
    letters = "".join(right for right, _, _ in answers().values())
    assert all(letters.count(letter) >= 2 for letter in "abcd"), "not always the same letter"


HANDOUTS = ("entry_check", "quiz_form_a", "quiz_form_b")


@pytest.mark.parametrize("name", HANDOUTS)
def test_what_is_handed_out_stands_alone_without_an_answer(name):
    """It is printed as it is: a title, a place for a name, questions; nothing leads to the keys."""
    text = text_of(f"{name}.md")
    assert text.startswith("# ") and text.count("\n#") == 0 and "Name: ____" in text
    assert "](" not in text and "| " not in text and "keys" not in text
    assert not [line for line in text_of("keys.md").splitlines() if len(line) > 30 and line in text]
    forms = {number[0] for number in re.findall(r"\*\*([AB]\d+)\.\*\*", text)}
    assert forms == {"quiz_form_a": {"A"}, "quiz_form_b": {"B"}}.get(name, set())


def test_every_wrong_choice_is_explained_and_leads_to_a_lesson():
    """Or a teacher who counts the answers cannot say what those who chose it believe."""
    for number, (right, where, tells) in answers().items():
        parts = [re.fullmatch(r"((?:[a-d], )*[a-d]): (\S.*)", part) for part in tells.split("; ")]
        told = [letter for part in parts if part for letter in part[1].split(", ")]
        assert sorted(told) == sorted(set("abcd") - {right}), number
        lesson, section = where.split(", ", 1)
        [stem] = [stem for stem in NOTEBOOKS if stem.startswith(lesson)]
        assert any(re.sub(r"^\d+\. ", "", heading) == section for heading in headings(stem)), where


def advantage_of_first(rewards):
    return group_advantages(torch.tensor([rewards]))[0, 0].item()


def ones(prompt, answer, padding_left=0, padding_right=0):
    """Ones in the mask of a row: the answer's tokens are 5, its end is 1, padding 0."""
    tokens = torch.tensor([[0] * padding_left + [7] * prompt + [5] * answer + [1]
                           + [0] * padding_right])
    return COMPLETION_MASK.reference(tokens, padding_left + prompt, 1).sum().item()


def two_answers(aggregation, longer):
    """The mean of +1 on 2 tokens and -1 on more, of at most 10."""
    mask = torch.zeros(2, 10)
    mask[0, :2] = mask[1, :longer] = 1
    values = torch.tensor([[1.0], [-1.0]]).expand(2, 10)
    return aggregate(values, mask, aggregation, max_length=10).item(), token_weights(
        mask, aggregation, max_length=10)


def k3(policy, reference):
    return kl_estimate(torch.tensor([math.log(policy)]), torch.tensor([math.log(reference)]),
                       kl="k3").item()


NUMBERS = {  # what the library says to the questions that ask for a number, and how it is written
    "A1": lambda: f"{advantage_of_first([1.0, 0.0, 0.0, 0.0]):+.2f}",
    "B1": lambda: f"{advantage_of_first([1.0, 1.0, 0.0, 0.0]):+.2f}",
    "A7": lambda: f"{ones(4, 3, padding_right=2):.0f}",
    "B7": lambda: f"{ones(5, 6, padding_left=2):.0f}",
    "A8": lambda: f"{informative_share(torch.tensor(0.5), 2).item():.0%}",
    "B8": lambda: f"{informative_share(torch.tensor(0.1), 2).item():.0%}",
    "A9": lambda: "{:.0f}".format((w := two_answers("sequence_mean", 8)[1])[0, 0] / w[1, 0]),
    "B9": lambda: f"{two_answers('token_mean', 6)[0]:.1f}",
    "A10": lambda: f"{k3(0.2, 0.4):.2f}",
    "B10": lambda: f"{k3(0.4, 0.2):.2f}",
}


@pytest.mark.parametrize("number", NUMBERS)
def test_the_quizs_numbers_are_the_librarys(number):
    right, _, _ = answers()[number]
    assert questions()[number][1][right] == NUMBERS[number]()


def advantages_of(rewards):
    """Of the first answer, with the std of n - 1, of n, the variance of n, and no std."""
    rewards = torch.tensor(rewards)
    above = rewards[0] - rewards.mean()
    return [f"{x.item():+.2f}" for x in (above / rewards.std(), above / rewards.std(correction=0),
                                         above / rewards.var(correction=0), above)]


def estimates(policy, reference):
    """k1, k2, and k3 with the ratio the wrong way up."""
    d = torch.tensor([math.log(policy)]), torch.tensor([math.log(reference)])
    return [f"{kl_estimate(*d, kl=kl).item():.2f}" for kl in ("k1", "k2")] + [
        f"{k3(reference, policy):.2f}"]


def test_the_wrong_numbers_come_of_the_mistakes_that_they_are_said_to_tell():
    chosen = {number: choices for number, (_, choices) in questions().items()}
    _, _, _, bare = advantages_of([1.0, 0.0, 0.0, 0.0])
    assert (chosen["A1"]["b"], chosen["A1"]["d"]) == (bare, "+0.25")
    _, biased, by_variance, bare = advantages_of([1.0, 1.0, 0.0, 0.0])
    assert [chosen["B1"][letter] for letter in "acd"] == [biased, by_variance, bare]
    weights, even = two_answers("sequence_mean", 8)[1], two_answers("token_mean", 8)[1]
    assert chosen["A9"]["a"] == f"{even[0, 0] / even[1, 0]:.0f}"
    assert chosen["A9"]["d"] == f"{1 / (weights[1, 0] * 2):.0f}"
    assert chosen["B9"]["a"] == f"{abs(two_answers('sequence_mean', 6)[0]):.1f}"
    assert chosen["B9"]["b"] == f"{two_answers('constant', 6)[0]:.1f}"
    assert [chosen["A10"][letter] for letter in "abd"] == estimates(0.2, 0.4)
    assert [chosen["B10"][letter] for letter in "dbc"] == estimates(0.4, 0.2)


def test_the_quizs_words_are_what_the_library_does():
    """The questions that ask for a word, each by the fact behind it."""
    chosen = {n: questions()[n][1][right] for n, (right, _, _) in answers().items()}
    for number, rewards in (("A2", 1.0), ("B2", 0.0)):
        assert group_advantages(torch.full((1, 8), rewards)).abs().max() == 0
        assert chosen[number] == "nothing"
    for number, ratio, word in (("A5", 0.7, "blocked"), ("B5", 1.3, "rarer")):
        low, high = clip_binds(torch.tensor(ratio), torch.tensor(-1.0), 0.2)
        assert (low | high).item() == ("blocked" in chosen[number]) and word in chosen[number]
    # logits at t score the token at t + 1: a model that is sure of the next token says so there
    tokens = torch.tensor([[3, 1, 4, 2, 0, 5, 6, 7]])
    sure = 50.0 * torch.nn.functional.one_hot(tokens.roll(-1, 1), 8).float()
    assert token_log_probs(sure[:, :-1], tokens[:, 1:]).exp().min() > 0.99
    assert "t + 1" in chosen["A6"]
    assert token_log_probs(sure[:, int(chosen["B6"])], tokens[:, 5]).exp() > 0.99
    # a first loss of 0 with a gradient; and ratios of 1 at the only update of a batch
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    ratio = torch.exp(log_probs - log_probs.detach())
    loss = -(ratio * torch.tensor([1.0, -1.0])).mean()
    loss.backward()
    assert loss == 0 and log_probs.grad.abs().max() > 0 and "nothing is wrong" in chosen["A3"]
    assert (ratio == 1).all() and "every ratio is 1" in chosen["B4"]


def test_the_entry_checks_answers():
    questions, said = text_of("entry_check.md"), text_of("keys.md").split("## Concept quiz")[0]
    found = dict(re.findall(r"(?m)^(\d)\. (.*)$", said))
    assert len(found) == len(re.findall(r"(?m)^\d\. ", questions)) == 7
    x, t = torch.zeros(3, 4), [10, 11, 12, 13]
    numbers = torch.tensor([1.0, 0.0, 1.0, 0.0])
    place = torch.tensor(3.0, requires_grad=True)
    (place ** 2).backward()
    for number, fact in (
            ("1", f"`{tuple(x.mean(dim=1).shape)}`"), ("2", f"`{t[:-1]}` and `{t[1:]}`"),
            ("3", f"{0.5 * 0.1:.2f}"), ("3", f"{-0.69 - 2.30:.2f}"),
            ("4", f"Mean {numbers.mean():.1f}, standard deviation {numbers.std():.2f}"),
            ("5", f"{torch.zeros(4).softmax(0)[0]:.2f} each"),
            ("6", f"{3 - 0.1 * place.grad.item():.1f}."), ("7", f"{1 - 0.9 ** 2:.2f}")):
        assert fact in found[number], (number, fact)


# classroom -------------------------------------------------------------------------------------


def test_the_times_are_those_that_were_measured():
    from benchmarks.notebooks import table

    measured = json.loads((ROOT / "benchmarks" / "notebooks.json").read_text(encoding="utf-8"))
    assert set(NOTEBOOKS) <= set(measured["notebooks"])
    assert "\n".join(table(measured)) in text_of("classroom.md")


def test_links_and_commands_lead_somewhere():
    from grpo_lib.cli.environment import lab, wheels

    index = text_of("README.md")
    for page in KIT.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name
        for address in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (KIT / address).exists(), (page.name, address)
    texts = "".join(page.read_text(encoding="utf-8") for page in KIT.glob("*.md"))
    scripts = set(re.findall(r"python3? ([a-z]+/\w+\.py)", texts))
    assert len(scripts) >= 4 and all((ROOT / script).is_file() for script in scripts)
    modules = re.findall(r"python3? -m (\w+) ([\w/]+)", texts)
    places = {"grpo_lib": {"lab", "wheels"}, "pip": {"install"},
              "benchmarks": {"notebooks"}, "pytest": {"tests/seat"}}
    assert {(m, w) for m, w in modules} == {(m, w) for m in places for w in places[m]}
    assert callable(lab) and callable(wheels) and (ROOT / "tests" / "seat").is_dir()


def test_troubles_say_whether_their_way_out_was_tried():
    systems = re.split(r"(?m)^## ", text_of("troubles.md"))[1:]
    assert {s.split("\n")[0] for s in systems} >= {"Windows", "macOS", "Linux"}
    rows = [(s.split("\n")[0], cells_of(line)) for s in systems for line in s.splitlines()
            if line.startswith("|") and not re.match(r"\|(---| What is| Way)", line)]
    assert len(rows) > 15
    for system, (seen, do, label) in rows:
        assert seen and do and label in {"tried", "not run", "simulated only"}, seen
        assert system not in ("Windows", "macOS") or label == "not run", "no such computer"


def test_nothing_tracked_names_a_package_index_or_a_machine():
    import subprocess

    paths = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True,
                           check=False).stdout.split("\0")
    forbidden = ["--index" + "-url", "--extra-index" + "-url", "--find" + "-links", "/home" + "/",
                 "/root" + "/", "/work" + "/", "whl/" + "cpu"]
    for path in filter(None, paths):
        if path.endswith((".md", ".py", ".ipynb", ".txt", ".toml", ".cfg", "run", "colab")):
            content = (ROOT / path).read_text(encoding="utf-8")
            assert not [word for word in forbidden if word in content], path
