"""The modules of other people that `lightning_projects.py` trains, each with small data made here.

Most packages build their modules inside a `fit` of their own. `caught` lets such a `fit` come as far as
Lightning's trainer, and takes what it hands over.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

PACKAGES = (
    "torchvision", "gluonts==0.17.0", "neuralforecast==3.3.0", "darts==0.48.1", "pytorch-forecasting==1.8.0",
    "pytorch-tabular==1.2.0", "chemprop==2.3.1", "lightly==1.6.0",
)  # fmt: skip
Parts = tuple[Any, Any, Any]
"""Module, training loader, validation loader or None."""
Make = Callable[[], Parts]


def projects(wanted: str = "") -> dict[str, Make]:
    """Return what makes each module with its data.

    Args:
        wanted: Only families whose name begins this, or is its beginning, are imported.
    """
    declare_operators()
    families: dict[str, Callable[[], dict[str, Make]]] = {
        "Lightning demos": _demos, "gluonts": _gluonts, "neuralforecast": _neuralforecast, "darts": _darts,
        "pytorch-forecasting": _forecasting, "pytorch-tabular": _tabular, "chemprop": _chemprop,
        "lightly": _lightly,
    }  # fmt: skip
    near = [name for name in families if name.startswith(wanted) or wanted.startswith(name)]
    return {name: make for family in near or families for name, make in families[family]().items()}


def declare_operators() -> None:
    """Let torchvision be imported beside a torch that its compiled operators do not fit, as a CPU build."""
    import torch

    try:
        import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # what it has declared goes with it
        import_module("torchvision")


_KEPT: list[Any] = []


class _Caught(Exception):
    """Ends the `fit` of a package where Lightning's trainer would begin."""


def caught(train: Callable[[], Any]) -> Parts:
    """Return what a package hands to the `fit` of Lightning's trainer."""
    found: list[Parts] = []

    def fit(
        _: Any, model: Any, train_dataloaders: Any = None, val_dataloaders: Any = None,
        datamodule: Any = None, **__: Any,
    ) -> None:  # fmt: skip
        if datamodule is not None:
            datamodule.setup("fit")
            train_dataloaders = datamodule.train_dataloader()
            val_dataloaders = datamodule.val_dataloader()
        found.append((model, train_dataloaders, val_dataloaders))
        raise _Caught

    with contextlib.ExitStack() as stack:
        for root in ("lightning.pytorch", "pytorch_lightning"):
            stack.enter_context(patch.object(import_module(root).Trainer, "fit", fit))
        for stream in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            stack.enter_context(stream(io.StringIO()))
        stack.enter_context(contextlib.suppress(_Caught))
        train()
    (parts,) = found
    return parts


# -- Lightning's own demos ------------------------------------------------------------------------


def _demos() -> dict[str, Make]:
    import torch
    from lightning.pytorch.demos import LightningTransformer, WikiText2, boring_classes
    from lightning.pytorch.demos.lstm import LightningLSTM, SequenceSampler
    from torch.utils.data import DataLoader, Subset, TensorDataset

    def boring(kind: Any) -> Make:
        def make() -> Parts:
            data = boring_classes.BoringDataModule()
            data.setup("fit")
            data.setup("validate")
            return kind(), data.train_dataloader(), data.val_dataloader()

        return make

    def demo() -> Parts:
        data = TensorDataset(torch.randn(24, 32))
        loader = DataLoader(
            data, batch_size=4, shuffle=True, collate_fn=lambda b: torch.stack([o[0] for o in b])
        )
        return boring_classes.DemoModel(out_dim=10), loader, None

    def text() -> WikiText2:
        file = Path("data/wikitext-2.txt")  # where both demos look before they download it
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(f"a line of words about {i % 7}" for i in range(120)))
        return WikiText2(block_size=5)

    def transformer() -> Parts:
        words = text()
        return LightningTransformer(words.vocab_size), DataLoader(Subset(words, range(8))), None

    def lstm() -> Parts:
        words = text()
        sampler = SequenceSampler(words, batch_size=20)
        return LightningLSTM(words.vocab_size), DataLoader(words, batch_sampler=sampler), None

    return {
        "Lightning demos: BoringModel": boring(boring_classes.BoringModel),
        "Lightning demos: ManualOptimBoringModel": boring(boring_classes.ManualOptimBoringModel),
        "Lightning demos: DemoModel": demo,
        "Lightning demos: LightningTransformer": transformer,
        "Lightning demos: LightningLSTM": lstm,
    }


