"""The experiment on teacher hacking: an oracle as the truth, a teacher, and students of it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax import teachers
from kdjax.data.text import TextData
from kdjax.errors import KdjaxError, within, writing
from kdjax.generation.text import end_ids
from kdjax.programs.base import Start
from kdjax.programs.evaluators import HEADED
from kdjax.programs.watched import distance, watched
from kdjax.teachers import Teacher
from kdjax.train.build import build_model
from kdjax.train.checkpoint import writable
from kdjax.train.config import Config, check_config, merge
from kdjax.train.hacking_config import FIELD, Source, checked
from kdjax.train.hacking_report import history, summary, table
from kdjax.train.job import dry_stage, trace
from kdjax.train.loop import summarize
from kdjax.train.mesh import batch_sharding, make_mesh, place
from kdjax.train.plots import distance_curves
from kdjax.train.pretrained import build_teacher, teacher_config, trains_teacher
from kdjax.train.stage import Stop, train, trained
from kdjax.train.streams import Splits, evaluation_passes, load_data
from kdjax.train.written_texts import chosen_prompts, write_texts


def run_teacher_hacking(
  config: Config, workdir: Path, *, seeds: int = 1, stop: Stop = lambda: False
) -> dict[str, Any]:
  """Runs the three steps of the experiment and says who hacked.

  The oracle (`config.teacher_hacking.oracle`, a mapping as `config.teacher`) is trained or read; it
  continues the beginnings of some training rows; teacher and student learn these texts. Then each
  source of `sources` distils that student anew on the beginnings of other rows by the config's own
  objective. Every evaluation has its distances to the teacher (`proxy`) and to the oracle
  (`golden`); they lie in the runs' `metrics.jsonl`, and go on where a run does.

  Args:
    config: a plain mapping; `teacher` and `student` are what step 1 trains: by `teacher.train` and
      by `teacher_hacking.sft`.
    workdir: everything is written here; a second call goes on where the first stopped.
    seeds: of students; the first is `config.seed`. Oracle and teacher are trained once.
    stop: see `run_job`.

  Returns:
    What `teacher_hacking.json` holds: `teacher_golden`, the teacher's own distance to the oracle;
    for each source and seed the `steps`, `proxy` and `golden`; `summary`, and `table`.

  Raises:
    KdjaxError: see `run_job`; fields that do not fit.
    Interrupted: see `run_job`.
  """
  check_config(config)
  spec, sources = checked(config)
  writable(workdir)
  splits = _splits(config, spec)
  data = splits.whole
  oracle_config = config | {"teacher": dict(config["teacher"]) | dict(spec["oracle"])}
  sets = chosen_prompts(
    splits.train, [spec["oracle_prompts"], _most(spec, sources)], seed=config["data"]["seed"]
  )
  _dry_run(config, oracle_config, spec, sources)
  oracle = _trained(oracle_config, workdir / "oracle", "oracle", splits, stop)
  write = functools.partial(
    write_texts,
    data=data,
    prompt_length=spec["prompt_length"],
    batch_size=config["eval"]["batch_size"],
    mesh=config["mesh"],
  )
  truth = write(oracle, sets[0], path=workdir / "oracle.npz", generations=1, seed=0)
  teacher = _trained(config, workdir / "teacher", "teacher", splits._replace(train=truth), stop)
  teacher_golden = _distance(config, spec, splits, teacher, oracle)
  wrap = lambda program, student: watched(  # noqa: E731
    program,
    student,
    teacher,
    oracle,
    prompt_length=spec["prompt_length"],
    drawn_from=spec["drawn_from"],
    divergence=spec["divergence"],
    eos_ids=end_ids(data.tokenizer),
  )
  histories: dict[str, list[dict[str, Any]]] = {name: [] for name in sources}
  for seed in range(config["seed"], config["seed"] + seeds):
    place_of = workdir / f"seed{seed}"
    sft = _student_config(config, spec) | {"seed": seed}
    result, program = train(
      sft, place_of / "student", None, name=f"student {seed}", stop=stop,
      splits=splits._replace(train=truth),
    )  # fmt: skip
    start = trained(result, program)
    for name, source in sources.items():
      prompts = sets[1].take(np.arange(source.prompts or spec["prompts"]))
      rows = prompts
      if not source.online:
        rows = write(
          teacher,
          prompts,
          path=workdir / f"{name}.npz",
          generations=source.generations,
          seed=1,
        )
      own = _source_config(config, spec, source) | {"seed": seed}
      train(
        own,
        place_of / name,
        teacher,
        name=f"{name} {seed}",
        stop=stop,
        splits=splits._replace(train=rows),
        given=jax.tree.map(jax.numpy.copy, Start(start.params, start.state)),
        wrap=wrap,
      )
      histories[name].append(history(place_of / name / "metrics.jsonl"))
  result = {
    "drawn_from": spec["drawn_from"],
    "divergence": spec["divergence"],
    "seeds": [config["seed"] + i for i in range(seeds)],
    "teacher_golden": teacher_golden,
    "sources": histories,
    "baseline": spec["baseline"],
    "summary": summary(histories, spec["baseline"]),
  }
  if jax.process_index() == 0:
    result["table"] = table(result)
    with writing(workdir / "teacher_hacking.json"):
      (workdir / "teacher_hacking.json").write_text(json.dumps(result, indent=1))
      (workdir / "teacher_hacking.png").write_bytes(distance_curves(histories, teacher_golden))
  return result


def _splits(config: Config, spec: Mapping[str, Any]) -> Splits:
  splits = load_data(config["data"])
  if not isinstance(splits.whole, TextData) or splits.whole.teacher is not None:
    raise KdjaxError(f"{FIELD} wants text in one side's tokens; these data are others")
  test = splits.whole.test
  kept = np.unique(np.linspace(0, len(test) - 1, min(spec["test_rows"], len(test))).round())
  return splits._replace(whole=splits.whole._replace(test=test.take(kept.astype(np.int64))))


def _most(spec: Mapping[str, Any], sources: Mapping[str, Source]) -> int:
  return max(source.prompts or spec["prompts"] for source in sources.values())


def _dry_run(
  config: Config, oracle_config: Config, spec: Mapping[str, Any], sources: Mapping[str, Source]
) -> None:
  """Traces what is trained, on the rows of text, so that mistakes cost nothing."""
  length = config["data"]["sequence_length"]
  if spec["prompt_length"] >= length:
    raise KdjaxError(
      f"{FIELD}.prompt_length = {spec['prompt_length']} leaves nothing to write of"
      f" config.data.sequence_length = {length}; shorten the one or lengthen the other"
    )
  dry_stage(_plain(config))
  data = load_data(config["data"]).whole
  for online in {source.writer: source for source in sources.values() if source.online}.values():
    trace(_source_config(config, spec, online), build_teacher(config, data, abstract=True))
  for field, own in ((f"{FIELD}.oracle", oracle_config), ("config.teacher", config)):
    if trains_teacher(own):
      with within(field):
        trace(teacher_config(own), None)
  with within(f"{FIELD}.sft"):
    trace(_student_config(config, spec), None)


def _trained(config: Config, folder: Path, name: str, splits: Splits, stop: Stop) -> Teacher:
  """A model of `config.teacher`, trained on the splits' rows unless it is read."""
  if trains_teacher(config):
    own = _plain(teacher_config(config)) | {"teacher_hacking": {}}
    result, program = train(own, folder, None, name=name, stop=stop, splits=splits)
    model = build_model(config["teacher"]["model"], splits.whole, f"{FIELD} ({name})")
    return teachers.frozen(model, trained(result, program), dtype=config["teacher"]["dtype"])
  return build_teacher(config, splits.whole)


