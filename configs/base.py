"""The fields that every config has, with their defaults."""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  """A config without a student: each experiment fills in what is its own."""
  config = ConfigDict()
  config.seed = 0
  config.total_steps = 1000
  config.batch_size = 128
  # A step whose loss or parameters are not finite: "stop" tells so and ends the job; "skip" leaves
  # the state as it was, which takes the memory of another state; "roll_back" goes back to the last
  # checkpoint and past the batches since.
  config.on_nonfinite = "stop"
  # "10:13": a trace of steps 10, 11 and 12 goes to WORKDIR/profile. Also --profile_steps.
  config.profile = ""
  # Sizes of the mesh axes; -1 fills with the devices that are left.
  config.mesh = {"data": -1, "fsdp": 1, "sequence": 1, "tensor": 1}
  config.data = {
    "name": "digits",
    "path": "",  # a folder; "" is the source's default
    "seed": 0,  # of splits and hidden labels, so that they stay when config.seed changes
    "label_fraction": 1.0,  # share of the training images whose label is known
    "labelled_only": False,  # leave the others out
    "validation_fraction": 0.0,  # share of the training images or documents held out
    "augment": (),
    "threads": 1,
  }
  # How the shares of domains of text follow the training; "fixed": they stay config.data.weights.
  config.domain_weights = {"name": "fixed"}
  # Which training rows are learnt from; see kdjax/data/choices.py.
  config.selection = {"name": "everything"}
  config.student = ConfigDict(convert_dict=True)
  # Where its weights lie, as {"mlp": None}; what is not named as `STUDENT_RULES` says, see
  # kdjax/train/mesh.py. Without any on tensor its rows are split along that too.
  config.student_rules = ConfigDict()
  # Where the optimiser's moments lie, if not as the weights: {"embed": ("data", "fsdp")} splits
  # them, though each device has whole weights (ZeRO-1 and 2).
  config.optimizer_rules = ConfigDict()
  config.teacher = {
    # Or "ema": the student's moving average; "cached": its stored signals; "emulated": see below.
    "kind": "frozen",
    "model": ConfigDict(),
    "checkpoint": "",  # folder of a finished run (or several: an ensemble); "" trains it first
    # Whether it is trained first, by `train`. None: unless its name is "pretrained" (and it has its
    # weights), so that a checkpoint is taken as it is; a new head or random weights are trained.
    "fine_tune": config_dict.placeholder(bool),
    "count": 1,  # teachers to train; more than one is an ensemble
    "combine": "probabilities",  # of an ensemble; or "logits": see kdjax.losses.combine_teachers
    "temperature": 1.0,  # of the loss, at which an ensemble's probabilities are averaged
    "dtype": "float32",  # in which its weights are kept
    "rules": ConfigDict(),  # where its weights lie, as {"embed": "tensor"}; see kdjax/train/mesh.py
    # Sizes of a mesh of its own, on the last devices: it then works for the next step while the
    # student is at one. All 0: it lies on the student's devices.
    "mesh": {"data": 0, "fsdp": 0, "sequence": 0, "tensor": 0},
    "decay": 0.999,  # of kind "ema"
    # Of kind "cached": the folder that launch.cache_teacher wrote; "" makes WORKDIR/signals first,
    # as `store` says, which has the flags of launch.cache_teacher.
    "cache": "",
    "store": ConfigDict(),
    # Of kind "emulated": what small models learnt is added to the logits of the model above. The
    # fields are reference, tuned, weights, nucleus, target; see kdjax/train/emulation.py.
    "emulate": ConfigDict(),
    "train": {  # what differs from this config in the run that trains it
      "objective": {"name": "cross_entropy"},
    },
  }
  config.objective = {"name": "cross_entropy"}
  config.program = {"name": "distill"}
  config.optimizer = {
    "name": "adamw",
    "learning_rate": 1e-3,
    "schedule": "cosine",  # or "linear", "constant"
    "warmup_steps": 0,
    "weight_decay": 1e-4,
    "clip_norm": 1.0,
    "accumulate": 1,
  }
  # Several runs one after another, each {"name": ..., overrides}; see kdjax/train/stages.py.
  config.stages = None
  config.checkpoint = {"every": 200, "keep_last": 2, "keep_best": 1}
  config.eval = {
    "every": 200,
    "batch_size": 256,
    "log_every": 20,
    "best_metric": "accuracy",
    "higher_is_better": True,
  }
  # Text that the report shows: continued greedily by teacher and student.
  config.samples = {"prompts": (), "max_new_tokens": 40}
  # Students and teachers of launch.capacity_gap, as lists of what differs from those above.
  config.capacity_gap = ConfigDict()
  # The methods of launch.leaderboard, name to overrides of this config, and which the others are
  # compared with.
  config.leaderboard = ConfigDict()
  # Oracle, prompts and sources of launch.teacher_hacking; see kdjax/train/teacher_hacking.py.
  config.teacher_hacking = ConfigDict()
  # What the method is compared with: overrides of this config.
  config.baseline = {"objective": {"name": "cross_entropy"}}
  config.compare = {
    "title": "",
    "names": {"baseline": "student_alone", "method": "student_distilled"},
    "train_baseline": False,  # launch.train trains the baseline as well
    "vectorize": True,  # launch.compare runs all seeds in one compiled program
  }
  return config
