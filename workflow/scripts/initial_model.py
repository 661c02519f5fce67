from pathlib import Path

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
    p = snakemake.params
    s = Run.read(Path(p.settings)).settings
    info = read_info(Path(p.corpus).parent)
    if s.initial_model is not None:
        model = warm_start_model(load(p.origin), p.origin, s, info)
    else:
        model = initial_model(
            s.hidden_layers(),
            read_transform(p.origin),
            np.array(info.class_counts),
            derived_seed(s.seed, "initial"),
            info.const_dim,
        )
    model.save(snakemake.output.model)
