# What the other files share: the runs, their settings and plans, and what their jobs need.

import itertools
from pathlib import Path

from ngsgd.errors import NgsgdError
from ngsgd.files import file_stamp
from ngsgd.gpus import visible_gpus
from ngsgd.memory import LARGE_PAGES
from ngsgd.study.grid import KEYS as PAPER_KEYS
from ngsgd.study.grid import Study
from ngsgd.training.execution import Execution
from ngsgd.training.lost_jobs import reassign_lost_archives, read_lost_jobs
from ngsgd.training.plan import make_plan, models_to_combine, read_plan
from ngsgd.training.recipe import Recipe
from ngsgd.training.run import Run
from ngsgd.workflow.configuration import run_settings
from snakemake.exceptions import WorkflowError

PAPER = Path("results/paper")

# Snakemake merges a configuration given on the command line into the default one, key by key; one that names runs
# means these and not the default ones beside them.
if "runs" in workflow.config_settings.overwrite_config:
    config["runs"] = workflow.config_settings.overwrite_config["runs"]

try:
    # A study is a grid of runs.
    STUDY = Study.of(config) if "paper" in config else None
    if STUDY:
        # Read once: the files change while this call is at work.
        RATES = STUDY.rates(PAPER)
        config = {name: value for name, value in config.items() if name not in PAPER_KEYS}
        config["runs"] = STUDY.runs(RATES)
    SETTINGS = run_settings(config)
    EXECUTION = Execution.of(config)
    # Corpora and examples belong to all runs whose settings for them agree.
    DATA = {settings.data_key(): settings for settings in SETTINGS.values()}
    EGS = {settings.egs_key(): settings for settings in SETTINGS.values()}
except NgsgdError as e:
    sys.exit(f"error: {e}")

RUNS = {}


def initial_model_path(settings):
    """The path of the model that a run starts from: below results/ it may have to be made first."""
    given = Path(settings.initial_model)
    return given if given.is_relative_to("results") else settings.path("initial_model")


def add_run(name, dependents=()):
    """Adds a run to RUNS, after the one whose model it starts from."""
    settings, origin = SETTINGS[name], None
    if settings.initial_model:
        path = initial_model_path(settings)
        # What a run of this configuration is going to make cannot be looked at yet: its recipe stands for it.
        maker = next((other for other in SETTINGS if path.is_relative_to(Path("results", other))), None)
        if maker in (*dependents, name):
            sys.exit(f"error: runs: {name}: initial_model: {path} is made from the run itself")
        if maker and maker not in RUNS:
            add_run(maker, (*dependents, name))
        if maker is None and not path.exists():
            sys.exit(f"error: runs: {name}: initial_model: {path}: no such file")
        origin = f"{path} {RUNS[maker].models_key() if maker else file_stamp(path)}"
    RUNS[name] = Run(
        folder=Path("results", name),
        settings=settings,
        data=Path("results/data", settings.data_key()),
        examples=Path("results/egs", settings.egs_key()),
        origin=origin,
    )


for name in SETTINGS:
    if name not in RUNS:
        add_run(name)

# What rules give to their commands as resources: a change of these, unlike one of params, makes no file again.
MIN_JOBS = EXECUTION.min_jobs or 0
KEEP = {"keep_last": EXECUTION.keep_last_models or 0, "keep_every": EXECUTION.keep_every_model or 0}


ON_CLUSTER = workflow.global_resources["_nodes"].value is not None

# Without a cluster as many jobs train at once as there are GPUs, where they want one.
if not ON_CLUSTER and "gpus" not in workflow.global_resources:
    workflow.global_resources["gpus"] = max(1, len(visible_gpus()))

# Snakemake would take so many for granted as there are, and the jobs would be in one another's way.
CORES = workflow.global_resources["_cores"].value
for name, settings in SETTINGS.items():
    if workflow.is_main_process and not ON_CLUSTER and CORES is not None and settings.threads > CORES:
        sys.exit(
            f"error: runs: {name}: threads: {settings.threads}, but this call may use {CORES} cores (--cores); sums "
            "depend on the number of threads, so that it is not lowered here: lower it in the configuration"
        )


def attempts_left(wildcards, attempt):
    """How often a job is to be tried again should it fail."""
    return workflow.execution_settings.retries + 1 - attempt


def rule_resources(step):
    """What the jobs of a rule need, where the configuration says so; else it is left to the profile."""
    given = dict(EXECUTION.resources.get(step, {}))
    if step == "train":
        given.setdefault("gpus", lambda wildcards: int(RUNS[wildcards.run].settings.device.startswith("cuda")))
    return given


