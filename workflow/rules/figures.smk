# The plots.


rule convergence:
    input:
        INPUTS.metrics_of_all_runs,
    output:
        report("results/{run}/figures/convergence.png", caption="../report/convergence.rst", category="{run}"),
    log:
        "results/{run}/logs/convergence.log",
    localrule: True
    params:
        runs=list(RUNS),
    script:
        "../scripts/convergence.py"
