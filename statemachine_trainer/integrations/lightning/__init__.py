"""LightningModules, LightningDataModules and Lightning's callbacks, unmodified, in this trainer.

    from statemachine_trainer import Trainer
    from statemachine_trainer.integrations import lightning

    model = lightning.module(MyLightningModule(), callbacks=[EarlyStopping("val_loss")])
    Trainer(max_epochs=3, clip_norm=1.0).fit(model, train_loader, validation_loader)

Lightning 2 has to be installed (`pip install statemachine-trainer[lightning]`): modules inherit from its
classes. Its own trainer never runs.
"""

from statemachine_trainer.integrations.lightning.adapter import (
    LeftOutWarning,
    LightningGuest,
    module,
)
from statemachine_trainer.integrations.lightning.attributes import AttributeNotHeldWarning
from statemachine_trainer.integrations.lightning.files import NotInTheFileWarning
from statemachine_trainer.integrations.lightning.library import (
    BadLightningFile,
    HooksNotCalledWarning,
    LightningError,
    NotALightningModule,
    NotAvailable,
    NotSupported,
)

__all__ = [
    "AttributeNotHeldWarning",
    "BadLightningFile",
    "HooksNotCalledWarning",
    "LeftOutWarning",
    "LightningError",
    "LightningGuest",
    "NotALightningModule",
    "NotAvailable",
    "NotInTheFileWarning",
    "NotSupported",
    "module",
]
