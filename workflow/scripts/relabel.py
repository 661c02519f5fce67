from pathlib import Path

from ngsgd.faces.program import program
from ngsgd.procedure.realign import relabel_archive
from ngsgd.procedure.run import Run

with program(snakemake.log[0]):
    run, w = Run.open(f"results/{snakemake.wildcards.run}"), snakemake.wildcards
    output = Path(snakemake.output[0])
    relabel_archive(run, int(w.alignment), int(w.archive), output)