# The jobs' `ngsgd` is that of the environment in which Snakemake runs, activated or not.
os.environ.update(PATH=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")
for setting, value in LARGE_PAGES.items():
    os.environ.setdefault(setting, value)


wildcard_constraints:
    run="|".join(map(re.escape, RUNS)),
    data="|".join(map(re.escape, DATA)),
    egs="|".join(map(re.escape, EGS)),
    iteration=r"\d+",
    # A model that an iteration made: all but the initial one.
    next=r"[1-9]\d*",
    job=r"\d+",
    archive=r"\d+",
    split=r"\d+",
    num=r"\d+",
    alignment=r"[1-9]\d*",
    scored="valid|train",
    subset="valid|train|prior",
    frames=r"\d+",
    key=r"[0-9a-f]+",


def recipe_path(name):
    """The file that is there while the run's settings are in force in its folder."""
    return f"results/{name}/recipe/{RUNS[name].key()}.json"


class Plans:
    """The runs' plans, made once each; where a folder is not the recipe's yet, Snakemake sees to that first."""

    def __init__(self):
        self._jobs = {}
        self._layouts = {}
        self._lost = {}

    def of(self, name):
        """For each iteration of a run the rows of its jobs."""
        if name not in self._jobs:
            # Left to itself, Snakemake does without what a target that is there already would have been made from.
            if not Path(recipe_path(name)).exists():
                workflow.dag.forcefiles.add(recipe_path(name))
            checkpoints.activate_recipe.get(run=name, key=RUNS[name].key())
            run = RUNS[name]
            layout = Recipe.read(recipe_path(name)).layout
            plan = make_plan(layout, run.settings)
            if run.plan.exists() and read_plan(run.plan) != plan:
                raise WorkflowError(f"{run.plan} is not the plan of the run's settings; delete it and run again")
            if run.settings_file.exists() and Run.open(run.folder) != run:
                raise WorkflowError(f"{run.settings_file} is not of the settings in force; delete it and run again")
            self._layouts[name] = layout
            losses = read_lost_jobs(run.ledger)
            plan = reassign_lost_archives(plan, {(loss.iteration, loss.job) for loss in losses})
            self._lost[name] = {}
            for loss in losses:
                self._lost[name].setdefault(loss.iteration, set()).add(loss.job)
            self._jobs[name] = [list(jobs) for _, jobs in itertools.groupby(plan, key=lambda job: job.iteration)]
        return self._jobs[name]

    def known(self, name):
        """Whether a run is one of those that this call is about."""
        return name in self._jobs

    def iteration(self, name, iteration):
        """The rows of one iteration's jobs."""
        jobs = self.of(name)
        if iteration >= len(jobs):
            raise WorkflowError(f"{name}: its plan has {len(jobs)} iterations, there is no {iteration}")
        return jobs[iteration]

    def job(self, wildcards):
        """The row of one training job."""
        jobs = self.iteration(wildcards.run, int(wildcards.iteration))
        if not 0 < int(wildcards.job) <= len(jobs):
            raise WorkflowError(
                f"{wildcards.run}: its plan has no job {wildcards.job} in iteration {wildcards.iteration}"
            )
        return jobs[int(wildcards.job) - 1]

    def lost(self, name, iteration):
        """The numbers of an iteration's jobs that have been lost."""
        self.of(name)
        return self._lost[name].get(iteration, set())

    def num_archives(self, name):
        """How many archives a run's examples lie in."""
        self.of(name)
        return self._layouts[name].num_archives

    def alignment_of_model(self, name, x):
        """Which labels a model is scored on."""
        jobs = self.of(name)
        return jobs[min(x, len(jobs) - 1)][0].alignment

    def alignment_begins(self, name, iteration):
        """Whether an iteration is the first one with its labels."""
        jobs = self.of(name)
        return iteration > 0 and jobs[iteration][0].alignment != jobs[iteration - 1][0].alignment

    def realignment(self, name, alignment):
        """The iteration before which a realignment is made."""
        for x, jobs in enumerate(self.of(name)):
            if jobs[0].alignment == alignment and alignment:
                return x
        raise WorkflowError(f"{name}: its plan has no realignment {alignment}")

    def last_models(self, name):
        """The numbers of the models that the final one is made from."""
        plan = [job for jobs in self.of(name) for job in jobs]
        return models_to_combine(plan, self._layouts[name], RUNS[name].settings)


PLANS = Plans()