# -- Forecasting ----------------------------------------------------------------------------------


def _gluonts() -> dict[str, Make]:
    import numpy as np

    # By their names: these packages are only in an environment of their own.
    g: Any = import_module("gluonts.torch")
    common: Any = import_module("gluonts.dataset.common")
    i_transformer: Any = import_module("gluonts.torch.model.i_transformer")

    series: list[dict[str, Any]] = [
        {"start": "2024-01-01", "target": np.sin(np.arange(120) / (3 + i)).astype("float32") + i}
        for i in range(6)
    ]
    several = [
        {"start": "2024-01-01", "target": np.stack([one["target"] for one in series[:3]])}
        for _ in range(4)
    ]

    def project(kind: Any, multivariate: bool = False, **settings: Any) -> Make:
        def make() -> Parts:
            estimator = kind(prediction_length=6, batch_size=8, num_batches_per_epoch=5, **settings)
            data = common.ListDataset(
                several if multivariate else series, freq="D", one_dim_target=not multivariate
            )
            transform = estimator.create_transformation()
            made = transform.apply(data, is_train=True)
            module = estimator.create_lightning_module()
            batches = estimator.create_training_data_loader(made, module)
            validation = estimator.create_validation_data_loader(made, module)
            return module, list(islice(batches, 5)), list(islice(validation, 2))

        return make

    return {
        "gluonts: SimpleFeedForward": project(g.SimpleFeedForwardEstimator),
        "gluonts: SimpleFeedForward, batch norm": project(
            g.SimpleFeedForwardEstimator, batch_norm=True
        ),
        "gluonts: DeepAR": project(g.DeepAREstimator, freq="D"),
        "gluonts: TemporalFusionTransformer": project(
            g.TemporalFusionTransformerEstimator, freq="D"
        ),
        "gluonts: DLinear": project(g.DLinearEstimator),
        "gluonts: PatchTST": project(g.PatchTSTEstimator, patch_len=4),
        "gluonts: LagTST": project(g.LagTSTEstimator, freq="D"),
        "gluonts: TiDE": project(g.TiDEEstimator, freq="D"),
        "gluonts: WaveNet": project(g.WaveNetEstimator, freq="D"),
        "gluonts: ITransformer": project(i_transformer.ITransformerEstimator, multivariate=True),
    }


def _neuralforecast() -> dict[str, Make]:
    models: Any = import_module("neuralforecast.models")
    dataset: Any = import_module("neuralforecast.tsdataset").TimeSeriesDataset
    panel: Any = import_module("neuralforecast.utils").AirPassengersPanel[["unique_id", "ds", "y"]]
    plain = {"MLP", "NBEATS", "NHITS", "DLinear", "NLinear", "PatchTST", "TFT", "KAN", "BiTCN"}
    recurrent = {"RNN", "GRU", "LSTM", "TCN", "DilatedRNN", "DeepAR"}
    joint = {"TSMixer", "iTransformer", "StemGNN", "TimeMixer"}
    small: dict[str, Any] = {"encoder_hidden_size": 8, "decoder_hidden_size": 8}
    settings: dict[str, dict[str, Any]] = {
        **{key: {} for key in plain},
        **dict.fromkeys(recurrent, small),
        **{key: {"n_series": 2} for key in joint},
        "DeepAR": {"lstm_hidden_size": 8},
        "NHITS": {"mlp_units": [[16, 16]] * 3},
        "NBEATS": {"mlp_units": [[16, 16]] * 3},
        "TFT": {"hidden_size": 8},
        "PatchTST": {"hidden_size": 16, "n_heads": 2, "linear_hidden_size": 16},
        "iTransformer": {"n_series": 2, "hidden_size": 16, "n_heads": 2},
    }

    def project(name: str) -> Make:
        def make() -> Parts:
            model = getattr(models, name)(
                h=6, input_size=12, max_steps=20, val_check_steps=5, batch_size=1,
                windows_batch_size=16, accelerator="cpu", **settings[name],
            )  # fmt: skip
            data = dataset.from_df(panel)[0]
            return caught(lambda: model.fit(data, val_size=12))

        return make

    return {f"neuralforecast: {name}": project(name) for name in sorted(settings)}


