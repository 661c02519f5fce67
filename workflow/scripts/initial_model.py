from pathlib import Path

import numpy as np

from ngsgd.cli.entry_point import entry_point
from ngsgd.cli.models import load
from ngsgd.data.corpus import read_info
from ngsgd.data.transform import read_transform
from ngsgd.errors import DataError
from ngsgd.files import derived_seed
from ngsgd.network.topology import initial_model
from ngsgd.training.run import Run
from ngsgd.training.warm_start import warm_start_model
from ngsgd.workflow.runs import file_origin

with entry_point(snakemake.log[0]):
    p = snakemake.params
    run = Run.read(Path(p.settings))
    s = run.settings
    info = read_info(Path(p.corpus).parent)
    if s.initial_model is not None:
        model = warm_start_model(load(p.origin), p.origin, s, info)
        if not Path(p.origin).is_relative_to("results") and file_origin(Path(p.origin)) != run.origin:
            raise DataError(f"initial_model: {p.origin} was changed while it was read; run again")
    else:
        model = initial_model(
            s.hidden_layers(),
            read_transform(p.origin),
            np.array(info.class_counts),
            derived_seed(s.seed, "initial"),
            info.const_dim,
        )
    model.save(snakemake.output.model)
