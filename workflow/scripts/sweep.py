from ngsgd.faces.program import program
from ngsgd.procedure.run import Run
from ngsgd.procedure.words import score_words, write_sweep

with program(snakemake.log[0]):
    run = Run.open(f"results/{snakemake.wildcards.run}")
    write_sweep(score_words(run), run.sweep)
