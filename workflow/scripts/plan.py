from pathlib import Path

import pandas as pd

from ngsgd.faces.program import program
from ngsgd.files import whole
from ngsgd.procedure.plan import Job, make_plan
from ngsgd.procedure.renewal import Recipe

with program(snakemake.log[0]):
    (in_force,) = Path(f"results/{snakemake.wildcards.run}/recipe").glob("*.json")
    recipe = Recipe.read(in_force)
    plan = pd.DataFrame(make_plan(recipe.layout, recipe.run.settings), columns=Job._fields)
    recipe.run.write()
    with whole(recipe.run.plan) as temporary:
        plan.to_csv(temporary, sep="\t", index=False)
