"""The trainer: builds everything from the config, then trains, evaluates and checkpoints."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from detectron2.utils.logger import setup_logger
from torch import nn

from loupe import solver
from loupe.checkpoint import load_into, load_weights
from loupe.config import check_config
from loupe.data.explanations.loaders import explanation_loader, explanation_test_loader
from loupe.data.training.loaders import build_test_loader, build_train_loader
from loupe.evaluation import ForgeryEvaluator
from loupe.evaluation.text.evaluator import ExplanationEvaluator
from loupe.explanation.explainer import Explainer
from loupe.trainer.averaging import WeightAverage
from loupe.trainer.best import BestWeights
from loupe.trainer.checkpointing import Checkpoints, LoupeCheckpointer
from loupe.trainer.evaluation import check_expected_results, evaluate_model, file_stem
from loupe.trainer.panels import PanelCollector
from loupe.trainer.processes import check_batch_size, data_parallel
from loupe.trainer.randomness import seed_everything
from loupe.trainer.signals import Stopped, StopRequest, StopsEvaluation
from loupe.trainer.step import Batch, TrainingStep, autocast_type
from loupe.trainer.writers import (
    RunWriter,
    Writing,
    forget_old_values,
    restore_storage,
    storage_state,
)

logger = logging.getLogger(__name__)

EXPLAINER = Explainer.__name__


class LoupeTrainer(DefaultTrainer):
    """Detectron2's `DefaultTrainer` with Loupe's step, solver, data, evaluator and checkpoints.

    One iteration is one optimiser step. `SOLVER.EPOCHS` is turned into `SOLVER.MAX_ITER` here.

    Args:
        cfg: frozen config; `MODEL.DEVICE` is a device, not "auto".

    Raises:
        ValueError: values of the config that do not go together.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own constructor is passed over: it builds Detectron2's step, data
        # parallelism (CUDA only in version 0.6) and checkpointer.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        check_config(cfg)
        check_expected_results(cfg)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        precision = autocast_type(cfg)
        check_batch_size(cfg.SOLVER.IMS_PER_BATCH)
        # A run without a seed gets one, so that it can be resumed exactly.
        cfg = _seeded(cfg, cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())
        # Starting weights follow from the seed, also for those who do not call `default_setup`.
        seed_everything(cfg.SEED)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self.cfg = cfg = solver.with_length(cfg, _number_of_images(data_loader))
        self._trainer = TrainingStep(
            data_parallel(model),
            data_loader,
            optimizer,
            seed=cfg.SEED,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            autocast_type=precision,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        decay = cfg.SOLVER.EMA_DECAY
        self.average = WeightAverage(model, decay=decay) if decay else None
        self.checkpointer = LoupeCheckpointer(
            model, cfg.OUTPUT_DIR, weakref.proxy(self), period=cfg.SOLVER.CHECKPOINT_PERIOD
        )
        metric = cfg.TEST.BEST_METRIC
        self.best = BestWeights(self.checkpointer, metric) if metric else None
        self.writer = RunWriter(cfg.OUTPUT_DIR) if comm.is_main_process() else None
        self.stop = StopRequest()
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        # What the storage of a resumed run has to know; None = a run from the beginning.
        self._logged: dict[str, Any] | None = None
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See `loupe.solver.build_optimizer`."""
        return solver.build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """See `loupe.solver.build_lr_scheduler`."""
        return solver.build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_batch: int = 0) -> Iterable[Batch]:
        """See `loupe.data.training.loaders.build_train_loader`."""
        if cfg.MODEL.META_ARCHITECTURE == EXPLAINER:
            return explanation_loader(cfg, start_batch)
        return build_train_loader(cfg, start_batch)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Batch]:
        """See `loupe.data.training.loaders.build_test_loader`."""
        if cfg.MODEL.META_ARCHITECTURE == EXPLAINER:
            return explanation_test_loader(cfg, dataset_name)
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Builds the evaluator of a test set."""
        if cfg.MODEL.META_ARCHITECTURE == EXPLAINER:
            return ExplanationEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)
        return ForgeryEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)

    def build_hooks(self) -> list[HookBase]:
        """Builds timing, schedule, checkpoints, evaluation and writers, in that order."""
        cfg = self.cfg
        self.after_checkpoint: list[HookBase] = []
        if len(cfg.DATASETS.TEST):
            self.after_checkpoint.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self.evaluate))
        if self.writer is not None:
            # Last, so that it writes what the others have measured.
            self.writing = Writing(
                self.writer, evaluation_period=cfg.TEST.EVAL_PERIOD, max_iter=self.max_iter
            )
            self.after_checkpoint.append(self.writing)
        checkpoints = Checkpoints(self.checkpointer, self.stop)
        return [hooks.IterationTimer(), hooks.LRScheduler(), checkpoints, *self.after_checkpoint]

    def train(self) -> dict[str, Any]:
        """Trains to the end; returns the last evaluation's metrics, on the main process.

        Raises:
            SystemExit: A signal asked the run to stop; the status is 128 and its number, as usual,
                and the run can be resumed.
        """
        with self.stop.listening():
            try:
                super().train()
            except Stopped as stopped:
                if self.checkpointer.saved != self.iter < self.max_iter and comm.is_main_process():
                    self.checkpointer.save(self.iter)
                logger.info("Stopped by %s; --resume goes on from here", stopped)
                raise SystemExit(128 + stopped.number) from None
        return getattr(self, "_last_eval_results", {})

    def before_train(self) -> None:
        """Starts the hooks; a resumed run first does what follows its checkpoint again."""
        super().before_train()
        if self._logged is None:
            return
        self.iter = self.storage.iter = self.start_iter - 1
        restore_storage(self.storage, self._logged)
        if self.start_iter == self.max_iter and comm.is_main_process():
            # It may have been killed between the periodic checkpoint and the final one.
            self.checkpointer.save(self.iter, final=True)
        for hook in self.after_checkpoint:
            hook.after_step()
        self.iter = self.storage.iter = self.start_iter

    def run_step(self) -> None:
        """Does one optimiser step and updates the moving average."""
        self._trainer.run(self.iter)
        forget_old_values(get_event_storage())
        if self.average is not None:
            self.average.update()

    def after_train(self) -> None:
        """Ends the run; after a failure nothing is evaluated or saved any more."""
        # Detectron2 counts one too many if a run was resumed at its end.
        self.iter = self.storage.iter = min(self.iter, self.max_iter)
        if self.iter == self.max_iter:
            if self.average is not None and comm.is_main_process():
                with self.average.applied():
                    self.checkpointer.save_weights("model_final_ema")
            super().after_train()
        elif self.writer is not None and self.stop.number is None:
            self.writing.after_train()

    def resume_or_load(self, resume: bool = True) -> None:
        """Goes on from the last checkpoint in OUTPUT_DIR, or starts from `MODEL.WEIGHTS`.

        Args:
            resume: False = leave an earlier run's checkpoint alone, start a new run.
        """
        if resume and self.checkpointer.has_checkpoint():
            self.checkpointer.resume()
            self.start_iter = self.iter + 1
            consumed = self.start_iter * self.cfg.SOLVER.ACCUMULATION_STEPS
            self._trainer.use_data(self.build_train_loader(self.cfg, consumed))
            return
        if resume and self.writer is not None:
            # Rows of a run that was ended before its first checkpoint.
            self.writer.load_state_dict({"written": -1, "size": 0})
        if self.cfg.MODEL.WEIGHTS:
            path = self.cfg.MODEL.WEIGHTS
            weights = load_weights(path)
            load_into(
                self.checkpointer.model, weights, new_parts=self.cfg.MODEL.NEW_PARTS, source=path
            )
            if self.average is not None:
                self.average.reset()

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs but the model, which is saved beside it."""
        # Not DefaultTrainer's: version 0.6 forgets the optimiser.
        state = TrainerBase.state_dict(self)
        state["step"] = self._trainer.state_dict()
        state["logged"] = storage_state(self.storage)
        if self.best is not None:
            state["best"] = self.best.state_dict()
        if self.writer is not None:
            state["writer"] = self.writer.state_dict()
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the state of an earlier run.

        Raises:
            ValueError: it has other parameter groups, or a moving average where this has none.
        """
        if ("average" in state_dict) != (self.average is not None):
            raise ValueError(
                "the run to resume was started with another SOLVER.EMA_DECAY: one of the two has a "
                "moving average, the other has none."
            )
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["step"])
        self.cfg = _seeded(self.cfg, self._trainer.seed)
        if self.average is not None:
            self.average.load_state_dict(state_dict["average"])
        self._logged = state_dict["logged"]
        if self.best is not None and "best" in state_dict:
            self.best.load_state_dict(state_dict["best"])
        if self.writer is not None:
            self.writer.load_state_dict(state_dict["writer"])

    def evaluate(self) -> dict[str, Any]:
        """Evaluates the present weights (the averaged ones if there are), keeps the best.

        Returns:
            Metrics, nested; empty on all processes but the main one.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        # Adaptation changes weights: it is for a model that is done.
        cfg.ADAPTATION.MODE = "none"
        cfg.freeze()
        names = cfg.DATASETS.TEST
        collectors = [
            PanelCollector(cfg.TEST.PANELS if comm.is_main_process() else 0) for _ in names
        ]
        evaluators = [
            DatasetEvaluators(
                [StopsEvaluation(self.stop), self.build_evaluator(cfg, name), collector]
            )
            for name, collector in zip(names, collectors, strict=True)
        ]
        with self._evaluated_weights():
            results = self.test(cfg, self.checkpointer.model, evaluators)
            if comm.is_main_process():
                self._last_eval_results = results
                self._keep_best(results)
        if self.writer is not None:
            for name, collector in zip(names, collectors, strict=True):
                for file_name, picture in collector.panels():
                    tag = f"{Path(name).name}/{Path(file_name).name}"
                    self.writer.show(tag, picture, self.storage.iter)
        return results

    def _evaluated_weights(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied()

    def _keep_best(self, results: dict[str, Any]) -> None:
        if self.best is None:
            return
        # At the end of training the iteration is already one further.
        steps = min(self.iter + 1, self.max_iter)
        # With several test sets the first one decides, since results are nested by set then.
        deciding = (
            results[self.cfg.DATASETS.TEST[0]] if len(self.cfg.DATASETS.TEST) > 1 else results
        )
        if self.best.consider(flatten_results_dict(deciding), steps):
            logger.info("best %s so far: %.5f", self.best.metric, self.best.best)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluates a model on all of `DATASETS.TEST`, adapting it if `ADAPTATION.MODE` says so.

        Args:
            cfg: config.
            model: with the weights to evaluate.
            evaluators: one for each test set; None = the usual ones.

        Returns:
            Metrics by group and name, nested by test set where there are several; empty on all
            processes but the main one.

        Raises:
            ValueError: there is no test set.
        """
        names = cfg.DATASETS.TEST
        if not len(names):
            raise ValueError("DATASETS.TEST is empty: there is nothing to evaluate.")
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in names]
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        results = OrderedDict()
        for name, evaluator in zip(names, evaluators, strict=True):
            loader = cls.build_test_loader(cfg, name)
            # Each of several sets leaves files of its own, should the model adapt to them.
            suffix = "" if len(names) == 1 else f"_{file_stem(name)}"
            results[name] = evaluate_model(cfg, model, loader, evaluator, suffix)
        if not comm.is_main_process():
            return {}
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def evaluate_weights(cls, cfg: CfgNode) -> dict[str, Any]:
        """Evaluates the weights in `MODEL.WEIGHTS` and checks `TEST.EXPECTED_RESULTS`.

        Returns:
            Metrics; empty on all processes but the main one.

        Raises:
            ValueError: there are no weights, they do not fit the model, or the results that are
                expected do not fit the test set.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty: name the checkpoint to evaluate.")
        check_expected_results(cfg)
        model = cls.build_model(cfg)
        load_into(model, load_weights(cfg.MODEL.WEIGHTS), source=cfg.MODEL.WEIGHTS)
        results = cls.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results


def _seeded(cfg: CfgNode, seed: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    cfg.freeze()
    return cfg


def _number_of_images(loader: Iterable[Batch]) -> int | None:
    dataset: Any = getattr(loader, "dataset", None)
    return len(dataset) if hasattr(dataset, "__len__") else None
