from ngsgd.data.corpus import read_info
from ngsgd.faces.program import program
from ngsgd.procedure.combine import combine
from ngsgd.procedure.plan import models_to_combine, read_plan
from ngsgd.procedure.run import Run

with program(snakemake.log[0]):
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
