"""Asking a teacher: once for each answer, in the way that it does best, and dropping what fails."""

import json

import pytest

from kdjax.errors import KdjaxError
from kdjax.synthesis import TEMPLATES, AnswerCache, AnswerRule, Template, key_of
from kdjax.synthesis.arithmetic import questions, solve, two_step_arithmetic
from kdjax.synthesis.stages import chats_of, pairs_of, respond, search
from kdjax.teachers.text import TextDecoding, TextTeacher

STEPS, LABEL = TEMPLATES["chain_of_thought"], TEMPLATES["label_only"]
GREEDY = TextDecoding()


class Counted:
  """A teacher that says which number its answer has."""

  def __init__(self, name="counted"):
    self.asked = []
    self.teacher = TextTeacher(name, self.answer)

  def answer(self, prompts, decoding):
    self.asked += prompts
    return [f"Answer: {len(self.asked) - len(prompts) + i}" for i in range(len(prompts))]


def test_a_hit_gives_the_same_answer_and_asks_nobody(tmp_path):
  counted, texts = Counted(), ["a", "b", "a"]
  first = respond(counted.teacher, STEPS, GREEDY, texts, AnswerCache(tmp_path / "c"), batch_size=1)
  assert first == ["Answer: 0", "Answer: 1", "Answer: 0"]
  again = respond(counted.teacher, STEPS, GREEDY, texts, AnswerCache(tmp_path / "c"))
  assert again == first and len(counted.asked) == 2


@pytest.mark.parametrize(
  ("template", "decoding", "name"),
  [
    (LABEL, GREEDY, "counted"),
    (STEPS._replace(user=STEPS.user + " Please."), GREEDY, "counted"),
    (STEPS._replace(rule=AnswerRule("Result:")), GREEDY, "counted"),
    (STEPS, GREEDY._replace(temperature=0.5), "counted"),
    (STEPS, GREEDY._replace(seed=1), "counted"),
    (STEPS, GREEDY, "another"),
  ],
)
def test_another_template_decoding_or_teacher_is_asked_anew(tmp_path, template, decoding, name):
  cache = AnswerCache(tmp_path / "c")
  respond(Counted().teacher, STEPS, GREEDY, ["a"], cache)
  other = Counted(name)
  respond(other.teacher, template, decoding, ["a"], cache)
  assert len(other.asked) == 1 and len(cache) == 2


def test_a_killed_generation_goes_on_where_it_was(tmp_path):
  counted, texts = Counted(), list("abcdef")
  pauses = iter([None, None])

  def pause():
    if next(pauses, "stop") == "stop":
      raise InterruptedError

  with pytest.raises(InterruptedError):
    respond(
      counted.teacher,
      STEPS,
      GREEDY,
      texts,
      AnswerCache(tmp_path / "c"),
      batch_size=2,
      pause=pause,
    )
  with open(tmp_path / "c", "a") as file:  # killed within a line
    file.write('{"key": "12')
  rest = AnswerCache(tmp_path / "c")
  assert len(rest) == 4
  respond(counted.teacher, STEPS, GREEDY, texts, rest)
  assert [prompt.user for prompt in counted.asked] == [STEPS.prompt(text).user for text in texts]
  assert len(AnswerCache(tmp_path / "c")) == 6


def test_the_way_in_which_the_teacher_does_best_is_first(tmp_path):
  items = questions(20)

  def answer(prompts, decoding):
    wrong = prompts[0].system == LABEL.system or decoding.temperature > 0
    return ["Answer: 0" if wrong else solve(prompt) for prompt in prompts]

  teacher = TextTeacher("moody", answer)
  hot = GREEDY._replace(temperature=1.0)
  cache = AnswerCache(tmp_path / "c")
  found = search(teacher, [LABEL, STEPS], [hot, GREEDY], items, cache)
  assert (found[0].template, found[0].decoding, found[0].score) == (STEPS, GREEDY, 1.0)
  assert [each.score for each in found] == [1.0, 0.0, 0.0, 0.0]
  for given in ([], [GREEDY]), ([STEPS], []):
    with pytest.raises(KdjaxError, match="at least"):
      search(teacher, *given, items, cache)
  with pytest.raises(KdjaxError, match="item 0 has no field 'gold'"):
    search(teacher, [STEPS], [GREEDY], [{"input": "1"}], cache)


def test_what_cannot_be_parsed_is_dropped_and_counted_and_no_template_is_learnt():
  texts = ["2*3+10=?", "2*4+10=?"]
  said = [solve(STEPS.prompt(texts[0])), "no idea"]
  pairs = pairs_of(texts, said, STEPS, marker="#")
  assert pairs.dropped == 1
  assert pairs.rows == [{"source": texts[0], "label": "#16", "target": "2*3=6\n6+10=16\n#16"}]
  (chat,) = chats_of(pairs, "target")
  assert [m["content"] for m in chat["messages"]] == [texts[0], "2*3=6\n6+10=16\n#16"]
  written = json.dumps(pairs.rows) + json.dumps(chat)
  pieces = [line for text in STEPS[1:3] for line in text.replace("{input}", "").splitlines()]
  assert not [piece for piece in pieces if piece and piece in written]


def test_questions_are_different_and_solved_exactly():
  items = questions(5760, seed=3)
  assert len({item["input"] for item in items}) == 5760
  prompts = [LABEL.prompt(item["input"]) for item in items]
  answers = two_step_arithmetic().answer(prompts, GREEDY)
  assert [text.rpartition(" ")[2] for text in answers] == [item["gold"] for item in items]
  assert all(eval(item["input"].removesuffix("=?")) == int(item["gold"]) for item in items[:200])


def test_what_does_not_fit_is_told(tmp_path):
  cache = AnswerCache(tmp_path / "c")
  with pytest.raises(KdjaxError, match="batch_size = 0"):
    respond(Counted().teacher, STEPS, GREEDY, ["a"], cache, batch_size=0)
  with pytest.raises(KdjaxError, match="gave 0 answers to 1 prompts"):
    respond(TextTeacher("mute", lambda *_: []), STEPS, GREEDY, ["a"], cache)
  with pytest.raises(KdjaxError, match=r"must have \{input\}"):
    Template("t", "", "question?").prompt("a")
  with pytest.raises(KdjaxError, match="count = 5761"):
    questions(5761)
  with pytest.raises(KdjaxError, match="no question"):
    solve(STEPS.prompt("What is it?"))
  key = key_of("a", STEPS.id, GREEDY, "t")
  cache.add({key: "b"})
  with pytest.raises(KdjaxError, match="has 1 of these answers already"):
    cache.add({key: "c"})
