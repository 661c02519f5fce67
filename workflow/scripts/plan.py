from pathlib import Path

import pandas as pd

from ngsgd.cli.entry_point import entry_point
from ngsgd.files import atomic_write
from ngsgd.training.plan import Job, make_plan
from ngsgd.training.recipe import Recipe

with entry_point(snakemake.log[0]):
    (stamp,) = Path(f"results/{snakemake.wildcards.run}/recipe").glob("*.json")
    recipe = Recipe.read(stamp)
    plan = pd.DataFrame(make_plan(recipe.layout, recipe.run.settings), columns=Job._fields)
    recipe.run.write()
    with atomic_write(recipe.run.plan) as temporary:
        plan.to_csv(temporary, sep="\t", index=False)