def _darts() -> dict[str, Make]:
    import numpy as np

    models: Any = import_module("darts.models")
    series: Any = import_module("darts").TimeSeries.from_values(
        np.sin(np.arange(100) / 5).astype("float32")
    )
    future = {"RNNModel": {"training_length": 16, "model": "LSTM", "hidden_dim": 8}}
    settings: dict[str, dict[str, Any]] = {
        **future,
        "BlockRNNModel": {"output_chunk_length": 4, "hidden_dim": 8},
        "NBEATSModel": {"output_chunk_length": 4, "layer_widths": 16, "num_stacks": 2},
        "NHiTSModel": {"output_chunk_length": 4, "layer_widths": 16},
        "TCNModel": {"output_chunk_length": 4, "dropout": 0.1},
        "TransformerModel": {"output_chunk_length": 4, "d_model": 16, "nhead": 2},
        "TFTModel": {"output_chunk_length": 4, "hidden_size": 8, "add_relative_index": True},
        "DLinearModel": {"output_chunk_length": 4},
        "NLinearModel": {"output_chunk_length": 4},
        "TiDEModel": {"output_chunk_length": 4, "hidden_size": 16},
        "TSMixerModel": {"output_chunk_length": 4, "hidden_size": 16},
    }

    def project(name: str) -> Make:
        def make() -> Parts:
            model = getattr(models, name)(
                input_chunk_length=12, batch_size=16, random_state=1,
                lr_scheduler_cls=_scheduler(), lr_scheduler_kwargs={"gamma": 0.9}, **settings[name],
            )  # fmt: skip
            return caught(lambda: model.fit(series[:70], val_series=series[70:], epochs=2))

        return make

    return {f"darts: {name}": project(name) for name in settings}


def _scheduler() -> Any:
    import torch

    return torch.optim.lr_scheduler.ExponentialLR


def _forecasting() -> dict[str, Make]:
    f: Any = import_module("pytorch_forecasting")
    examples: Any = import_module("pytorch_forecasting.data.examples")
    metrics: Any = import_module("pytorch_forecasting.metrics")

    def project(name: str, known: bool = True, **settings: Any) -> Make:
        def make() -> Parts:
            frame = examples.generate_ar_data(seasonality=10.0, timesteps=60, n_series=8, seed=1)
            frame["static"] = "2"
            more: dict[str, Any] = {"static_categoricals": ["static"]} if known else {}
            data = f.TimeSeriesDataSet(
                frame, time_idx="time_idx", target="value", group_ids=["series"],
                max_encoder_length=12, max_prediction_length=6,
                time_varying_unknown_reals=["value"], **more,
            )  # fmt: skip
            held_out = f.TimeSeriesDataSet.from_dataset(data, frame, predict=True)
            module = getattr(f, name).from_dataset(data, **settings)
            return (
                module,
                data.to_dataloader(train=True, batch_size=64, num_workers=0),
                held_out.to_dataloader(train=False, batch_size=8, num_workers=0),
            )

        return make

    normal = metrics.NormalDistributionLoss
    return {
        "pytorch-forecasting: NBeats": project("NBeats", False, widths=[16, 16]),
        "pytorch-forecasting: NHiTS": project("NHiTS", hidden_size=16),
        "pytorch-forecasting: DeepAR": project("DeepAR", hidden_size=8, loss=normal()),
        "pytorch-forecasting: RecurrentNetwork": project("RecurrentNetwork", hidden_size=8),
        "pytorch-forecasting: DecoderMLP": project("DecoderMLP", hidden_size=16),
        "pytorch-forecasting: TemporalFusionTransformer": project(
            "TemporalFusionTransformer", hidden_size=8, attention_head_size=2
        ),
    }


# -- Tables, molecules, pictures ------------------------------------------------------------------


