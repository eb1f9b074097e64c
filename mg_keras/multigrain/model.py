"""MultiGrain: one network whose descriptor serves classes, instances and copies (Berman et al. 2019)."""

import contextlib
import inspect
import math
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mg_keras import pretrained
from mg_keras.layers import DistanceWeightedSampling, MarginLoss
from mg_keras.models import Network
from mg_keras.multigrain.step import Step
from mg_keras.objectives import batches
from mg_keras.objectives.classification import Classification, classification_values
from mg_keras.objectives.multigrain import MultiGrainObjective
from mg_keras.objectives.objective import Objective
from mg_keras.poolings import Level
from mg_keras.preparations import ASPECT

# of `keras.Model.compile`: what this model has of its own
_OWN_IN_COMPILE = ("loss", "loss_weights", "metrics", "weighted_metrics")


@keras.saving.register_keras_serializable("mg_keras")
class MultiGrain(Network):
    """A classification trunk topped with GeM pooling, trained for classes and instances at once.

    `embedding = GeM_p(trunk(image))`, `logits = W embedding + b`. Training adds to the cross-entropy a margin loss
    between augmented versions of the same image, so it needs no instance labels (sections 3.1 to 3.3, eqs. 1 to 5).

    Args:
        trunk: a name of `mg_keras.models.trunks.TRUNKS`, or a Keras model from the normalised image
            [B, H, W, 3] to a feature map [B, h, w, d] (any keras-hub backbone with a spatial output).
        num_classes: int, the number of classes C.
        pooling_exponent: float > 0, the training exponent p of GeM; 1 is average pooling.
        margin: float, alpha of the margin loss.
        initial_beta: float, where the learnt threshold beta of the margin loss starts.
        margin_normalization: `"pairs"` (the paper's) or `"active"` (the reference's); see `MarginLoss`.
        versions: int m >= 1, how many versions of an image a training batch holds at most (repeated augmentations).
        pixel_mean, pixel_std: 3 floats each, of RGB in 0-1; None: those of the named trunk
            (`mg_keras.models.trunks.normalization`), ImageNet's for any other.
        seed: int or None (which counts as 0), of the negative sampling in training. What a step draws depends on the
            seed, the number of the step and the replica alone, so a resumed run repeats it.
        weights: None for fresh weights; `"imagenet"`, or what else `mg_keras.pretrained.initialize` takes, such as a
            run's folder or a weights file. The classifier is taken over where it has `num_classes` classes.
        trainable_exponent: bool, whether p is learnt, with the rate of the weights and without their decay; it stays at
            0.1 or above. An optimiser's own decay, as AdamW's, has to be told:
            `optimizer.exclude_from_weight_decay(var_names=["pooling_exponent"])`.
        levels: further depths of the trunk whose pooled maps join the embedding (`mg_keras.models.Network`).
        preparation: how photos are brought to the resolution that they are embedded at (`mg_keras.preparations`).

    Call arguments:
        images: RGB in 0-255, float or uint8, [B, H, W, 3], any H and W. Normalisation is the model's own.
        p_star: None (the training exponent), a scalar, or one value an image [B].
        training: bool.

    Returns:
        A dict of float32 tensors, whatever the dtype policy: `embedding` [B, d], as pooled (not normalised), and
        `logits` [B, C].

    Raises:
        ValueError: an argument is out of range, or the trunk is no network from images to one feature map.
        UserError: the trunk's name is unknown, or `weights` can't be had or are another network's.

    Example:

    >>> model = mg_keras.MultiGrain("resnet18", num_classes=10)
    >>> model(np.zeros((2, 96, 128, 3), "uint8"), p_star=4.0)["embedding"].shape
    TensorShape([2, 512])
    """

    def __init__(
        self,
        trunk: str | keras.Model,
        num_classes: int,
        pooling_exponent: float = 3.0,
        margin: float = 0.2,
        initial_beta: float = 1.2,
        margin_normalization: str = "pairs",
        versions: int = 3,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        seed: int | None = None,
        weights: str | os.PathLike | None = None,
        trainable_exponent: bool = False,
        levels: Sequence[Level | str | Sequence] = (),
        preparation: str = ASPECT,
        **kwargs,
    ):
        if versions < 1:
            raise ValueError(f"versions must be at least 1, received {versions}")
        if weights is not None and not isinstance(trunk, str):
            raise ValueError(f"weights are for a trunk by name, received {weights!r} with the trunk {trunk!r}")
        super().__init__(
            trunk,
            num_classes,
            pooling_exponent,
            pixel_mean,
            pixel_std,
            trainable_exponent,
            levels,
            preparation,
            **kwargs,
        )
        self.versions = versions
        self.seed = seed
        self.margin_loss = MarginLoss(margin, initial_beta, margin_normalization, name="margin_loss")
        self.sampling = DistanceWeightedSampling(max_positives=versions - 1 or None, seed=seed, name="sampling")
        self.margin_loss.build((None, self.embedding_dimension))
        self.sampling.build((None, self.embedding_dimension))
        if weights is not None:
            pretrained.initialize(self, weights, trunk)

    def to_torch_state_dict(self) -> dict[str, np.ndarray]:
        """The weights as NumPy arrays under the names of the authors' network: `pretrained.to_torch_state_dict`."""
        return pretrained.to_torch_state_dict(self)

    def compile(
        self,
        optimizer: str | dict | keras.optimizers.Optimizer = "sgd",
        beta_optimizer: str | dict | keras.optimizers.Optimizer | None = None,
        classification_weight: float | None = None,
        weight_decay: float = 0.0,
        accumulation_steps: int = 1,
        jit_compile: bool | str = False,
        trunk_rate: float = 1.0,
        class_weights: Sequence[float] | np.ndarray | None = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        objective: Objective | None = None,
        group_optimizers: Mapping[str, str | dict | keras.optimizers.Optimizer] | None = None,
        **refused,
    ) -> None:
        """Sets how the model is trained.

        The losses and the metrics are the model's own: Keras's `loss`, `loss_weights`, `metrics` and `weighted_metrics`
        are refused.

        Args:
            optimizer: of the weights (trunk and classifier), as `keras.Model.compile` takes it. Keras's callbacks
                change the rate of this one alone.
            beta_optimizer: of beta alone; None takes SGD with rate 0.1 and momentum 0.9 (section 4.1).
            classification_weight: lambda in [0, 1]: 1 is plain cross-entropy (then nothing is sampled); None: 0.5. An
                `objective` has its own.
            weight_decay: float >= 0, times the weight is **added to the gradient** (L2, as in the paper; Keras's own
                `SGD(weight_decay=...)` is decoupled and ten times weaker at momentum 0.9). Never applied to beta.
            accumulation_steps: int k: the replica's batch is k parts of whole RA groups, passed one after the other,
                their gradients averaged before the one update. Sampling stays within a part.
            jit_compile: compile the forward and backward pass with XLA. With classification_weight 1 and no dropout
                the updates are those without it; XLA's random generator is another, so negatives and dropout masks
                drawn from the same seed differ. Tried on one CPU, and under `MirroredStrategy` on two logical ones:
                there the updates are right too, but the first steps can stall for tens of seconds on busy cores.
                `"auto"` is False.
            trunk_rate: float > 0, times the trunk's gradients, their decay included: with SGD that is its learning rate
                beside the classifier's. For trunks that were trained before.
            class_weights: C floats >= 0, times the cross-entropy of a training image of that class
                (`mg_keras.training.class_balance`); None: 1 each. Evaluation knows nothing of them.
            run_eagerly: bool, step by step in Python, to look into.
            steps_per_execution: int >= 1, steps that `fit` and `evaluate` take between callbacks; above 1 on one
                replica only.
            objective: `mg_keras.objectives.objective.Objective`, what is minimised; None: MultiGrain's joint loss, with
                this `classification_weight`.
            group_optimizers: dict of the optimisers of the objective's parameter groups by name, as
                `keras.Model.compile` takes one; for those missing SGD with the group's rate and momentum 0.9.
                `beta_optimizer` is the group `beta`.

        Raises:
            ValueError: a value is out of range, an argument or a kind of optimiser has no effect here, or the model
                computes in float16, which needs a scaled loss (train in bfloat16 instead).
        """
        _refuse_arguments(refused)
        if not isinstance(jit_compile, bool) and jit_compile != "auto":
            raise ValueError(f"jit_compile must be True, False or 'auto', received {jit_compile!r}")
        jit_compile = jit_compile is True
        given = objective
        if objective is None:
            classification_weight = 0.5 if classification_weight is None else classification_weight
            objective = MultiGrainObjective(self.margin_loss, self.sampling, classification_weight)
        elif not isinstance(objective, Objective):
            raise ValueError(f"objective must be a mg_keras.objectives.objective.Objective, received {objective!r}")
        elif classification_weight is not None:
            raise ValueError(
                f"classification_weight {classification_weight} has no effect beside an objective: give it to that"
            )
        if objective.needs_pairs and self.versions < 2:
            what = type(given).__name__ if given else f"classification_weight {classification_weight} < 1"
            raise ValueError(f"{what} needs positive pairs, that is versions >= 2, received versions={self.versions}")
        if not isinstance(accumulation_steps, numbers.Integral) or accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be a whole number of at least 1, received {accumulation_steps}")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0, received {weight_decay}")
        if not 0 < trunk_rate < math.inf:
            raise ValueError(f"trunk_rate must be greater than 0, received {trunk_rate}")
        if steps_per_execution < 1:
            raise ValueError(f"steps_per_execution must be at least 1, received {steps_per_execution}")
        if steps_per_execution > 1 and self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                f"steps_per_execution {steps_per_execution} is for one replica, Keras's loop fails on several: take 1"
            )
        if jit_compile and run_eagerly:
            raise ValueError("jit_compile and run_eagerly exclude each other: take one")
        if "float16" in (self.compute_dtype, self.trunk.compute_dtype):
            raise ValueError("training in float16 needs a scaled loss and is not offered: take mixed_bfloat16")
        if optimizer is None:
            raise ValueError("optimizer must be a name or a keras.optimizers.Optimizer, received None")
        optimizer = keras.optimizers.get(optimizer)
        _check_optimizer(optimizer, trunk_rate)
        super().compile(
            optimizer=optimizer, jit_compile=False, run_eagerly=run_eagerly, steps_per_execution=steps_per_execution
        )
        if beta_optimizer is not None:
            group_optimizers = {**(group_optimizers or {}), "beta": beta_optimizer}
        self.step = Step(
            self,
            objective,
            optimizer,
            _group_optimizers(objective.parameter_groups(self), group_optimizers or {}),
            weight_decay=weight_decay,
            accumulation_steps=accumulation_steps,
            trunk_rate=trunk_rate,
            jit_compile=jit_compile,
            seed=self.seed or 0,
        )
        self._given_objective = given is not None
        self._class_weights = None
        if class_weights is not None:
            self._class_weights = batches.check_class_weights(class_weights, self.num_classes)
        self._trackers = {metric.name: keras.metrics.Mean(name=metric.name) for metric in objective.metrics}
        # apart from those of training, which a checkpoint holds
        missing = [metric.name for metric in Classification.metrics if metric.name not in self._trackers]
        self._evaluation_trackers = {name: keras.metrics.Mean(name=name) for name in missing}
        self.step.build()

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was given: a saved model comes back ready to train on.

        Raises:
            ValueError: an objective that Keras can't save, such as one with networks of its own.
        """
        if not self.compiled:
            return {}
        step = self.step
        config = {
            "optimizer": self.optimizer,
            "group_optimizers": step.group_optimizers,
            "weight_decay": step.weight_decay,
            "accumulation_steps": step.accumulation_steps,
            "jit_compile": step.jit_compile,
            "trunk_rate": step.trunk_rate,
            "class_weights": None if self._class_weights is None else self._class_weights.tolist(),
            "run_eagerly": self.run_eagerly,
            "steps_per_execution": self.steps_per_execution,
        }
        if self._given_objective:
            try:
                config["objective"] = keras.saving.serialize_keras_object(step.objective)
            except NotImplementedError:
                what = type(step.objective).__name__
                raise ValueError(
                    f"a model is not saved with the objective {what}: take save_weights, or compile() it before save"
                ) from None
        else:
            config["classification_weight"] = step.objective.classification_weight
        return keras.saving.serialize_keras_object(config)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles with what `get_compile_config` gave."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    @property
    def objective(self) -> Objective:
        """What is minimised; a saved model has its variables, too."""
        return self.step.objective

    @property
    def beta_optimizer(self) -> keras.optimizers.Optimizer | None:
        """The optimiser of beta; None where nothing learns it."""
        return self.step.group_optimizers.get("beta")

    @property
    def state_variables(self) -> list[keras.Variable]:
        """All that decides the model's answers and its next step: weights, moving statistics, beta, random states."""
        return [*super().state_variables, *self.margin_loss.variables, *self.sampling.variables]

    @property
    def objective_variables(self) -> list[keras.Variable]:
        """What the objective has beside that and keeps changing, such as a memory."""
        known = {id(variable) for variable in (*self.state_variables, *self.objective.fixed_variables)}
        return [variable for variable in self.objective.variables if id(variable) not in known]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The running means of the epoch: what the objective measures."""
        return list(getattr(self, "_trackers", {}).values())

    def reset_metrics(self) -> None:
        """Begins the means anew, those that only `evaluate` has, too."""
        super().reset_metrics()
        for metric in getattr(self, "_evaluation_trackers", {}).values():
            metric.reset_state()

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update from `(images [B, H, W, 3], labels [B], instance_ids [B])`: a replica's whole RA groups.

        A further part, floats [B], weighs the images' cross-entropies (not the retrieval loss). Where the objective
        samples nothing, as with a classification_weight of 1, the ids may be missing: `(images, labels)` or
        `(images, labels, weights)`.

        Raises:
            ValueError: the batch has other parts.
            InvalidArgumentError: a label is not a whole number from 0 to `num_classes` - 1; nothing is updated.
        """
        objective = self.objective
        batch = self._checked(batches.unpack(data), objective.takes_mixed_labels, objective.needs_labels)
        if objective.needs_instances:
            what, instead = "the joint loss", ", or compile with classification_weight=1"
            if self._given_objective:
                what, instead = type(objective).__name__, ""
            batches.need_instances(batch, what, self.step.jit_compile, instead)
        else:
            batch = batch._replace(instance_ids=None)
        values = self.step.update(batch._replace(weights=self._image_weights(batch)))
        weight = None
        if self.distribute_strategy.num_replicas_in_sync > 1 and not batch.images.shape[0]:
            # of a short last batch a replica may have no image, and means of none are no numbers
            weight = tf.cast(tf.shape(batch.images)[0] > 0, tf.int32)
        return self._track(values, weight)

    def _checked(self, batch, may_be_mixed=False, needs_labels=True):
        self.check_images(batch.images)
        if may_be_mixed and batches.are_mixed(batch.labels):
            return batches.with_mixed_labels(batch, self.num_classes)
        return batches.with_class_numbers(batch, self.num_classes) if needs_labels else batch

    def _image_weights(self, batch):
        """float32 [B], what the images' cross-entropies are multiplied by in training; None: 1."""
        given = None if batch.weights is None else tf.cast(batch.weights, tf.float32)
        if self._class_weights is None:
            return given
        if batch.labels.shape.rank == 2:
            of_class = tf.linalg.matvec(batch.labels, self._class_weights)
        else:
            of_class = tf.gather(self._class_weights, batch.labels)
        return of_class if given is None else of_class * given

    def test_step(self, data: Any) -> dict[str, Any]:
        """Cross-entropy and accuracies of `(images, labels)`, at the training exponent.

        Weights as a further part multiply the cross-entropies; instance ids are of no account here.
        """
        batch = self._checked(batches.unpack(data))
        weights = None if batch.weights is None else tf.cast(batch.weights, tf.float32)
        logits = self(batch.images, training=False)["logits"]
        values = classification_values(batch.labels, logits, weights)
        # the last batch may be smaller: its images count as much as the others'
        return self._track({"loss": values["classification_loss"], **values}, weight=tf.shape(logits)[0])

    def _track(self, values, weight=None):
        trackers = {**self._evaluation_trackers, **self._trackers}
        for name, value in values.items():
            if weight is not None:
                value = tf.where(weight > 0, value, tf.zeros_like(value))  # noqa: PLW2901
            trackers[name].update_state(value, sample_weight=weight)
        return {name: trackers[name].result() for name in values}

    def fit(self, *args, **kwargs) -> keras.callbacks.History:
        """Keras's `fit`, on a dataset of the batches that `train_step` takes.

        `sample_weight` and `class_weight` multiply the cross-entropies; `class_weight` stands in for the
        `class_weights` of `compile` meanwhile. Arrays have no instance ids: they are for a classification_weight of 1.

        Raises:
            ValueError: labels or weights are not what they should be; those of arrays are looked at beforehand.
        """
        given = self._given(super().fit, args, kwargs)
        validation = given.get("validation_data")
        if isinstance(validation, (tuple, list)) and len(validation) > 1:
            images, labels, *weights = validation
            labels = _as_array(labels)
            batches.check_given_labels(labels, self.num_classes)
            given["validation_data"] = (images, labels, *map(batches.as_weights, weights))
        with self._classes_weighed(given.pop("class_weight", None)), batches.plain_errors():
            return super().fit(**given)

    def evaluate(self, *args, **kwargs) -> Any:
        """Keras's `evaluate`, on what `test_step` takes; `sample_weight` multiplies the cross-entropies.

        Raises:
            ValueError: labels or weights are not what they should be.
        """
        given = self._given(super().evaluate, args, kwargs)
        with batches.plain_errors():
            return super().evaluate(**given)

    def train_on_batch(self, *args, **kwargs) -> Any:
        """Keras's `train_on_batch`, for a classification_weight of 1; with ids call `train_step`."""
        given = self._given(super().train_on_batch, args, kwargs)
        with batches.plain_errors():
            return super().train_on_batch(**given)

    def test_on_batch(self, *args, **kwargs) -> Any:
        """Keras's `test_on_batch`."""
        given = self._given(super().test_on_batch, args, kwargs)
        with batches.plain_errors():
            return super().test_on_batch(**given)

    def _given(self, method, args, kwargs):
        """The arguments of one of Keras's loops by name, labels checked and `sample_weight` made floats."""
        given = dict(inspect.signature(method).bind(*args, **kwargs).arguments)
        given.update(given.pop("kwargs", {}))
        if given.get("y") is not None:
            given["y"] = _as_array(given["y"])
            batches.check_given_labels(given["y"], self.num_classes)
        if given.get("sample_weight") is not None:
            given["sample_weight"] = batches.as_weights(given["sample_weight"])
        return given

    @contextlib.contextmanager
    def _classes_weighed(self, class_weight):
        """Trains with Keras's `class_weight` meanwhile."""
        if class_weight is None:
            yield
            return
        before = self._class_weights
        # the step in use was made with other weights
        self._class_weights, self.train_function = batches.class_weights_from(class_weight, self.num_classes), None
        try:
            yield
        finally:
            self._class_weights, self.train_function = before, None

    def get_config(self) -> dict[str, Any]:
        """Everything the constructor was given."""
        return {
            **super().get_config(),
            "margin": self.margin_loss.margin,
            "initial_beta": self.margin_loss.initial_beta,
            "margin_normalization": self.margin_loss.normalization,
            "versions": self.versions,
            "seed": self.seed,
        }


