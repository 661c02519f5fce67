import numpy as np

from ngsgd.cli.entry_point import entry_point
from ngsgd.cli.models import load
from ngsgd.data.corpus import read_info
from ngsgd.data.transform import read_transform
from ngsgd.files import derived_seed
from ngsgd.network.topology import initial_model
from ngsgd.training.run import Run
from ngsgd.training.warm_start import warm_start_model

with entry_point(snakemake.log[0]):
    run = Run.open(f"results/{snakemake.wildcards.run}")
    info = read_info(run.data)
    if snakemake.params.origin:
        model = warm_start_model(load(snakemake.params.origin), snakemake.params.origin, run.settings, info)
    else:
        model = initial_model(
            run.settings.hidden_layers(),
            read_transform(run.transform),
            np.array(info.class_counts),
            derived_seed(run.settings.seed, "initial"),
            info.const_dim,
        )
    model.save(run.model(0))
