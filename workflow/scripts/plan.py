from pathlib import Path

import pandas as pd

from ngsgd.cli.entry_point import entry_point
from ngsgd.files import atomic_write
from ngsgd.training.plan import Job, make_plan
from ngsgd.training.recipe import Recipe

with entry_point(snakemake.log[0]):
    recipe = Recipe.read(snakemake.params.recipe)
    plan = pd.DataFrame(make_plan(recipe.layout, recipe.run.settings), columns=Job._fields)
    recipe.run.write(Path(snakemake.output.settings))
    with atomic_write(snakemake.output.plan) as temporary:
        plan.to_csv(temporary, sep="\t", index=False)
