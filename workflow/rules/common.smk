# Objects and functions that the other files share: the runs, their plans and inputs, and the resources of their jobs.

from snakemake.checkpoints import Checkpoint
from snakemake.exceptions import WorkflowError

from ngsgd.errors import NgsgdError
from ngsgd.gpus import visible_gpus
from ngsgd.memory import LARGE_PAGES
from ngsgd.study.grid import FOLDER as STUDY_FOLDER
from ngsgd.study.grid import KEYS as STUDY_KEYS
from ngsgd.study.grid import Study
from ngsgd.training.call_settings import CallSettings
from ngsgd.workflow.configuration import check_sources, run_settings, typed_values
from ngsgd.workflow.inputs import CORPUS_FILES, Inputs
from ngsgd.workflow.plans import Plans
from ngsgd.workflow.resources import JobResources
from ngsgd.workflow.runs import initial_model_path, make_runs
from ngsgd.workflow.snakemake_call import SnakemakeCall

try:
    CALL = SnakemakeCall(workflow, snakemake.__version__, WorkflowError)
    ROOT = CALL.root
    config = CALL.with_defaults(config, ROOT / "config/config.yaml")
    STUDY = Study.from_config(config) if "paper" in config else None
    if STUDY:
        # Read once: this call changes the files.
        RATES = STUDY.rates(STUDY_FOLDER)
        config = {name: value for name, value in config.items() if name not in STUDY_KEYS}
        config["runs"] = STUDY.runs(RATES)
    config = typed_values(config)
    SETTINGS = run_settings(config)
    CALL_SETTINGS = CallSettings.from_config(config)
    if CALL.is_main_process:
        check_sources(SETTINGS)
    # Runs share a corpus, or examples, if their settings for it agree.
    CORPORA = {settings.data_key(): settings for settings in SETTINGS.values()}
    EXAMPLES = {settings.egs_key(): settings for settings in SETTINGS.values()}
    RUNS = make_runs(SETTINGS)
    IS_USED_BEFORE = CALL.is_used_before(config)
except NgsgdError as e:
    sys.exit(f"error: {e}")


def activate_recipe(path, **wildcards):
    Checkpoint(CALL.checkpoint_of(path), workflow.checkpoints).get(**wildcards)


CALL.read_units_of_memory()
PLANS = Plans(RUNS, CALL, activate_recipe)
RESOURCES = JobResources(RUNS, CALL, CALL_SETTINGS)
INPUTS = Inputs(RUNS, PLANS, CALL, CALL_SETTINGS, CORPORA, EXAMPLES)

if not CALL.on_cluster:
    # As many jobs train at once as there are GPUs, if they want one.
    CALL.set_default_resource("gpus", max(1, len(visible_gpus())))
    for name, settings in SETTINGS.items():
        # Snakemake would run such a job with fewer threads.
        if CALL.is_main_process and CALL.cores is not None and settings.threads > CALL.cores:
            sys.exit(
                f"error: runs: {name}: threads: {settings.threads}, but this call may use {CALL.cores} cores (--cores); "
                "the results depend on the number of threads, so that it is not lowered here: lower it in the "
                "configuration"
            )

# The jobs find the `ngsgd` of the environment in which Snakemake runs, activated or not.
os.environ.update(PATH=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")
for variable, value in LARGE_PAGES.items():
    os.environ.setdefault(variable, value)


wildcard_constraints:
    run="|".join(map(re.escape, RUNS)),
    data="|".join(map(re.escape, CORPORA)),
    egs="|".join(map(re.escape, EXAMPLES)),
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