def _as_array(labels):
    """Labels that are a list as an array: Keras takes a list for the labels of several outputs."""
    return np.asarray(labels) if isinstance(labels, list | tuple) else labels


def _group_optimizers(groups, given):
    """Name -> optimiser of parameter groups: those given, or else SGD."""
    unknown = sorted(set(given) - {group.name for group in groups})
    if unknown:
        known = ", ".join(group.name for group in groups) or "none"
        raise ValueError(f"the objective's parameter groups are {known}, received an optimizer of {unknown[0]}")
    optimizers = {
        group.name: keras.optimizers.get(given.get(group.name) or keras.optimizers.SGD(group.rate, momentum=0.9))
        for group in groups
    }
    for name, optimizer in optimizers.items():
        _check_scaling(optimizer, f"the optimizer of {name}: ")
    return optimizers


def _refuse_arguments(arguments):
    """Raises the error of arguments that `compile` doesn't take."""
    for name, value in arguments.items():
        if name not in _OWN_IN_COMPILE:
            raise TypeError(f"compile has no argument {name!r}")
        if value is not None:
            raise ValueError(f"the losses and the metrics are the model's own: leave {name} out of compile")


def _check_optimizer(optimizer, trunk_rate):
    """Raises a ValueError if something that is asked for would have no effect, or end in an error after training."""
    _check_scaling(optimizer, "")
    if getattr(optimizer, "use_ema", False):
        raise ValueError("an optimizer with use_ema averages other variables than Keras puts back: leave it out")
    clipped = [name for name in ("clipnorm", "clipvalue") if getattr(optimizer, name, None) is not None]
    if trunk_rate != 1.0 and (clipped or not isinstance(optimizer, keras.optimizers.SGD)):
        kind = type(optimizer).__name__ + "".join(f" with {name}" for name in clipped)
        raise ValueError(
            f"trunk_rate {trunk_rate} needs keras.optimizers.SGD: {kind} takes the scale out of a gradient, and the "
            "rate with it"
        )


def _check_scaling(optimizer, of):
    """Raises a ValueError if an optimiser divides gradients by a scale: no loss is multiplied by it here."""
    factor = getattr(optimizer, "loss_scale_factor", None)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or factor not in (None, 1):
        kind = type(optimizer).__name__ + ("" if factor is None else f" with loss_scale_factor {factor}")
        raise ValueError(
            f"{of}{kind} divides the gradients by a scale that the loss is not multiplied by: leave the scaling out"
        )
