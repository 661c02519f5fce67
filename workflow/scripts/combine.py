from ngsgd.cli.entry_point import entry_point
from ngsgd.data.corpus import read_info
from ngsgd.training.combine import combine
from ngsgd.training.plan import models_to_combine, read_plan
from ngsgd.training.run import Run

with entry_point(snakemake.log[0]):
    run = Run.open(f"results/{snakemake.wildcards.run}")
    plan = read_plan(run.plan)
    combine(
        [run.model(x) for x in models_to_combine(plan, run.layout(), run.settings)],
        run.valid,
        run.prior,
        run.settings.context(),
        run.settings.threads,
        run.final,
        run.combination,
        run.diagnostic_labels(plan[-1].alignment, "valid"),
        read_info(run.data).transition_model,
        run.settings.combination_decay,
    )