def _tabular() -> dict[str, Make]:
    import numpy as np

    pandas: Any = import_module("pandas")
    t: Any = import_module("pytorch_tabular")
    configs: Any = import_module("pytorch_tabular.models")
    general: Any = import_module("pytorch_tabular.config")
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(120, 3)).astype("float32")
    frame = pandas.DataFrame(numbers, columns=["a", "b", "c"])
    frame["kind"] = rng.choice(list("xyz"), 120)
    frame["target"] = (numbers[:, 0] > 0).astype(int)

    def project(name: str, **settings: Any) -> Make:
        def make() -> Parts:
            model = t.TabularModel(
                data_config=general.DataConfig(
                    target=["target"], continuous_cols=["a", "b", "c"], categorical_cols=["kind"]
                ),
                model_config=getattr(configs, name)(task="classification", **settings),
                optimizer_config=general.OptimizerConfig(),
                trainer_config=general.TrainerConfig(
                    batch_size=16, accelerator="cpu", progress_bar="none", load_best=False,
                    checkpoints=None, early_stopping=None,
                ),
                verbose=False,
                suppress_lightning_logger=True,
            )  # fmt: skip
            return caught(lambda: model.fit(train=frame[:90], validation=frame[90:]))

        return make

    return {
        "pytorch-tabular: CategoryEmbedding": project("CategoryEmbeddingModelConfig", layers="16"),
        "pytorch-tabular: GANDALF": project("GANDALFConfig", gflu_stages=2),
        "pytorch-tabular: TabNet": project("TabNetModelConfig", n_d=4, n_a=4),
        "pytorch-tabular: FTTransformer": project(
            "FTTransformerConfig", num_heads=2, num_attn_blocks=1, input_embed_dim=8
        ),
        "pytorch-tabular: AutoInt": project("AutoIntConfig", num_attn_blocks=1),
    }


def _chemprop() -> dict[str, Make]:
    import numpy as np

    data: Any = import_module("chemprop.data")
    nn: Any = import_module("chemprop.nn")
    models: Any = import_module("chemprop.models")
    smiles = ["C" * n + end for n in range(1, 11) for end in ("O", "N", "c1ccccc1")]

    def project(predictor: str, passing: str, classes: bool = False, **settings: Any) -> Make:
        def make() -> Parts:
            points = [
                data.MoleculeDatapoint.from_smi(
                    one, np.array([float(len(one) > 6) if classes else len(one) / 10])
                )
                for one in smiles
            ]
            whole = data.MoleculeDataset(points)
            module = models.MPNN(
                getattr(nn, passing)(d_h=16),
                nn.MeanAggregation(),
                getattr(nn, predictor)(input_dim=16, hidden_dim=16),
                **settings,
            )
            loader = data.build_dataloader
            return module, loader(whole, 8), loader(whole, 8, shuffle=False)

        return make

    return {
        "chemprop: MPNN, regression": project("RegressionFFN", "BondMessagePassing"),
        "chemprop: MPNN, classes, batch norm": project(
            "BinaryClassificationFFN", "AtomMessagePassing", True, batch_norm=True
        ),
        "chemprop: MPNN, evidential": project("EvidentialFFN", "BondMessagePassing"),
    }


def _lightly() -> dict[str, Make]:
    import torch
    from torch import Tensor
    from torch.utils.data import DataLoader, TensorDataset

    tools: Any = import_module("lightly.utils.benchmarking")
    embedding: Any = import_module("lightly.embedding")
    loss: Any = import_module("lightly.loss")

    def network() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        )  # fmt: skip

    def pictures(*, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
        made = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(made, torch.arange(24) % 3), batch_size=8, shuffle=shuffle)

    def linear(kind: str, **settings: Any) -> Make:
        def make() -> Parts:
            module = getattr(tools, kind)(
                network(), batch_size_per_device=8, feature_dim=4, num_classes=3, topk=(1, 2), **settings
            )  # fmt: skip
            return module, pictures(shuffle=True), pictures(shuffle=False)

        return make

    class TwoViews(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(one), self.net(other)

    def contrastive() -> Parts:
        def views(batch: list[Any]) -> Any:
            made = torch.stack([picture for picture, _ in batch])
            return (made + torch.randn_like(made), made), torch.zeros(len(made)), ["" for _ in made]

        loader = DataLoader(pictures(shuffle=True).dataset, batch_size=8, collate_fn=views)
        model = TwoViews()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        module = embedding.SelfSupervisedEmbedding(model, loss.NTXentLoss(), optimizer, loader)
        return module, loader, None

    return {
        "lightly: LinearClassifier": linear("LinearClassifier"),
        "lightly: FinetuneClassifier": linear("FinetuneClassifier"),
        "lightly: SelfSupervisedEmbedding, NTXent": contrastive,
    }
