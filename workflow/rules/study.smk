# The paper's claims: a sweep of learning rates, a grid of runs with the best of them, and what these show.

from ngsgd.workflow.study_targets import StudyTargets

STUDY_TARGETS = StudyTargets(STUDY, RATES, RUNS, PLANS, CALL)


wildcard_constraints:
    experiment="|".join(map(re.escape, STUDY.experiments)),
    figure="|".join(map(re.escape, STUDY_TARGETS.figures())),


rule choose_rates:
    input:
        STUDY_TARGETS.metrics_of_sweep,
    output:
        rates="results/paper/{experiment}/learning_rates.json",
        table="results/paper/{experiment}/tuning.tsv",
    log:
        "results/paper/logs/{experiment}.choose_rates.log",
    localrule: True
    params:
        experiment=STUDY_TARGETS.experiment,
    script:
        "../scripts/choose_rates.py"


rule study_tables:
    input:
        STUDY_TARGETS.results_of_grid,
        metrics=STUDY_TARGETS.metrics_of_grid,
    output:
        curves="results/paper/{experiment}/curves.tsv",
        speedup="results/paper/{experiment}/speedup.tsv",
        summary="results/paper/{experiment}/summary.tsv",
    log:
        "results/paper/logs/{experiment}.tables.log",
    localrule: True
    params:
        experiment=STUDY_TARGETS.experiment,
        turnaround=STUDY.turnaround,
    script:
        "../scripts/study_tables.py"


rule study_cost:
    input:
        STUDY_TARGETS.files_of_cost,
    output:
        "results/paper/{experiment}/cost.tsv",
    log:
        "results/paper/logs/{experiment}.cost.log",
    localrule: True
    # Alone on this machine.
    threads: CALL.cores or 1
    params:
        runs=STUDY_TARGETS.runs_of_cost,
    script:
        "../scripts/study_cost.py"


rule study_recorded:
    input:
        curves="results/paper/{experiment}/curves.tsv",
        recorded=lambda wildcards: f"{ROOT}/{STUDY.experiments[wildcards.experiment].recorded}",
    output:
        "results/paper/{experiment}/recorded.tsv",
    log:
        "results/paper/logs/{experiment}.recorded.log",
    localrule: True
    script:
        "../scripts/study_recorded.py"


rule study_figure:
    input:
        STUDY_TARGETS.table_of_figure,
    output:
        png="results/paper/{experiment}/{figure}.png",
        pdf="results/paper/{experiment}/{figure}.pdf",
    log:
        "results/paper/logs/{experiment}.{figure}.log",
    localrule: True
    script:
        "../scripts/study_figure.py"


rule study_page:
    input:
        STUDY_TARGETS.tables_of_page,
        infos=STUDY_TARGETS.corpora_of_page,
    output:
        STUDY_TARGETS.page,
    log:
        "results/paper/logs/page.log",
    localrule: True
    params:
        study=STUDY,
        tables=STUDY_TARGETS.tables(),
        root=str(ROOT),
    script:
        "../scripts/study_page.py"


rule paper:
    input:
        STUDY_TARGETS.study,
    localrule: True
