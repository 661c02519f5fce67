# What each step needs: the input functions that the rules name.
#
# The paths of a run's files are the library's (ngsgd.training.run): the commands are given the run's folder and find
# their files by themselves, so that `input` is free to say what must be made first, and that alone.


CORPUS_FILES = expand(
    "{subset}.{part}", subset=["train", "valid", "test"], part=["features.npy", "labels.npy", "utterances.tsv"]
)


def part_infos(wildcards):
    """The descriptions of the parts that a corpus is prepared in."""
    num = DATA[wildcards.data].num_splits
    return [f"results/data/{wildcards.data}/parts/{k}of{num}/corpus.json" for k in range(num)]


def part_files(wildcards):
    """What else belongs to them."""
    return [info.replace("corpus.json", file) for info in part_infos(wildcards) for file in CORPUS_FILES]


def run_corpus(wildcards):
    return f"{RUNS[wildcards.run].data}/corpus.json"


def egs_corpus(wildcards):
    """The description of the corpus that a set of examples is made from."""
    return f"results/data/{EGS[wildcards.egs].data_key()}/corpus.json"


def distributed(wildcards):
    num = EGS[wildcards.egs].num_splits
    return [f"results/egs/{wildcards.egs}/distributed/{k}of{num}.npy" for k in range(num)]


CHAIN = {"activate_recipe", "plan", "initial_model", "train", "average", "adjust_priors", "align", "relabel"}


def missing_inputs(*outputs):
    """Decorates an input function of a run: what is there already asks for nothing to be made.

    A run's files are all of one recipe (see ngsgd.training.recipe), so that one that exists is the right one.
    Snakemake would take it to be out of date as soon as something that it was made from has been made again, though
    with the same bytes; so it is told only of what is missing, or forced. Where everything is forced, or a whole step
    of training, it is told of the whole chain.

    The decorated function is named after its step: for_train.
    """

    def decorate(needs):
        step = needs.__name__.removeprefix("for_")

        def inputs(wildcards):
            PLANS.of(wildcards.run)  # a new recipe sets aside what is there now
            run = RUNS[wildcards.run]
            needed = [str(path) for path in needs(wildcards, run)]
            given = workflow.dag_settings
            if given.forceall or not CHAIN.isdisjoint(given.forcerun):
                return needed

            def wanted(path):
                return path in given.forcerun or not Path(path).exists()

            mine = [output.format(**wildcards) for output in outputs]
            if not (given.forcetargets or step in given.forcerun or any(map(wanted, mine))):
                return []
            return [path for path in needed if wanted(path)]

        return inputs

    return decorate


@missing_inputs("results/{run}/plan.tsv", "results/{run}/settings.json")
def for_plan(wildcards, run):
    return [recipe_path(wildcards.run)]


@missing_inputs("results/{run}/models/0.safetensors")
def for_initial_model(wildcards, run):
    origin = initial_model_path(run.settings) if run.settings.initial_model else run.transform
    return [run.settings_file, origin, run.data / "corpus.json"]


@missing_inputs("results/{run}/jobs/{iteration}.{job}.safetensors")
def for_train(wildcards, run):
    job = PLANS.job(wildcards)
    archives = [job.archive]
    if EXECUTION.min_jobs is not None and PLANS.alignment_begins(wildcards.run, job.iteration):
        # What has been lost before may have to be trained on with the new labels, too.
        archives += [a for a in range(PLANS.num_archives(wildcards.run)) if a != job.archive]
    labels = [run.labels(job.alignment, archive) for archive in archives] if job.alignment else []
    return [run.plan, run.settings_file, run.model(job.iteration), run.archive(job.archive), *labels]


@missing_inputs("results/{run}/models/{next}.safetensors", "results/{run}/reports/{next}.json")
def for_average(wildcards, run):
    x = int(wildcards.next) - 1
    return [
        run.plan,
        run.settings_file,
        *(
            run.job(x, job.job)
            for job in PLANS.iteration(wildcards.run, x)
            if job.job not in PLANS.lost(wildcards.run, x)
        ),
        run.model(x),
    ]


@missing_inputs("results/{run}/diagnostics/{iteration}.json")
def for_diagnose(wildcards, run):
    x = int(wildcards.iteration)
    alignment = PLANS.alignment_of_model(wildcards.run, x)
    labels = [run.diagnostic_labels(alignment, subset) for subset in ("valid", "train")] if alignment else []
    return [run.plan, run.settings_file, run.model(x), run.valid, run.train_subset, *labels]