def _plain(config: Config) -> Config:
  """Of a run that has no distances to evaluate."""
  return config | {"eval": config["eval"] | {"best_metric": "nll", "higher_is_better": False}}


def _student_config(config: Config, spec: Mapping[str, Any]) -> Config:
  own = merge(config, spec["sft"])
  check_config(own)
  return _plain(own | {"program": {"name": "distill"}, "teacher_hacking": {}, "stages": None})


def _source_config(config: Config, spec: Mapping[str, Any], source: Source) -> Config:
  """The config of the run of one source; what identifies it is in `teacher_hacking`."""
  program: dict[str, Any] = {"name": "distill"}
  if source.online:
    program = {
      "name": "on_policy",
      "prompt_length": spec["prompt_length"],
      "fraction": 1.0,
      "teacher_share": 1.0 if source.writer == "teacher" else 0.0,
    }
  kept = {key: spec[key] for key in ("prompt_length", "oracle_prompts", "prompts")}
  return config | {
    "program": program,
    "teacher_hacking": kept | {"source": dict(source._asdict())},
    "stages": None,
  }


def _distance(
  config: Config, spec: Mapping[str, Any], splits: Splits, teacher: Teacher, oracle: Teacher
) -> float:
  """The teacher's own distance to the oracle, as the students' are measured."""
  mesh = make_mesh(**config["mesh"])

  @jax.jit
  def evaluate(frozen, other, batch):
    writer = teacher.decode(frozen) if spec["drawn_from"] == "student" else oracle.decode(other)
    pair = distance(
      writer,
      lambda rows: teacher.apply(frozen, (), rows, taps=HEADED),
      lambda rows: oracle.apply(other, (), rows, taps=HEADED),
      batch,
      prompt_length=spec["prompt_length"],
      divergence=spec["divergence"],
      eos_ids=end_ids(splits.whole.tokenizer),
    )
    return {"golden": pair}

  batches = evaluation_passes(splits.whole.test, config["eval"]["batch_size"], mesh)()
  placed = (place(batch, batch_sharding(mesh)) for batch in batches)
  told = summarize(evaluate(teacher.frozen, oracle.frozen, batch) for batch in placed)
  return float(told["golden"])
