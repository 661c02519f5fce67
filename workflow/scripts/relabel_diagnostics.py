from pathlib import Path

from ngsgd.faces.program import program
from ngsgd.procedure.realign import relabel_diagnostics
from ngsgd.procedure.run import Run

with program(snakemake.log[0]):
    run, w = Run.open(f"results/{snakemake.wildcards.run}"), snakemake.wildcards
    relabel_diagnostics(run, int(w.alignment), w.scored, Path(snakemake.output[0]))