@missing_inputs("results/{run}/alignments/{alignment}/model.safetensors")
def for_adjust_priors(wildcards, run):
    x = PLANS.realignment(wildcards.run, int(wildcards.alignment))
    return [run.plan, run.settings_file, run.model(x), run.prior]


@missing_inputs(
    "results/{run}/alignments/{alignment}/splits/{split}of{num}.train.npy",
    "results/{run}/alignments/{alignment}/splits/{split}of{num}.valid.npy",
)
def for_align(wildcards, run):
    return [run.settings_file, run.alignment_model(int(wildcards.alignment)), run.data / "corpus.json"]


@missing_inputs("results/{run}/alignments/{alignment}/archives/{archive}.npy")
def for_relabel(wildcards, run):
    splits = range(run.settings.num_splits)
    return [run.settings_file, *(run.aligned(int(wildcards.alignment), split, "train") for split in splits)]


@missing_inputs("results/{run}/diagnostics/labels/{alignment}.{scored}.npy")
def for_relabel_diagnostics(wildcards, run):
    splits = range(run.settings.num_splits)
    return [run.settings_file, *(run.aligned(int(wildcards.alignment), split, wildcards.scored) for split in splits)]


@missing_inputs("results/{run}/final.safetensors", "results/{run}/combination.json")
def for_combine(wildcards, run):
    last = list(PLANS.last_models(wildcards.run))
    alignment = PLANS.alignment_of_model(wildcards.run, last[-1])
    labels = [run.diagnostic_labels(alignment, "valid")] if alignment else []
    models = map(run.model, last)
    return [run.plan, run.settings_file, *models, run.valid, run.prior, run.data / "corpus.json", *labels]


@missing_inputs("results/{run}/decoding/graph.fst")
def for_graph(wildcards, run):
    return [run.settings_file, run.data / "corpus.json"]


def after_final(run, output, needed):
    """The final model, and where the output is going to be made, what else is needed and missing.

    A final model that was made again, from other candidates perhaps, is decoded and evaluated again; nothing else that
    these steps need changes.
    """
    settled = output.exists() and run.final.exists() and run.final.stat().st_mtime <= output.stat().st_mtime
    forced = workflow.dag_settings.forceall or workflow.dag_settings.forcetargets or workflow.dag_settings.forcerun
    missing = [str(path) for path in needed if not path.exists()] if forced or not settled else []
    return [str(run.final), *missing]


def for_decode(wildcards):
    PLANS.of(wildcards.run)
    run = RUNS[wildcards.run]
    needed = (run.settings_file, run.data / "corpus.json", run.graph)
    return after_final(run, run.decoded(int(wildcards.split)), needed)


def lm_weight_inputs(wildcards):
    PLANS.of(wildcards.run)
    run = RUNS[wildcards.run]
    if not run.settings.graph:
        raise WorkflowError(f"{wildcards.run}: no words are decoded, its settings have no graph")
    return [str(run.decoded(split)) for split in range(run.settings.num_splits)]


def for_evaluate(wildcards):
    PLANS.of(wildcards.run)
    run = RUNS[wildcards.run]
    words = lm_weight_inputs(wildcards) if run.settings.graph else []
    return after_final(run, run.evaluation, (run.settings_file, run.data / "corpus.json")) + words


def all_sweeps(wildcards):
    for name in RUNS:
        PLANS.of(name)
    return [str(run.lm_weight_scores) for run in RUNS.values() if run.settings.graph]


def for_metrics(wildcards):
    run, num_iters = RUNS[wildcards.run], len(PLANS.of(wildcards.run))

    def needed(x):
        # The report of a model that was removed is there for good: to name it would be to ask for the model, too.
        return not run.pruned.exists() or run.model(x).exists() or not run.report(x).exists()

    reports = (run.report(x) for x in range(1, num_iters + 1) if needed(x))
    diagnostics = (run.diagnostics(x) for x in range(num_iters + 1))
    # Asked for alone it may be that the settings have been set aside, and nothing else.
    settings = [] if run.settings_file.exists() else [run.settings_file]
    return [str(path) for path in (run.plan, *settings, run.data / "corpus.json", *diagnostics, *reports)]


def metrics_of_all_runs(wildcards):
    for name in RUNS:
        PLANS.of(name)
    return [f"results/{name}/metrics.tsv" for name in RUNS]


def all_models(wildcards):
    """Every model of every run is a result: one that was deleted is made again, though nothing else may need it.

    Where models are removed they are made for what needs them alone.
    """
    return [
        str(run.model(x))
        for name, run in RUNS.items()
        for x in range(len(PLANS.of(name)) + 1)
        if EXECUTION.keeping.all and not run.pruned.exists()
    ]
