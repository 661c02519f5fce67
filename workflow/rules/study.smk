# The paper's claims: a sweep of learning rates, a grid of runs with the best of them, and what these show.

from ngsgd.study.figures import figures_of

# After what it is about, so that several studies may share the folder.
PAGE = f"results/{'-'.join(STUDY.experiments)}.md"


localrules:
    choose_rates,
    study_tables,
    study_cost,
    study_recorded,
    study_figure,
    study_page,
    paper,


wildcard_constraints:
    experiment="|".join(map(re.escape, STUDY.experiments)),
    figure="|".join(re.escape(name) for experiment in STUDY.experiments.values() for name in figures_of(experiment)),


def metrics_of_sweep(wildcards):
    return metrics_of(STUDY.experiments[wildcards.experiment].sweep_runs())


def metrics_of_grid(wildcards):
    return metrics_of(grid_of(wildcards.experiment))


def ends_of_grid(wildcards):
    return ends_of(grid_of(wildcards.experiment))


def grid_of(experiment):
    """The names of the runs of an experiment's grid."""
    if experiment not in RATES:
        raise WorkflowError(f"{experiment}: its learning rates are not chosen yet, which the target paper does first")
    return list(STUDY.experiments[experiment].grid_runs(RATES[experiment]))


def runs_of_cost(wildcards):
    """The first run of each optimiser, by whose settings a minibatch is measured."""
    runs = {}
    for name in grid_of(wildcards.experiment):
        runs.setdefault(SETTINGS[name].optimizer, f"results/{name}")
    return runs


def metrics_of(runs):
    for name in runs:
        PLANS.of(name)
    return [f"results/{name}/metrics.tsv" for name in runs]


def table_of_figure(wildcards):
    table = figures_of(STUDY.experiments[wildcards.experiment])[wildcards.figure]
    return f"results/paper/{wildcards.experiment}/{table}.tsv"


def tables_of(experiment):
    """The names of an experiment's tables."""
    return [
        *("curves", "speedup", "summary", "tuning"),
        *([] if experiment.methods else ["cost"]),
        *(["recorded"] if experiment.recorded else []),
    ]


rule choose_rates:
    input:
        metrics_of_sweep,
    output:
        rates="results/paper/{experiment}/learning_rates.json",
        table="results/paper/{experiment}/tuning.tsv",
    log:
        "results/paper/logs/{experiment}.choose_rates.log",
    params:
        experiment=lambda wildcards: STUDY.experiments[wildcards.experiment],
    script:
        "../scripts/choose_rates.py"


rule study_tables:
    input:
        ends_of_grid,
        metrics=metrics_of_grid,
    output:
        curves="results/paper/{experiment}/curves.tsv",
        speedup="results/paper/{experiment}/speedup.tsv",
        summary="results/paper/{experiment}/summary.tsv",
    log:
        "results/paper/logs/{experiment}.tables.log",
    params:
        experiment=lambda wildcards: STUDY.experiments[wildcards.experiment],
        turnaround=STUDY.turnaround,
    script:
        "../scripts/study_tables.py"


rule study_cost:
    input:
        lambda wildcards: expand(
            "{run}/{file}", run=runs_of_cost(wildcards).values(), file=["final.safetensors", "settings.json"]
        ),
    output:
        "results/paper/{experiment}/cost.tsv",
    log:
        "results/paper/logs/{experiment}.cost.log",
    # Alone on this machine.
    threads: CORES or 1
    params:
        runs=runs_of_cost,
    script:
        "../scripts/study_cost.py"


rule study_recorded:
    input:
        curves="results/paper/{experiment}/curves.tsv",
        recorded=lambda wildcards: f"{workflow.basedir}/{STUDY.experiments[wildcards.experiment].recorded}",
    output:
        "results/paper/{experiment}/recorded.tsv",
    log:
        "results/paper/logs/{experiment}.recorded.log",
    script:
        "../scripts/study_recorded.py"


rule study_figure:
    input:
        table_of_figure,
    output:
        png="results/paper/{experiment}/{figure}.png",
        pdf="results/paper/{experiment}/{figure}.pdf",
    log:
        "results/paper/logs/{experiment}.{figure}.log",
    script:
        "../scripts/study_figure.py"


rule study_page:
    input:
        [
            f"results/paper/{experiment}/{table}.tsv"
            for experiment in STUDY.experiments
            for table in tables_of(STUDY.experiments[experiment])
        ],
        infos=lambda wildcards: [f"{RUNS[grid_of(name)[0]].data}/corpus.json" for name in STUDY.experiments],
    output:
        PAGE,
    log:
        "results/paper/logs/page.log",
    params:
        study=STUDY,
        tables=lambda wildcards: {name: tables_of(experiment) for name, experiment in STUDY.experiments.items()},
        root=workflow.basedir,
    script:
        "../scripts/study_page.py"


def ends_of(runs):
    """What is made last of runs."""
    return [f"results/{name}/{file}.json" for name in runs for file in ("combination", "evaluation")]


def pending():
    """The portions of the grids that are not made yet, as far as their learning rates are chosen."""
    rates = STUDY.rates(PAPER)
    return [part for part in STUDY.parts(rates) if not all(map(os.path.exists, ends_of(part)))]


PENDING = pending()


def in_portions():
    """Whether a call makes no more than the next of them.

    A cluster has use for all jobs at once; what is forced would be made again by the call after the last portion.
    """
    return not (ON_CLUSTER or workflow.dag_settings.forceall or workflow.dag_settings.forcerun)


def go_on():
    """Makes the call anew, if it has chosen learning rates, whose grids it could not tell, or made a portion of a grid.

    One that has made neither would go on for ever.
    """
    if STUDY.rates(PAPER) != RATES or (in_portions() and pending() != PENDING):
        print("Going on with the study.", file=sys.stderr)
        # At the very end, when this call has put everything away.
        atexit.register(os.execv, sys.executable, sys.orig_argv)


def for_paper(wildcards):
    if open_ := STUDY.experiments.keys() - RATES.keys():
        rates = expand("results/paper/{experiment}/learning_rates.json", experiment=sorted(open_))
        # Those of another sweep may be there already, and that one's runs too; see Plans.of.
        workflow.dag.forcefiles.update(rates)
        return rates
    if PENDING and in_portions():
        return [*metrics_of(PENDING[0]), *ends_of(PENDING[0])]
    return [
        PAGE,
        *(
            f"results/paper/{experiment}/{figure}.{suffix}"
            for experiment in STUDY.experiments
            for figure in figures_of(STUDY.experiments[experiment])
            for suffix in ("png", "pdf")
        ),
    ]


rule paper:
    input:
        for_paper,
