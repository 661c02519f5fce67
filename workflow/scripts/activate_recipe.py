from dataclasses import replace
from pathlib import Path

from ngsgd.cli.entry_point import entry_point
from ngsgd.data.corpus import read_info
from ngsgd.training.plan import make_plan
from ngsgd.training.recipe import Recipe, activate_recipe
from ngsgd.training.run import Run
from ngsgd.training.settings import Settings, check_corpus

with entry_point(snakemake.log[0]):
    stamp = Path(snakemake.output[0])
    run = Run(
        folder=stamp.parent.parent,
        settings=Settings.from_values(snakemake.params.settings),
        data=Path(snakemake.params.data),
        examples=Path(snakemake.params.examples),
        origin=snakemake.params.origin,
    )
    info = read_info(run.data)
    check_corpus(run.settings, info)
    layout = run.layout()
    plan = make_plan(layout, replace(run.settings, extra_epochs=0))
    # Former recipes are removed first, so that none of them is active if this job fails.
    for former in stamp.parent.glob("*.json"):
        former.unlink()
    activate_recipe(run, info, plan)
    Recipe(run, layout).write(stamp)
