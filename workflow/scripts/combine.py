from ngsgd.faces.program import program
from ngsgd.procedure.combine import combine
from ngsgd.procedure.plan import models_to_combine, read_plan
from ngsgd.procedure.run import Run

with program(snakemake.log[0]):
    run = Run.open(f"results/{snakemake.wildcards.run}")
    last = models_to_combine(read_plan(run.plan), run.layout(), run.settings)
    combine(
        [run.model(x) for x in last],
        run.valid,
        run.prior,
        run.settings.context(),
        run.settings.threads,
        run.final,
        run.combination,
    )
